"""The off-policy baseline: the same learner, fed with what was recorded, not with what was driven.

A recording becomes a `Rollout` of one scene whose driver was the person: every recorded frame once,
the teacher's plan is the recorded future and his action what the person did. Cut into fragments it
makes minibatches of the same shape, at the same noise, for the same losses; only the reward says
nothing, so the losses that hear it must have no weight. Fragments begin anywhere. A minibatch
depends on the seed and the step alone: a resumed run sees exactly what it would have seen.
"""

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from drive_actors.bottleneck import noise as bottleneck_noise
from drive_actors.policy import Policy, PolicyConfig
from drive_envs.camera import CAMERAS, cameras
from drive_envs.path import path_from_segment
from drive_envs.photometry import PhotometryConfig, develop, draw_looks, draw_places
from drive_envs.plan import POSITION, best_plan
from drive_envs.protocol import NUM_CONTEXT, Rollout
from drive_envs.reprojective import check_cameras, recorded_images
from drive_envs.scenes import Starts, lane_change_near, stretches
from drive_envs.segment import Segment, SegmentError
from drive_envs.segments import SegmentDataset
from drive_envs.teachers import recorded_targets
from drive_envs.vehicle import actions_from_poses
from drive_learner.batch import Batch, Fragment, Source, collate
from drive_learner.queue import QueueConfig

log = logging.getLogger(__name__)

Segments = Sequence[Segment] | SegmentDataset


Decoded = tuple[Rollout, Rollout] | SegmentError  # a recording and its mirror image


class Stretch(NamedTuple):
    """An unbroken run of valid rows of one segment."""

    segment: int
    rows: slice

    @property
    def num_steps(self) -> int:
        """Steps of its rollout: all rows but the context and the last."""
        return self.rows.stop - self.rows.start - NUM_CONTEXT - 1


def find_stretches(segments: Segments) -> list[Stretch]:
    """List the stretches of all segments, also those that are too short to learn from."""
    return [
        Stretch(index, rows)
        for index in range(len(segments))
        for rows in stretches(segments[index])
    ]


def recorded_rollout(segment: Segment, rows: slice, images: Mapping[str, np.ndarray]) -> Rollout:
    """Turn N unbroken rows of a recording into N - 10 steps of one scene, driven by the person.

    Actions are the exact inverse of the recorded motion: what is held for one step leads to the
    next row. `images` are what both cameras saw, uint8 (N, 3, height, width).
    """
    path = path_from_segment(segment, rows)
    action = actions_from_poses(path.poses, path.speed).float().numpy()
    acted = slice(NUM_CONTEXT, len(path) - 1)
    targets = recorded_targets(path, torch.arange(len(path))[acted])
    state = {
        "speed": path.speed.float().numpy()[:, None],
        "desire": path.told.float().numpy(),
        "last_action": np.concatenate([action[:1], action]),
    }
    taken = action[acted, None]
    zero = np.zeros(taken.shape[:2], np.float32)
    never = np.zeros(taken.shape[:2], bool)
    return Rollout(
        observation={key: value[:, None] for key, value in {**images, **state}.items()},
        action=taken,
        action_normalized=np.zeros_like(taken),
        log_probs=np.zeros_like(taken),
        reward=zero,
        terminated=never,
        truncated=never,
        active=~never,
        teacher_plan=targets.plan.float().numpy()[:, None],
        teacher_plan_valid=targets.valid.numpy()[:, None],
        teacher_action=taken,
        lateral_error=zero,
        recording=np.array([segment.number]),
        noise_seed=0,
        policy_version=0,
        actor=0,
        seconds={},
    )


def images_of(segment: Segment, rows: slice, width: int, height: int) -> dict[str, np.ndarray]:
    """Return what cameras of width x height saw; SegmentError if one is damaged or another's."""
    views = cameras(width, height)
    check_cameras(segment, views)
    return recorded_images(segment, range(rows.start, rows.stop), views)


