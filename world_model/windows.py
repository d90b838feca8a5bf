"""What one training sample is: some frames in a row, the plan from each, and anchors from later.

The frames are of a drive that may leave the recorded path (`excursions`), the anchors always are as
recorded: so a model sees that what it is anchored to is not where it is. The module does not know
where latents come from (`latents`), nor what is learnt from them (`objective`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from drive_envs.plan import STEP
from world_model.dit import Told
from world_model.flow import Latents
from world_model.pose_features import relative_pose

Poses = Float[Tensor, "batch frame 3"]


class Window(NamedTuple):
    """A batch of samples: N frames in a row, A anchors.

    frames (batch, N, C, h, w): standardised latents. poses (batch, N, 3): planar, in the world.
    plan (batch, N, 33, 15) and plan_valid (batch, N, 33): from each frame, SI units.
    anchors, anchor_poses: likewise, A of them. wait (batch,): from the last of the N frames to the
    first anchor, in frames.
    """

    frames: Latents
    poses: Poses
    plan: Float[Tensor, "batch frame 33 15"]
    plan_valid: Bool[Tensor, "batch frame 33"]
    anchors: Latents
    anchor_poses: Poses
    wait: Int[Tensor, " batch"]

    def to(self, device: torch.device | str) -> "Window":
        """Move it."""
        return Window(*(part.to(device, non_blocking=True) for part in self))


def tell(
    poses: Poses,
    place: Int[Tensor, "batch frame"],
    before: Float[Tensor, "batch 3"] | None,
    anchor_pose: Float[Tensor, "batch 3"] | None,
    anchor_place: Int[Tensor, " batch"] | None,
    tau: float = 0.0,
) -> Told:
    """Say of frames in a row what there is to say; `tau` is the level of all of them.

    before: pose of the frame before the first, None when unknown. anchor_pose, anchor_place: of the
    first anchor, None without anchors.
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
        has_motion=has_motion,
        anchor=anchor,
        wait=wait,
        has_anchor=torch.full_like(has_motion, anchor_pose is not None),
    )


def tell_window(window: Window, *, is_anchored: bool) -> tuple[Told, Told]:
    """Return what is told of the anchors, and of the frames, all as clean ones."""
    num_frames, num_anchors = window.frames.shape[1], window.anchors.shape[1]
    places = torch.arange(num_frames, device=window.poses.device).expand(len(window.poses), -1)
    begin = num_frames - 1 + window.wait
    anchor_places = begin[:, None] + torch.arange(num_anchors, device=begin.device)
    pose = window.anchor_poses[:, 0]
    anchors = tell(window.anchor_poses, anchor_places, None, pose, begin)
    if not is_anchored:
        return anchors, tell(window.poses, places, None, None, None)
    return anchors, tell(window.poses, places, None, pose, begin)


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
