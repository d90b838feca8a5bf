"""Generating frames one after another, up to the anchors.

A frame is made by Euler steps from noise, looking at the anchors and at the finished frames before
it. These are clean and stay as they are, so their keys and values are computed once, when they are
finished, and are kept: in `Memory`, where a new frame takes the place of the oldest. As positions
are rotary and what is told of a frame never changes, this equals computing all of it anew. Scenes
in a memory need not have begun together.

A finished frame is looked at once more, clean: that gives its keys and values, and its plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from drive_envs.plan import Hypotheses
from drive_envs.precision import Precision, autocast
from world_model.dit import EVERYTHING, NOTHING, SIZES, Told, WorldModel, WorldModelConfig
from world_model.expectation import Expected
from world_model.flat_road import motion_between, moved_images
from world_model.flow import Latents, euler
from world_model.tokenizer import Tokenizer
from world_model.transformer import KeyValue
from world_model.windows import Poses, joined, tell, window_mask

Pose = Float[Tensor, "batch 3"]
Scenes = Int[Tensor, " batch"]
Latent = Float[Tensor, "batch channel height width"]
Images = UInt8[Tensor, "batch 2 3 y x"]  # not as high and wide as a latent


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a frame is generated.

    num_steps: Euler steps; the paper takes 15. guidance: 1 for none; above, the velocity is driven
    away from what it would be without knowing the pose, at twice the cost (the paper's later: 2).
    temperature: of the noise that a frame begins from; 1 draws a frame from what the model holds
    possible, as the paper does, 0 makes the one that is in the middle of it. precision: of the
    network.
    """

    num_steps: int = 10
    guidance: float = 1.0
    temperature: float = 1.0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"sampler.num_steps must be 1 or more, got {self.num_steps}")
        if self.guidance < 0:
            raise ValueError(f"sampler.guidance must not be negative, got {self.guidance}")
        if self.temperature < 0:
            raise ValueError(f"sampler.temperature must not be negative, got {self.temperature}")