class DecodedRollouts:
    """Recordings and their mirror images as rollouts, decoded once if they fit into `memory_mb`.

    A mirror image takes no memory: it is the recording, read from right to left.
    """

    def __init__(self, segments: Segments, width: int, height: int, memory_mb: int) -> None:
        self._segments, self._size = segments, (width, height)
        self._most_bytes = memory_mb * 1_000_000
        self._num_bytes = 0
        self._held: OrderedDict[tuple[int, int], tuple[Rollout, Rollout]] = OrderedDict()
        self._threads = ThreadPoolExecutor(
            max_workers=os.cpu_count(), thread_name_prefix="decode-recordings"
        )

    def get(self, stretches: Sequence[Stretch]) -> list[Decoded]:
        """Find each stretch, or decode it, side by side with others."""
        keys = [(stretch.segment, stretch.rows.start) for stretch in stretches]
        found = {key: self._held[key] for key in keys if key in self._held}
        pairs = zip(keys, stretches, strict=True)
        new = {key: stretch for key, stretch in pairs if key not in found}
        decoded = dict(zip(new, self._threads.map(self._decode, new.values()), strict=True))
        for key in found:
            self._held.move_to_end(key)
        for key, rollouts in decoded.items():
            if not isinstance(rollouts, SegmentError):
                self._hold(key, rollouts)
        return [(found | decoded)[key] for key in keys]

    def _decode(self, stretch: Stretch) -> Decoded:
        rows = stretch.rows
        try:
            segment = self._segments[stretch.segment]
            images = images_of(segment, rows, *self._size)
        except SegmentError as error:
            return error
        flipped = {name: frames[..., ::-1] for name, frames in images.items()}
        return (
            recorded_rollout(segment, rows, images),
            recorded_rollout(segment.mirrored(), rows, flipped),
        )

    def _hold(self, key: tuple[int, int], decoded: tuple[Rollout, Rollout]) -> None:
        self._held[key] = decoded
        self._num_bytes += decoded[0].num_bytes
        while self._num_bytes > self._most_bytes and len(self._held) > 1:
            _, (oldest, _) = self._held.popitem(last=False)
            self._num_bytes -= oldest.num_bytes


@dataclass(frozen=True, kw_only=True)
class ImitationConfig:
    """memory_mb: decoded recordings to keep; more are decoded again and again, which is slow."""

    memory_mb: int = 4000

    def __post_init__(self) -> None:
        if self.memory_mb < 0:
            raise ValueError(f"imitation memory_mb must be 0 or more, got {self.memory_mb}")


