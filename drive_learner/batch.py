"""Minibatches: short sequences of many rollouts side by side, [time, batch, ...].

A fragment is L consecutive steps of one scene of one rollout. It comes with the C frames before it,
so that its first step sees the history the actor saw, and one frame after it to bootstrap from:
C + L + 1 frames for L steps of loss. Where C is more than the rollout's own context, a fragment
near the rollout's start has fewer. Longer fragments waste less on context, shorter ones mix more
scenes in a minibatch of the same cost.

The module knows where the numbers of a fragment lie, not which fragments are worth learning from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from drive_actors.bottleneck import noise as bottleneck_noise
from drive_envs.protocol import NUM_CONTEXT, Rollout

Scalar = Float32[Tensor, "time batch"]
Flag = Bool[Tensor, "time batch"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one gradient step learns from: `Rollout`'s fields for L steps of B fragments.

    observation and noise (unit bottleneck noise, None for none) have C + L + 1 frames, the rest L
    steps. present: which frames there are, None for all; some of the C may lie before the drive.
    `active` is False where a fragment is shorter than L. policy_version (batch,) is that of
    the weights that acted, recording (batch,) the number of the recording driven in. is_first_use
    (batch,): nothing has been learnt from the fragment yet.
    """

    observation: Mapping[str, Tensor]
    noise: Float32[Tensor, "frame batch features"] | None
    present: Bool[Tensor, "frame batch"] | None
    action_normalized: Float32[Tensor, "time batch 2"]
    log_probs: Float32[Tensor, "time batch 2"]
    reward: Scalar
    terminated: Flag
    active: Flag
    teacher_plan: Float32[Tensor, "time batch 33 15"]
    teacher_plan_valid: Bool[Tensor, "time batch 33"]
    teacher_action: Float32[Tensor, "time batch 2"]
    policy_version: Int64[Tensor, " batch"]
    recording: Int64[Tensor, " batch"]
    is_first_use: Bool[Tensor, " batch"]

    @property
    def num_context(self) -> int:
        """C."""
        return len(self.observation["speed"]) - len(self.reward) - 1

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device, without waiting where the memory is pinned."""
        if device.type == "cpu":
            return self
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        observation = {
            key: value.to(device, non_blocking=True) for key, value in self.observation.items()
        }
        return Batch(**{**vars(self), **moved, "observation": observation})


STEP_FIELDS = (
    "action_normalized",
    "log_probs",
    "reward",
    "terminated",
    "active",
    "teacher_plan",
    "teacher_plan_valid",
    "teacher_action",
)


class Source(NamedTuple):
    """A rollout as minibatches are cut from it, with its noise drawn once."""

    rollout: Rollout
    noise: np.ndarray | None  # (C+T+1, B, features) float32


class Fragment(NamedTuple):
    """L steps of one scene, from `start` on; fewer when the scene is shorter than L."""

    source: Source
    scene: int
    start: int
    is_first_use: bool = False

    def num_before(self, num_context: int) -> int:
        """Frames there are before its first one, at most as many as asked for."""
        return min(num_context, NUM_CONTEXT + self.start)


def source_of(rollout: Rollout, num_noised: int | None) -> Source:
    """Draw the noise that the actor drew; see `PolicyConfig.num_noised`."""
    if num_noised is None:
        return Source(rollout, None)
    frames = NUM_CONTEXT + rollout.num_steps + 1
    drawn = bottleneck_noise(rollout.noise_seed, frames, rollout.num_scenes, num_noised)
    return Source(rollout, drawn.numpy())


def fragments(source: Source, length: int) -> Iterator[Fragment]:
    """Cut every scene into fragments of `length` steps, spread evenly over its active steps.

    As few as cover the scene: where `length` does not divide it, neighbours overlap.
    """
    for scene, num_steps in enumerate(source.rollout.active.sum(axis=0).tolist()):
        num = -(-num_steps // length)
        last = max(0, num_steps - length)
        for i in range(num):
            yield Fragment(source, scene, round(i * last / max(1, num - 1)))


def empty_batch(
    source: Source,
    length: int,
    num_sequences: int,
    *,
    num_context: int = NUM_CONTEXT,
    pinned: bool = False,
) -> Batch:
    """Allocate a minibatch for fragments of rollouts like this one, num_context being C."""
    rollout, noise = source

    def like(array: np.ndarray, time: int) -> Tensor:
        dtype = torch.from_numpy(array[:0].copy()).dtype
        return torch.zeros(time, num_sequences, *array.shape[2:], dtype=dtype, pin_memory=pinned)

    frames = num_context + length + 1
    present = None
    if num_context > NUM_CONTEXT:
        present = torch.zeros(frames, num_sequences, dtype=torch.bool, pin_memory=pinned)
    return Batch(
        observation={key: like(value, frames) for key, value in rollout.observation.items()},
        noise=None if noise is None else like(noise, frames),
        present=present,
        policy_version=torch.zeros(num_sequences, dtype=torch.int64, pin_memory=pinned),
        recording=torch.zeros(num_sequences, dtype=torch.int64, pin_memory=pinned),
        is_first_use=torch.zeros(num_sequences, dtype=torch.bool, pin_memory=pinned),
        **{name: like(getattr(rollout, name), length) for name in STEP_FIELDS},
    )


def fill(batch: Batch, picked: Sequence[Fragment]) -> None:
    """Copy fragments into a minibatch, one a column. Overwrites all of it.

    A fragment that reaches past the end of its rollout repeats the last frame there, inactive.
    """
    length = len(batch.reward)
    assert len(picked) == batch.reward.shape[1]
    frames = {key: value.numpy() for key, value in batch.observation.items()}
    steps = {name: getattr(batch, name).numpy() for name in STEP_FIELDS}
    for column, fragment in enumerate(picked):
        (rollout, noise), scene, start, is_first_use = fragment
        num = min(length, rollout.num_steps - start)
        before = fragment.num_before(batch.num_context)
        taken = slice(NUM_CONTEXT + start - before, NUM_CONTEXT + start + num + 1)
        missing = batch.num_context - before
        for key, target in frames.items():
            copy_column(target[:, column], rollout.observation[key][taken, scene], missing)
        if noise is not None:
            assert batch.noise is not None
            copy_column(batch.noise.numpy()[:, column], noise[taken, scene], missing)
        if batch.present is not None:
            batch.present[:, column] = torch.arange(len(batch.present)) >= missing
        for name, target in steps.items():
            target[:num, column] = getattr(rollout, name)[start : start + num, scene]
            target[num:, column] = 0
        batch.policy_version[column] = rollout.policy_version
        batch.recording[column] = int(rollout.recording[scene])
        batch.is_first_use[column] = is_first_use


def copy_column(target: np.ndarray, frames: np.ndarray, missing: int) -> None:
    """Copy frames into one column after `missing` zeros, the last of them to its end."""
    end = missing + len(frames)
    target[:missing] = 0
    target[missing:end] = frames
    target[end:] = frames[-1]


def collate(picked: Sequence[Fragment], length: int, *, num_context: int = NUM_CONTEXT) -> Batch:
    """Make a minibatch of its own memory out of fragments."""
    batch = empty_batch(picked[0].source, length, len(picked), num_context=num_context)
    fill(batch, picked)
    return batch
