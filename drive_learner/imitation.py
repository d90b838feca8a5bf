"""The off-policy baseline: the same learner, fed with what was recorded, not with what was driven.

A recording becomes a `Rollout` of one scene whose driver was the person: every recorded frame once,
the teacher's plan is the recorded future and his action what the person did. Cut into fragments it
makes minibatches of the same shape, at the same noise, for the same losses; only the reward says
nothing, so the losses that hear it must have no weight. Fragments begin anywhere. A minibatch
depends on the seed and the step alone: a resumed run sees exactly what it would have seen.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from drive_actors.bottleneck import noise as bottleneck_noise
from drive_actors.policy import CAMERAS, Policy
from drive_envs.path import path_from_segment
from drive_envs.plan import POSITION, best_plan
from drive_envs.protocol import NUM_CONTEXT, Rollout
from drive_envs.segment import Segment, SegmentError
from drive_envs.segments import SegmentDataset
from drive_envs.teachers import recorded_targets
from drive_learner.batch import Batch, Fragment, Source, collate

log = logging.getLogger(__name__)

NUM_DESIRES = 3


def steps_with_history(segment: Segment) -> Bool[np.ndarray, " step"]:
    """Tell of each step of `recorded_rollout` whether all its 10 frames and the next are valid."""
    num_steps = len(segment) - NUM_CONTEXT - 1
    if num_steps < 1:
        return np.zeros(0, bool)
    windows = np.lib.stride_tricks.sliding_window_view(segment.valid, NUM_CONTEXT + 2)
    return np.asarray(windows.all(-1))


def recorded_rollout(segment: Segment) -> Rollout:
    """Turn a recording of N frames into N - 10 steps of one scene, driven by the person.

    Raises SegmentError when a frame is damaged, ValueError when there are fewer than 11.
    """
    num_steps = len(segment) - NUM_CONTEXT - 1
    if num_steps < 1:
        raise ValueError(
            f"segment {segment.name} has {len(segment)} frames, imitation needs {NUM_CONTEXT + 2}"
        )
    path = path_from_segment(segment)
    action = torch.stack([path.curvature, path.acceleration], dim=-1).float().numpy()
    rows = torch.arange(NUM_CONTEXT, len(segment) - 1)
    targets = recorded_targets(path, rows)
    images = {
        camera: np.stack([segment.image(camera, row) for row in range(len(segment))])
        for camera in CAMERAS
    }
    state = {
        "speed": path.speed.float().numpy()[:, None],
        "desire": np.eye(NUM_DESIRES, dtype=np.float32)[segment.desire],
        "last_action": np.concatenate([action[:1], action[:-1]]),
    }
    active = steps_with_history(segment)[:, None]
    never = np.zeros_like(active)
    zero = np.zeros(active.shape, np.float32)
    taken = action[NUM_CONTEXT:-1, None]
    return Rollout(
        observation={key: value[:, None] for key, value in {**images, **state}.items()},
        action=taken,
        action_normalized=np.zeros_like(taken),
        log_prob=zero,
        reward=zero,
        terminated=never,
        truncated=never,
        active=active,
        teacher_plan=targets.plan.float().numpy()[:, None],
        teacher_plan_valid=targets.valid.numpy()[:, None],
        teacher_action=targets.action.float().numpy()[:, None],
        lateral_error=zero,
        noise_seed=0,
        policy_version=0,
        actor=0,
        seconds={},
    )


class DecodedSegments:
    """Recordings as rollouts, decoded once as long as they fit into `memory_mb`."""

    def __init__(self, dataset: SegmentDataset, memory_mb: float) -> None:
        self.dataset = dataset
        self._most_bytes = memory_mb * 1e6
        self._num_bytes = 0
        self._held: OrderedDict[int, Rollout] = OrderedDict()

    def __getitem__(self, index: int) -> Rollout:
        if index in self._held:
            self._held.move_to_end(index)
            return self._held[index]
        rollout = recorded_rollout(self.dataset[index])
        self._held[index] = rollout
        self._num_bytes += rollout.num_bytes
        while self._num_bytes > self._most_bytes and len(self._held) > 1:
            _, oldest = self._held.popitem(last=False)
            self._num_bytes -= oldest.num_bytes
        return rollout


class RecordedFeed:
    """Minibatches out of recordings, every step of every segment equally likely to be a start.

    num_features: of the bottleneck noise, None for a policy without. Segments that are too short or
    damaged are skipped, logged, and counted in `skipped`.
    """

    def __init__(
        self,
        dataset: SegmentDataset,
        *,
        num_sequences: int,
        sequence_length: int,
        num_features: int | None,
        seed: int,
        memory_mb: float,
    ) -> None:
        self.skipped: Counter[str] = Counter()
        self._num_sequences, self._length = num_sequences, sequence_length
        self._num_features, self._seed = num_features, seed
        self._decoded = DecodedSegments(dataset, memory_mb)
        self._starts = [self._starts_of(dataset[index]) for index in range(len(dataset))]
        self._check()

    def _starts_of(self, segment: Segment) -> np.ndarray:
        can_begin = steps_with_history(segment)
        num_starts = max(0, len(can_begin) - self._length + 1)
        starts = can_begin[:num_starts].nonzero()[0]
        if not len(starts):
            self._skip(segment.name, "too_short")
        return starts

    def _skip(self, name: str, cause: str) -> None:
        self.skipped[cause] += 1
        log.warning("segment %s is skipped in imitation: %s", name, cause)

    def _check(self) -> None:
        if not sum(map(len, self._starts)):
            raise ValueError(
                f"no segment has {NUM_CONTEXT + self._length + 1} valid frames in a row to "
                f"imitate: record longer ones or lower queue.sequence_length"
            )

    def start(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Nothing has to begin: recordings don't depend on the policy."""

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Recordings don't depend on the policy."""

    def next(self, version: int) -> Batch:
        """Draw the minibatch of gradient step `version`."""
        generator = np.random.default_rng([self._seed, version])
        picked = [self._draw(generator) for _ in range(self._num_sequences)]
        batch = collate(picked, self._length)
        batch.policy_version.fill_(version)
        if self._num_features is None:
            return batch
        seed = int(generator.integers(2**31))
        frames = NUM_CONTEXT + self._length + 1
        return replace(
            batch, noise=bottleneck_noise(seed, frames, self._num_sequences, self._num_features)
        )

    def _draw(self, generator: np.random.Generator) -> Fragment:
        while True:
            ends = np.cumsum([len(starts) for starts in self._starts])
            at = int(generator.integers(ends[-1]))
            index = int(np.searchsorted(ends, at, side="right"))
            start = int(self._starts[index][at - ends[index]])
            try:
                return Fragment(Source(self._decoded[index], None), 0, start)
            except SegmentError as error:
                log.warning("%s", error)
                self._skip(str(index), "damaged")
                self._starts[index] = self._starts[index][:0]
                self._check()

    def give_back(self, batch: Batch) -> None:
        """Every minibatch has its own memory."""

    def state(self) -> dict[str, Any]:
        """Nothing: the step is all the state there is."""
        return {}

    def metrics(self) -> dict[str, float]:
        """Return how many segments were skipped, by cause."""
        return {f"skipped/{cause}": float(num) for cause, num in self.skipped.items()}

    def video(self) -> Sequence[np.ndarray] | None:
        """Nothing is driven."""
        return None


