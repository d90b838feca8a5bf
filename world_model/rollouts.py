"""Driving a world model along given poses, beside the recording that it began in.

The context and the anchors are as recorded; in between every frame is generated, from the poses
that are asked for, and lives on what was generated before.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drive_envs.plan import best_plan
from world_model.flow import Latents
from world_model.latents import LatentDrive
from world_model.sampler import Anchors, Sampler
from world_model.windows import Poses

Starts = Sequence[tuple[LatentDrive, int]]  # a drive and the row of the first generated frame


class Rollouts(NamedTuple):
    """T generated frames of B scenes, and what was recorded at the same time.

    latents, truth (batch, T, C, h, w); poses (batch, T, 3): asked for; recorded: as driven. plans
    (batch, T + 1, 33, 15): the likeliest, SI, from the last context frame on.
    """

    latents: Latents
    truth: Latents
    poses: Poses
    recorded: Poses
    plans: Float[Tensor, "batch frame 33 15"]


@torch.inference_mode()
def roll_out(
    sampler: Sampler,
    starts: Starts,
    num_steps: int,
    *,
    seed: int,
    variant: int = 0,
    wait: int | None = None,
    truth_as_history: bool = False,
) -> Rollouts:
    """Generate `num_steps` frames of each scene from row `first` of its drive on.

    variant: of the drive, whose poses are asked for; the context is of it too. wait: frames from
    the last context frame to the anchors, by default right after the last generated frame; 0 for
    none. truth_as_history: every frame is generated from recorded ones (teacher forcing), not from
    generated ones.
    """
    wait = num_steps + 1 if wait is None else wait
    opening = opened(sampler, starts, variant, wait)
    device = opening.context.device
    truth = gathered(starts, "latents", variant, 0, num_steps).float().to(device)
    poses = gathered(starts, "poses", variant, 0, num_steps).to(device)
    generator = torch.Generator().manual_seed(seed)
    memory, made = sampler.begin(*opening)
    latents, plans = [], [best_plan(made.plan)]
    for step in range(num_steps):
        noise = torch.randn(opening.context[:, 0].shape, generator=generator).to(device)
        made = sampler.step(memory, poses[:, step], noise)
        latents.append(made.latent)
        if truth_as_history:
            opening = opening.moved_on(truth[:, step], poses[:, step])
            memory, made = sampler.begin(*opening)
        plans.append(best_plan(made.plan))
    return Rollouts(
        latents=torch.stack(latents, dim=1),
        truth=truth,
        poses=poses,
        recorded=gathered(starts, "poses", 0, 0, num_steps).to(device),
        plans=torch.stack(plans, dim=1).float(),
    )


@torch.inference_mode()
def plans_from(
    sampler: Sampler, starts: Starts, *, variant: int, wait: int
) -> Float[Tensor, "batch 33 15"]:
    """Return the likeliest plans from the last context frames, SI; see `roll_out`."""
    _, made = sampler.begin(*opened(sampler, starts, variant, wait))
    return best_plan(made.plan).float()


class Opening(NamedTuple):
    """What a sampler begins with, as `Sampler.begin` takes it."""

    context: Latents
    poses: Poses
    anchors: Anchors | None

    def moved_on(self, latent: Tensor, pose: Tensor) -> "Opening":
        """Return the opening one frame later, with a frame and its pose in place of the oldest."""
        anchors = self.anchors
        if anchors is not None:
            anchors = anchors._replace(wait=anchors.wait - 1)
        return Opening(
            torch.cat([self.context[:, 1:], latent[:, None]], dim=1),
            torch.cat([self.poses[:, 1:], pose[:, None]], dim=1),
            anchors,
        )


def opened(sampler: Sampler, starts: Starts, variant: int, wait: int) -> Opening:
    """Gather context and anchors of scenes; the anchors are as recorded, whatever the variant."""
    model = sampler.model
    device = next(model.parameters()).device
    num_context = model.config.num_history + 1
    anchors = None
    if wait:
        rows = wait - 1, wait - 1 + model.config.num_anchors
        anchors = Anchors(
            gathered(starts, "latents", 0, *rows).float().to(device),
            gathered(starts, "poses", 0, *rows).to(device),
            torch.full((len(starts),), wait, device=device),
        )
    return Opening(
        gathered(starts, "latents", variant, -num_context, 0).float().to(device),
        gathered(starts, "poses", variant, -num_context, 0).to(device),
        anchors,
    )


def gathered(starts: Starts, name: str, variant: int, begin: int, end: int) -> Tensor:
    """Stack some rows of each drive, counted from the scene's first generated one."""
    rows = [getattr(drive, name)[variant, first + begin : first + end] for drive, first in starts]
    return torch.from_numpy(np.stack(rows))


def spread_starts(
    drives: Sequence[LatentDrive], num: int, num_context: int, num_after: int
) -> list[tuple[LatentDrive, int]]:
    """Choose `num` scenes with enough frames before and after, spread evenly over the drives.

    Raises ValueError when there are none.
    """
    rooms = [
        (drive, len(drive) - num_after - num_context)
        for drive in drives
        if len(drive) >= num_context + num_after
    ]
    if not rooms:
        raise ValueError(
            f"none of {len(drives)} held-out drives has the {num_context + num_after} frames that "
            "a rollout takes: record longer drives or ask for shorter rollouts"
        )
    chosen, stride = [], max(1, len(rooms) // num)
    for index in range(num):
        turn, which = divmod(index * stride, len(rooms))
        drive, room = rooms[which]
        chosen.append((drive, num_context + (17 * turn) % (room + 1)))
    return chosen