@dataclass
class Memory:
    """What scenes remember, of any number and each at its own time.

    blocks: of each block, keys and values (scene, head, token, head_dim) of the anchors, of the
    last finished frames, and room for the frame that is being made. oldest: which of the finished
    frames gives way next. images (scene, 2, 3, H, W) uint8, pose, place: of the newest.
    anchor_pose, anchor_place: of the first anchor, None without anchors.
    """

    config: WorldModelConfig
    blocks: list[KeyValue]
    oldest: Scenes
    images: Images
    pose: Pose
    place: Scenes
    anchor_pose: Pose | None
    anchor_place: Scenes | None

    @classmethod
    def empty(
        cls,
        config: WorldModelConfig,
        num_scenes: int,
        *,
        is_anchored: bool,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "Memory":
        """Make room for some scenes; nothing is allocated afterwards."""
        num_layers, dim, num_heads = SIZES[config.size]
        num_frames = config.num_anchors * is_anchored + config.num_history + 1
        shape = num_scenes, num_heads, num_frames * config.num_tokens, dim // num_heads
        blocks = [
            KeyValue(*(torch.zeros(shape, dtype=dtype, device=device) for _ in KeyValue._fields))
            for _ in range(num_layers)
        ]
        pose = torch.zeros(num_scenes, 3, dtype=torch.float64, device=device)
        place = torch.zeros(num_scenes, dtype=torch.int64, device=device)
        return cls(
            config=config,
            blocks=blocks,
            oldest=place.clone(),
            images=torch.zeros(
                (num_scenes, 2, 3, config.height, config.width), dtype=torch.uint8, device=device
            ),
            pose=pose,
            place=place,
            anchor_pose=pose.clone() if is_anchored else None,
            anchor_place=place.clone() if is_anchored else None,
        )

    @property
    def num_anchors(self) -> int:
        """Frames of the future that each scene remembers."""
        return 0 if self.anchor_pose is None else self.config.num_anchors

    @property
    def num_bytes(self) -> int:
        """Size of the keys and values, and of the newest frames."""
        return self.images.nbytes + sum(part.nbytes for block in self.blocks for part in block)

    def pick(self, scenes: Scenes) -> "Memory":
        """Return a copy of what some scenes remember."""
        return replace(
            self,
            blocks=[KeyValue(block.key[scenes], block.value[scenes]) for block in self.blocks],
            **{name: part[scenes] for name, part in self._states()},
        )

    def put(self, scenes: Scenes, other: "Memory") -> None:
        """Let some scenes remember what those of another memory do."""
        for mine, theirs in zip(self.blocks, other.blocks, strict=True):
            mine.key[scenes], mine.value[scenes] = (
                theirs.key.to(mine.key),
                theirs.value.to(mine.key),
            )
        for (_, mine), (_, theirs) in zip(self._states(), other._states(), strict=True):
            mine[scenes] = theirs

    def remember(self, scenes: Scenes, new: Sequence[KeyValue], pose: Pose, images: Images) -> None:
        """Let a finished frame of each of some scenes take the place of the oldest."""
        num_tokens = self.config.num_tokens
        first = (self.num_anchors + self.oldest[scenes]) * num_tokens
        tokens = first[:, None] + torch.arange(num_tokens, device=first.device)
        for kept, own in zip(self.blocks, new, strict=True):
            for mine, part in zip(kept, own, strict=True):
                mine.transpose(1, 2)[scenes[:, None], tokens] = part.transpose(1, 2).to(mine.dtype)
        self.oldest[scenes] = (self.oldest[scenes] + 1) % self.config.num_history
        self.pose[scenes], self.place[scenes] = pose, self.place[scenes] + 1
        self.images[scenes] = images

    def _states(self) -> list[tuple[str, Tensor]]:
        """Return what is kept of each scene beside keys and values, by name."""
        names = ("oldest", "images", "pose", "place", "anchor_pose", "anchor_place")
        return [(name, part) for name in names if (part := getattr(self, name)) is not None]


class Generated(NamedTuple):
    """A finished frame, as latent and images, and the plan from it.

    moved: what the frame before showed from there, zero where that was not asked.
    """

    latent: Latent
    images: Images
    plan: Hypotheses
    moved: Latent


class Anchors(NamedTuple):
    """Frames of the future, their poses, and in how many frames after the context they begin."""

    latents: Latents
    poses: Poses
    wait: Int[Tensor, " batch"]


class Sampler:
    """Generates with a world model; holds nothing of any scene.

    tokenizer: on the model's device; shows the model the last frame from where the car has gone.
    """

    def __init__(self, model: WorldModel, tokenizer: Tokenizer, config: SamplerConfig) -> None:
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, config
        self.num_history = model.config.num_history

    @torch.inference_mode()
    def begin(
        self,
        context: Latents,
        poses: Poses,
        anchors: Anchors | None,
        images: Images | None = None,
    ) -> tuple[Memory, Generated]:
        """Look at recorded frames; return what is remembered of them, and the plan from the last.

        images: of the last frame, if they are at hand: else they are decoded. Raises ValueError
        when there are fewer context frames than a frame sees, and itself.
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
            nothing = torch.zeros_like(anchors.latents)
            parts = [tell(nothing, anchors.poses, anchor_places, None, pose, place)]
            latents = torch.cat([anchors.latents, context], dim=1)
        # Finished frames need not be told what their predecessors show.
        told = joined(*parts, tell(torch.zeros_like(context), poses, places, None, pose, place))
        mask = window_mask(num_anchors, num_frames, self.num_history).to(device)
        with self.autocast(device):
            seen = self.model(latents, told, mask, planning=slice(-1, None), expecting=NOTHING)
            if images is None:
                images = self.tokenizer.decode(context[:, -1])
        memory = Memory.empty(
            self.model.config,
            len(context),
            is_anchored=anchors is not None,
            dtype=seen.memory[0].key.dtype,
            device=device,
        )
        tokens = self.model.config.num_tokens
        end = (num_anchors + self.num_history) * tokens
        for kept, own in zip(memory.blocks, seen.memory, strict=True):
            for mine, part in zip(kept, own, strict=True):
                mine[:, :, : num_anchors * tokens] = part[:, :, : num_anchors * tokens]
                mine[:, :, num_anchors * tokens : end] = part[:, :, -self.num_history * tokens :]
        memory.pose, memory.place = poses[:, -1].clone(), places[:, -1].clone()
        memory.images = images
        memory.anchor_pose, memory.anchor_place = pose, place
        return memory, generated(context[:, -1:], images, seen.plan, told.moved[:, -1:])

    @torch.inference_mode()
    def step(
        self, memory: Memory, pose: Pose, noise: Latent, scenes: Scenes | None = None
    ) -> Generated:
        """Generate what is seen from `pose`, one frame later, and remember it.

        scenes: which of those in `memory`, all of them by default.
        """
        seen = memory if scenes is None else memory.pick(scenes)
        steps = self.config.num_steps
        with self.autocast(pose.device):
            moved = self._moved(seen, pose)
            told = self._told(seen, pose, moved)
            expected = self.model.expect(told._replace(tau=torch.ones_like(told.tau)))
            latent = euler(
                lambda x, tau: self._field(seen, told, expected, x, tau),
                self.config.temperature * noise[:, None],
                steps,
            )
        if scenes is None:
            scenes = torch.arange(len(pose), device=pose.device)
        return self._finish(memory, seen, scenes, pose, latent)._replace(moved=moved[:, 0])

    @torch.inference_mode()
    def look(
        self, memory: Memory, pose: Pose, latent: Latent, scenes: Scenes | None = None
    ) -> Generated:
        """Take what was seen from `pose`, one frame later, for the next frame, and plan from it."""
        if scenes is None:
            scenes = torch.arange(len(pose), device=pose.device)
        seen = memory.pick(scenes)
        return self._finish(memory, seen, scenes, pose, latent[:, None])

    def _finish(
        self,
        memory: Memory,
        seen: Memory,
        scenes: Scenes,
        pose: Pose,
        latent: Latents,
    ) -> Generated:
        """Look at a finished frame, remember it, and plan from it."""
        with self.autocast(pose.device):
            told = self._told(seen, pose, torch.zeros_like(latent))
            images = self.tokenizer.decode(latent[:, 0])
            made = self.model(
                latent, told, None, seen.blocks, planning=EVERYTHING, expecting=NOTHING
            )
        memory.remember(scenes, made.memory, pose, images)
        return generated(latent, images, made.plan, told.moved)

    def _told(self, memory: Memory, pose: Pose, moved: Latents) -> Told:
        place, poses = memory.place[:, None] + 1, pose[:, None]
        return tell(moved, poses, place, memory.pose, memory.anchor_pose, memory.anchor_place)

    def _moved(self, memory: Memory, pose: Pose) -> Latents:
        """Return what the newest frames show from the next poses."""
        if not self.model.config.flat_road:
            return torch.zeros(len(pose), 1, *self.model.config.latent_shape, device=pose.device)
        motion = motion_between(memory.pose, pose)
        return self.tokenizer.encode(moved_images(memory.images, motion)).float()[:, None]

    def _field(
        self, memory: Memory, told: Told, expected: Expected | None, x: Latents, tau: float
    ) -> Latents:
        told = told._replace(tau=torch.full_like(told.tau, tau))
        velocity = self.model(x, told, None, memory.blocks, expected=expected).velocity
        if self.config.guidance == 1:
            return velocity
        blind = told._replace(has_motion=torch.zeros_like(told.has_motion))
        nothing = expected and Expected(
            torch.zeros_like(expected.mean), torch.ones_like(expected.deviation)
        )
        without = self.model(x, blind, None, memory.blocks, expected=nothing).velocity
        return torch.lerp(without, velocity, self.config.guidance)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which the network runs."""
        return autocast(self.config.precision, device.type)


def generated(latent: Latents, images: Images, plan: Hypotheses, moved: Latents) -> Generated:
    """Drop the frame axis of what belongs to one frame."""
    plan = Hypotheses(*(part[:, 0] for part in plan))
    return Generated(latent[:, 0], images, plan, moved[:, 0])