@torch.no_grad()
def trajectory_mae(policy: Policy, segments: SegmentDataset) -> float:
    """Return the off-policy trajectory error in metres (PAPER.md section 5): lower is better.

    At every recorded frame with a whole history the policy, without noise, sees what the person
    saw. The error is the mean of |x - x'| and |y - y'| between its likeliest hypothesis and the
    recorded future, in the ego frame, over all of the 33 points up to 10 s ahead that the recording
    still covers, of all frames. Raises ValueError when there is no such frame.
    """
    total, count = 0.0, 0
    device = next(policy.parameters()).device
    for segment in (segments[index] for index in range(len(segments))):
        if not steps_with_history(segment).any():
            continue
        rollout = recorded_rollout(segment)
        observation = {
            key: torch.from_numpy(value[:-1]).to(device)
            for key, value in rollout.observation.items()
        }
        output = policy.unroll(observation, None)
        assert output.plan is not None
        error = best_plan(output.plan).cpu() - torch.from_numpy(rollout.teacher_plan)
        valid = torch.from_numpy(rollout.teacher_plan_valid & rollout.active[..., None])
        of_frame = error[..., POSITION][..., :2].abs().mean(-1)
        total += of_frame[valid].sum().item()
        count += int(valid.sum())
    if not count:
        raise ValueError("no held-out segment is long enough for a trajectory error")
    return total / count
