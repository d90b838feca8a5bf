"""Generating frames one after another, up to the anchors.

A frame is made by Euler steps from noise, looking at the anchors and at the finished frames before
it. These are clean and stay as they are, so their keys and values are computed once, when they are
finished, and are kept: in `Memory`, where a new frame takes the place of the oldest. As positions
are rotary and what is told of a frame never changes, this equals computing all of it anew.

A finished frame is looked at once more, clean: that gives its keys and values, and its plan.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drive_envs.plan import Hypotheses
from world_model.dit import Told, WorldModel
from world_model.flow import Latents, euler
from world_model.transformer import KeyValue
from world_model.windows import Poses, joined, tell, window_mask

Pose = Float[Tensor, "batch 3"]
Latent = Float[Tensor, "batch channel height width"]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a frame is generated.

    num_steps: Euler steps; the paper takes 15. guidance: 1 for none; above, the velocity is driven
    away from what it would be without knowing the pose, at twice the cost (the paper's later: 2).
    precision: of the network.
    """

    num_steps: int = 10
    guidance: float = 1.0
    precision: str = "bf16"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"sampler.num_steps must be 1 or more, got {self.num_steps}")
        if self.guidance < 0:
            raise ValueError(f"sampler.guidance must not be negative, got {self.guidance}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"sampler.precision is '{self.precision}': use fp32 or bf16")


@dataclass
class Memory:
    """What scenes being generated side by side remember.

    blocks: of each block, keys and values of the anchors, then of the last finished frames. pose,
    place: of the newest of these. anchor_pose, anchor_place: of the first anchor, None without.
    """

    blocks: list[KeyValue]
    num_anchor_tokens: int
    oldest: int
    pose: Pose
    place: Int[Tensor, " batch"]
    anchor_pose: Pose | None
    anchor_place: Int[Tensor, " batch"] | None


class Generated(NamedTuple):
    """A finished frame and the plan from it."""

    latent: Latent
    plan: Hypotheses


class Anchors(NamedTuple):
    """Frames of the future, their poses, and in how many frames after the context they begin."""

    latents: Latents
    poses: Poses
    wait: Int[Tensor, " batch"]


class Sampler:
    """Generates with a world model; holds nothing of any scene."""

    def __init__(self, model: WorldModel, config: SamplerConfig) -> None:
        self.model, self.config = model.eval(), config
        self.num_history = model.config.num_history

    @torch.inference_mode()
    def begin(
        self, context: Latents, poses: Poses, anchors: Anchors | None
    ) -> tuple[Memory, Generated]:
        """Look at recorded frames; return what is remembered of them, and the plan from the last.

        Raises ValueError when there are fewer context frames than a frame sees, and itself.
        """
        num_frames = context.shape[1]
        if num_frames <= self.num_history:
            raise ValueError(
                f"a context of {num_frames} frames is too short: {self.num_history + 1} are needed"
            )
        device = context.device
        places = torch.arange(num_frames, device=device).expand(len(context), -1)
        latents, parts, num_anchors = context, [], 0
        pose = place = None
        if anchors is not None:
            num_anchors = anchors.latents.shape[1]
            pose, place = anchors.poses[:, 0], num_frames - 1 + anchors.wait
            anchor_places = place[:, None] + torch.arange(num_anchors, device=device)
            parts = [tell(anchors.poses, anchor_places, None, pose, place)]
            latents = torch.cat([anchors.latents, context], dim=1)
        told = joined(*parts, tell(poses, places, None, pose, place))
        mask = window_mask(num_anchors, num_frames, self.num_history).to(device)
        with self.autocast(device):
            seen = self.model(latents, told, mask, planning=slice(-1, None))
        tokens = self.model.config.num_tokens
        kept = self.num_history * tokens
        blocks = [
            KeyValue(*(remembered(part, num_anchors * tokens, kept) for part in block))
            for block in seen.memory
        ]
        memory = Memory(
            blocks=blocks,
            num_anchor_tokens=num_anchors * tokens,
            oldest=0,
            pose=poses[:, -1],
            place=places[:, -1],
            anchor_pose=pose,
            anchor_place=place,
        )
        return memory, Generated(context[:, -1], first_frame(seen.plan))

    @torch.inference_mode()
    def step(self, memory: Memory, pose: Pose, noise: Latent) -> Generated:
        """Generate what is seen from `pose`, one frame later, and remember it."""
        told = self._told(memory, pose)
        steps = self.config.num_steps
        with self.autocast(pose.device):
            latent = euler(lambda x, tau: self._field(memory, told, x, tau), noise[:, None], steps)
            seen = self.model(latent, told, None, memory.blocks, planning=slice(None))
        self._remember(memory, seen.memory, pose)
        return Generated(latent[:, 0], first_frame(seen.plan))

    def _told(self, memory: Memory, pose: Pose) -> Told:
        place = memory.place[:, None] + 1
        return tell(pose[:, None], place, memory.pose, memory.anchor_pose, memory.anchor_place)

    def _field(self, memory: Memory, told: Told, x: Latents, tau: float) -> Latents:
        told = told._replace(tau=torch.full_like(told.tau, tau))
        velocity = self.model(x, told, None, memory.blocks).velocity
        if self.config.guidance == 1:
            return velocity
        blind = told._replace(has_motion=torch.zeros_like(told.has_motion))
        without = self.model(x, blind, None, memory.blocks).velocity
        return torch.lerp(without, velocity, self.config.guidance)

    def _remember(self, memory: Memory, new: list[KeyValue], pose: Pose) -> None:
        """Let the new frame take the place of the oldest; the order of keys does not matter."""
        tokens = self.model.config.num_tokens
        start = memory.num_anchor_tokens + memory.oldest * tokens
        for kept, own in zip(memory.blocks, new, strict=True):
            kept.key[:, :, start : start + tokens] = own.key
            kept.value[:, :, start : start + tokens] = own.value
        memory.oldest = (memory.oldest + 1) % self.num_history
        memory.pose, memory.place = pose, memory.place + 1

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which the network runs."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


def remembered(part: Tensor, num_anchor_tokens: int, num_kept: int) -> Tensor:
    """Keep the anchors' tokens and the newest ones, in memory of their own."""
    newest = part[:, :, part.shape[2] - num_kept :]
    return torch.cat([part[:, :, :num_anchor_tokens], newest], dim=2)


def first_frame(plans: Hypotheses) -> Hypotheses:
    """Drop the frame axis of one frame's plans."""
    return Hypotheses(*(part[:, 0] for part in plans))