class RecordedFeed:
    """Minibatches out of recordings, starting at the steps that `Starts` draws.

    photometry: what cameras add; mirrored_share, lane_change_share: of the sequences, as for
    actors. Stretches that are too short or damaged are skipped, logged, and counted in `skipped`.
    """

    def __init__(
        self,
        segments: Segments,
        queue: QueueConfig,
        policy: PolicyConfig,
        config: ImitationConfig,
        *,
        seed: int,
        photometry: PhotometryConfig | None = None,
        mirrored_share: float = 0.0,
        lane_change_share: float = 0.0,
    ) -> None:
        self.skipped: Counter[str] = Counter()
        self._num_sequences, self._length = queue.num_sequences, queue.sequence_length
        self._num_noised, self._num_context = policy.num_noised, policy.num_past
        self._seed, self._photometry = seed, photometry or PhotometryConfig()
        self._mirrored_share = mirrored_share
        self._decoded = DecodedRollouts(segments, policy.width, policy.height, config.memory_mb)
        self._stretches = find_stretches(segments)
        steps, near = [], []
        for stretch in self._stretches:
            if stretch.num_steps < self._length:
                self._skip(stretch, "too_short")
            steps.append(np.arange(max(0, stretch.num_steps - self._length + 1)))
            desire = segments[stretch.segment].desire[stretch.rows]
            near.append(lane_change_near(desire)[NUM_CONTEXT + steps[-1]])
        self._starts = Starts(steps, near, lane_change_share)
        self._maker = ThreadPoolExecutor(1, "make-minibatches")
        self._ahead: tuple[int, Future[Batch]] | None = None
        self._check()

    def _skip(self, stretch: Stretch, cause: str) -> None:
        self.skipped[cause] += 1
        log.warning("not imitated, %s: segment %d, %s", cause, stretch.segment, stretch.rows)

    def _check(self) -> None:
        if not len(self._starts):
            raise ValueError(
                f"no segment has {NUM_CONTEXT + self._length + 1} valid frames in a row to "
                f"imitate: record longer ones or lower queue.sequence_length"
            )

    def start(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Nothing has to begin: recordings don't depend on the policy."""

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Recordings don't depend on the policy."""

    def next(self, version: int) -> Batch:
        """Draw the minibatch of gradient step `version`; the one after is made meanwhile."""
        if self._ahead is None or self._ahead[0] != version:
            self._ahead = version, self._maker.submit(self._make, version)
        made = self._ahead[1].result()
        self._ahead = version + 1, self._maker.submit(self._make, version + 1)
        return made

    def _make(self, version: int) -> Batch:
        generator = np.random.default_rng([self._seed, version])
        picked = self._pick(generator)
        batch = collate(picked, self._length, num_context=self._num_context)
        batch.policy_version.fill_(version)
        if not self._photometry.is_neutral:
            self._develop(batch, generator)
        if self._num_noised is None:
            return batch
        seed = int(generator.integers(2**31))
        frames = self._num_context + self._length + 1
        return replace(
            batch, noise=bottleneck_noise(seed, frames, self._num_sequences, self._num_noised)
        )

    def _pick(self, generator: np.random.Generator) -> list[Fragment]:
        fragments: list[Fragment] = []
        while missing := self._num_sequences - len(fragments):
            starts = [self._starts.draw(generator) for _ in range(missing)]
            mirrored = generator.random(missing) < self._mirrored_share
            decoded = self._decoded.get([self._stretches[which] for which, _ in starts])
            damaged = set[int]()
            for (which, step), is_mirrored, found in zip(starts, mirrored, decoded, strict=True):
                if not isinstance(found, SegmentError):
                    fragments.append(Fragment(Source(found[int(is_mirrored)], None), 0, step))
                elif which not in damaged:
                    log.warning("%s", found)
                    self._skip(self._stretches[which], "damaged")
                    self._starts.drop(which)
                    damaged.add(which)
            self._check()
        return fragments

    def _develop(self, batch: Batch, generator: np.random.Generator) -> None:
        """Give each sequence its camera, in place."""
        looks = draw_looks(self._photometry, generator.spawn(self._num_sequences))
        for name in CAMERAS:
            images = batch.observation[name].numpy()
            for sequence in range(self._num_sequences):
                which = np.full(len(images), sequence)
                places = draw_places(generator, len(images))
                images[:, sequence] = develop(images[:, sequence], looks.pick(which), places)

    def give_back(self, batch: Batch) -> None:
        """Every minibatch has its own memory."""

    def state(self) -> dict[str, Any]:
        """Nothing: the step is all the state there is."""
        return {}

    def metrics(self) -> dict[str, float]:
        """Return how many segments were skipped, by cause."""
        return {f"skipped/{cause}": float(num) for cause, num in self.skipped.items()}

    @property
    def latest(self) -> None:
        """Nothing is driven."""
        return None


@torch.no_grad()
def trajectory_mae(policy: Policy, segments: Segments) -> float:
    """Return the off-policy trajectory error in metres (the paper's Table 2): lower is better.

    At every recorded frame with a whole history the policy, without noise, sees what the person
    saw. The error is the mean of |x - x'| and |y - y'| between its likeliest hypothesis and the
    recorded future, in the ego frame, over all of the 33 points up to 10 s ahead that the recording
    still covers, of all frames. A segment that is damaged or of another camera is named and left
    out. Raises ValueError when there is no such frame.
    """
    total, count = 0.0, 0
    device = next(policy.parameters()).device
    size = policy.config.width, policy.config.height
    for stretch in find_stretches(segments):
        if stretch.num_steps < 1:
            continue
        segment = segments[stretch.segment]
        try:
            images = images_of(segment, stretch.rows, *size)
        except SegmentError as error:
            log.warning("left out of the trajectory error: %s", error)
            continue
        rollout = recorded_rollout(segment, stretch.rows, images)
        observation = {
            key: torch.from_numpy(value[:-1]).to(device)
            for key, value in rollout.observation.items()
        }
        output = policy.unroll(observation, None)
        assert output.plan is not None
        error = best_plan(output.plan).cpu() - torch.from_numpy(rollout.teacher_plan)
        valid = torch.from_numpy(rollout.teacher_plan_valid)
        of_point = error[..., POSITION][..., :2].abs().mean(-1)
        total += of_point[valid].sum().item()
        count += int(valid.sum())
    if not count:
        raise ValueError("no held-out segment is long enough for a trajectory error")
    return total / count
