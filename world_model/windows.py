"""What one training sample is: some frames in a row, the plan from each, and anchors from later.

The frames are of a drive that may leave the recorded path (`excursions`), the anchors always are as
recorded: so a model sees that what it is anchored to is not where it is. The module does not know
where latents come from (`latents`), nor what is learnt from them (`objective`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from drive_envs.plan import STEP
from world_model.dit import Told
from world_model.flow import Latents
from world_model.latents import LatentDrive, LatentFile
from world_model.pose_features import relative_pose

Poses = Float[Tensor, "batch frame 3"]


class Window(NamedTuple):
    """A batch of samples: N frames in a row, A anchors.

    frames (batch, N, C, h, w): latents. shown: what history shows of them, the same, or what a
    model has made of them (`own_rollouts`). moved: likewise, what the frame before each, as shown,
    shows from there, as far as it goes (`flat_road`). poses (batch, N, 3): planar, in the world.
    plan (batch, N, 33, 15) and plan_valid (batch, N, 33): from each frame, SI units.
    anchors, anchors_moved, anchor_poses: likewise, A of them; none where nothing is known of the
    future. wait (batch,): from the last of the N frames to the first anchor, in frames.
    """

    frames: Latents
    shown: Latents
    moved: Latents
    poses: Poses
    plan: Float[Tensor, "batch frame 33 15"]
    plan_valid: Bool[Tensor, "batch frame 33"]
    anchors: Latents
    anchors_moved: Latents
    anchor_poses: Poses
    wait: Int[Tensor, " batch"]

    def to(self, device: torch.device | str) -> "Window":
        """Move it."""
        return Window(*(part.to(device, non_blocking=True) for part in self))


def tell(
    moved: Latents,
    poses: Poses,
    place: Int[Tensor, "batch frame"],
    before: Float[Tensor, "batch 3"] | None,
    anchor_pose: Float[Tensor, "batch 3"] | None,
    anchor_place: Int[Tensor, " batch"] | None,
    tau: float = 0.0,
) -> Told:
    """Say of frames in a row what there is to say; `tau` is the level of all of them.

    moved: what each frame's predecessor shows from there. before: pose of the frame before the
    first, None when unknown. anchor_pose, anchor_place: of the first anchor, None without anchors.
    """
    batch, num_frames = place.shape
    first = poses[:, :1] if before is None else before[:, None]
    earlier = torch.cat([first, poses[:, :-1]], dim=1)
    has_motion = torch.ones_like(place, dtype=torch.bool)
    has_motion[:, 0] = before is not None
    if anchor_pose is None or anchor_place is None:
        anchor, wait = torch.zeros_like(poses).repeat(1, 1, 2), torch.zeros_like(poses[..., 0])
    else:
        anchor = relative_pose(poses, anchor_pose[:, None])
        wait = (anchor_place[:, None] - place) * STEP
    return Told(
        tau=torch.full((batch, num_frames), tau, device=poses.device),
        place=place,
        motion=relative_pose(earlier, poses),
        moved=moved,
        has_motion=has_motion,
        anchor=anchor,
        wait=wait,
        has_anchor=torch.full_like(has_motion, anchor_pose is not None),
    )


def tell_window(window: Window) -> tuple[Told, Told]:
    """Return what is told of the anchors, and of the frames, all as clean ones."""
    batch, num_frames = window.frames.shape[:2]
    num_anchors = window.anchors.shape[1]
    places = torch.arange(num_frames, device=window.poses.device).expand(batch, -1)
    begin = num_frames - 1 + window.wait
    anchor_places = begin[:, None] + torch.arange(num_anchors, device=begin.device)
    if not num_anchors:
        frames = tell(window.moved, window.poses, places, None, None, None)
        return frames.pick(slice(0)), frames
    pose = window.anchor_poses[:, 0]
    anchors = tell(window.anchors_moved, window.anchor_poses, anchor_places, None, pose, begin)
    return anchors, tell(window.moved, window.poses, places, None, pose, begin)


def joined(*parts: Told) -> Told:
    """Put frames behind each other."""
    return Told(*(torch.cat(of_part, dim=1) for of_part in zip(*parts, strict=True)))


def window_mask(num_anchors: int, num_frames: int, num_history: int) -> Bool[Tensor, "frame frame"]:
    """Say who sees whom of anchors and clean frames in a row.

    Anchors see those before them and themselves; a frame sees all anchors, the `num_history` frames
    before it and itself.
    """
    age = torch.arange(num_frames)[:, None] - torch.arange(num_frames)
    mask = torch.ones(num_anchors + num_frames, num_anchors + num_frames, dtype=torch.bool)
    mask[:num_anchors] = False
    mask[:num_anchors, :num_anchors] = torch.ones(num_anchors, num_anchors).tril().bool()
    mask[num_anchors:, num_anchors:] = (age >= 0) & (age <= num_history)
    return mask


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Which windows are drawn.

    min_wait, max_wait: frames from the last frame to the anchors, uniform, as far as the drive
    goes. share_recorded: of the anchored windows, those that are as recorded; the others are from
    excursions, and anchored in the recording all the same. anchor_dropout: share of minibatches
    without anchors. These are as recorded: a model that does not know the future sees what people
    do, not how one comes back. num_drives: learn from the first so many drives alone, null for all.
    """

    min_wait: int = 1
    max_wait: int = 45
    share_recorded: float = 0.3
    anchor_dropout: float = 0.1
    num_drives: int | None = None

    def __post_init__(self) -> None:
        if self.num_drives is not None and self.num_drives < 1:
            raise ValueError(f"windows.num_drives is {self.num_drives}, not 1 or more")
        if not 1 <= self.min_wait <= self.max_wait:
            raise ValueError(
                f"windows.min_wait is {self.min_wait} and max_wait {self.max_wait}; they must rise "
                "from at least 1"
            )
        for name in ("share_recorded", "anchor_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"windows.{name} is {getattr(self, name)}, not within 0..1")


class WindowSampler:
    """Draws windows of one split of a file of latents, uniformly over all frames.

    A window depends on the seed, the step and its number alone. set_by: the setting that num_frames
    comes from. Raises ValueError, which names it, when no drive is long enough.
    """

    def __init__(
        self,
        file: LatentFile,
        split: str,
        config: WindowConfig,
        *,
        num_frames: int,
        num_anchors: int,
        set_by: str = "objective.num_targets",
    ) -> None:
        self.file, self.config = file, config
        self.num_frames, self.num_anchors = num_frames, num_anchors
        least = num_frames + config.min_wait + num_anchors - 1
        self._drives = [
            group
            for group, (of, length) in enumerate(zip(file.splits, file.num_frames, strict=True))
            if of == split and length >= least
        ][: config.num_drives]
        starts = np.array([file.num_frames[group] - least + 1 for group in self._drives])
        if not len(starts):
            raise ValueError(
                f"{file.path}: no drive of split '{split}' has {least} frames, which a window "
                f"takes: record longer drives, or lower {set_by}"
            )
        self._ends = starts.cumsum()

    def minibatch(self, seed: int, step: int, numbers: Iterable[int]) -> Window:
        """Return the windows of a gradient step that have these numbers."""
        is_anchored = self.is_anchored(seed, step)
        rngs = [np.random.default_rng([seed, step, number]) for number in numbers]
        return stack([self.draw(rng, is_anchored=is_anchored) for rng in rngs])

    def is_anchored(self, seed: int, step: int) -> bool:
        """Say whether the windows of a gradient step have anchors."""
        return np.random.default_rng([seed, step]).random() >= self.config.anchor_dropout

    def draw(self, rng: np.random.Generator, *, is_anchored: bool) -> Window:
        """Draw one window, a batch of one."""
        config = self.config
        place = int(rng.integers(self._ends[-1]))
        which = int(np.searchsorted(self._ends, place, side="right"))
        first = place - (int(self._ends[which - 1]) if which else 0)
        drive = self.file[self._drives[which]]
        variant = 0
        if is_anchored and len(drive.poses) > 1 and rng.random() >= config.share_recorded:
            variant = int(rng.integers(1, len(drive.poses)))
        last = first + self.num_frames - 1
        most = min(config.max_wait, len(drive) - self.num_anchors - last)
        wait = int(rng.integers(config.min_wait, most + 1))
        return cut(drive, variant, first, self.num_frames, wait, self.num_anchors * is_anchored)


def cut(
    drive: LatentDrive, variant: int, first: int, num_frames: int, wait: int, num_anchors: int
) -> Window:
    """Cut a window out of one variant of a drive, with anchors as recorded; a batch of one."""
    rows = slice(first, first + num_frames)
    begin = first + num_frames - 1 + wait
    ahead = slice(begin, begin + num_anchors)
    frames = batched(drive.latents[variant, rows].astype(np.float32))
    return Window(
        frames=frames,
        shown=frames.clone(),
        moved=batched(drive.moved[variant, rows].astype(np.float32)),
        poses=batched(drive.poses[variant, rows]),
        plan=batched(drive.plans[variant, rows]),
        plan_valid=batched(drive.valid[variant, rows]),
        anchors=batched(drive.latents[0, ahead].astype(np.float32)),
        anchors_moved=batched(drive.moved[0, ahead].astype(np.float32)),
        anchor_poses=batched(drive.poses[0, ahead]),
        wait=torch.tensor([wait]),
    )


def batched(array: np.ndarray) -> Tensor:
    """Copy an array, which may be read-only, into a batch of one."""
    return torch.tensor(array)[None]


def stack(windows: Sequence[Window]) -> Window:
    """Put windows side by side."""
    return Window(*(torch.cat(parts) for parts in zip(*windows, strict=True)))
