"""The world model: a diffusion transformer over frames of latents, anchored in the future.

A sequence is any set of frames: anchors (recorded, from the future), history, and frames that are
becoming. Of each frame the network is told its noise level, how the car moved since the frame
before, and where, and in how many seconds, the anchors begin as seen from this very frame. Nothing
it is told of a frame changes afterwards, so that a finished frame's keys and values stay right
while the car drives on (`sampler`). Which frame may see which is the caller's affair.

From a noised frame the network tells the velocity to the image; from any frame, the plan. What
the frame before shows from where the car has gone (`flat_road`) is a part of its input, and the
velocity a departure from that to a Gaussian about what this lets expect. The paper's model has to
learn from examples alone how a picture moves, more of them than two cores see in a day.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from drive_envs.plan import STEP, Hypotheses
from world_model.detail import NUM_FEATURES as NUM_FEATURES_OF_PLACE
from world_model.detail import Detail
from world_model.expectation import Expectation, Expected
from world_model.flow import Latents, Levels
from world_model.plan_head import PlanHead, plainest_plan
from world_model.pose_features import (
    ANCHOR_WAVE,
    MOTION_WAVE,
    NUM_FEATURES,
    pose_features,
    sinusoids,
)
from world_model.rotary import angles
from world_model.transformer import Block, KeyValue, Memory, Rotation, modulated, sight_of

PATCH = 2
STRIDE = 8  # pixels of an image to one of its latent
LONGEST_WAIT = 20.0  # s, longest wave of the time to the anchors
EVERYTHING, NOTHING = slice(None), slice(0)

Size = Literal["femto", "pico", "micro", "nano", "small", "250m", "500m", "1b"]

# Layers, width, heads. The paper names its sizes after GPT-2's: with one adaLN a block, 24 x 1024
# is its 500M and 36 x 1280 its 1B. No GPT-2 has 250M; 250m is as deep as its
# parameters allow at the next smaller width, 768. Those below small are for two cores.
SIZES: dict[Size, tuple[int, int, int]] = {
    "femto": (3, 64, 2),
    "pico": (4, 96, 3),
    "micro": (5, 128, 4),
    "nano": (5, 192, 3),
    "small": (9, 384, 6),
    "250m": (22, 768, 12),
    "500m": (24, 1024, 16),
    "1b": (36, 1280, 20),
}


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Sizes of the network.

    size: layers, width and heads, a row of `SIZES`. width, height: pixels of the images, multiples
    of 16. latent_channels: of the tokenizer, both cameras together. num_history: finished frames
    that a frame sees, 9 with itself being 2 s. num_anchors: frames of the future, 5 being 1 s.
    flat_road: whether a frame is told what the one before shows from there, see `flat_road`; the
    paper's is not. plans_from: what plans are departures from, see `plan_head`: an `arc`, or the
    `way` to the anchors. num_detail: channels of the convolutions that draw what is smaller than a
    token, see `detail`; 0 for none, as in the paper.
    """

    size: Size = "nano"
    width: int = 128
    height: int = 64
    latent_channels: int = 32
    num_history: int = 9
    num_anchors: int = 5
    num_plan_blocks: int = 2
    num_hypotheses: int = 5
    flat_road: bool = True
    plans_from: Literal["arc", "way"] = "way"
    num_detail: int = 0

    def __post_init__(self) -> None:
        step = PATCH * STRIDE
        if min(self.width, self.height) < step or self.width % step or self.height % step:
            raise ValueError(
                f"images must be multiples of {step} pixels, got {self.width} x {self.height}"
            )
        for name in ("latent_channels", "num_history", "num_anchors", "num_hypotheses"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame's latent."""
        return self.latent_channels, self.height // STRIDE, self.width // STRIDE

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of a frame."""
        return self.height // STRIDE // PATCH, self.width // STRIDE // PATCH

    @property
    def num_tokens(self) -> int:
        """Tokens of a frame."""
        return self.grid[0] * self.grid[1]


class Told(NamedTuple):
    """What the network is told of each frame.

    tau: noise level. place: in time, in frames; only differences matter. motion: pose relative to
    the frame before, moved: what that shows from here; anchor: of the first anchor as seen from
    this frame; wait: s until then. What is not known is said so by `has_motion` and `has_anchor`.
    """

    tau: Levels
    place: Int[Tensor, "batch frame"]
    motion: Float[Tensor, "batch frame 6"]
    moved: Latents
    has_motion: Bool[Tensor, "batch frame"]
    anchor: Float[Tensor, "batch frame 6"]
    wait: Float[Tensor, "batch frame"]
    has_anchor: Bool[Tensor, "batch frame"]

    def pick(self, frames: slice) -> "Told":
        """Return some of the frames."""
        return Told(*(part[:, frames] for part in self))


class Seen(NamedTuple):
    """What comes out: velocity of all frames, plan from those asked for, keys and values.

    expected: of each noised frame, see `expect`.
    """

    velocity: Latents
    expected: Expected | None
    plan: Hypotheses | None
    memory: list[KeyValue]


class Conditioning(nn.Module):
    """Sums what is known of a frame into one vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.level = embedder(dim, dim)
        self.motion = embedder(NUM_FEATURES, dim)
        self.anchor = embedder(NUM_FEATURES + dim, dim)
        self.no_motion = nn.Parameter(torch.zeros(dim))
        self.no_anchor = nn.Parameter(torch.zeros(dim))

    def forward(self, told: Told) -> Float[Tensor, "batch frame dim"]:
        """Return (batch, frame, dim)."""
        level = self.level(sinusoids(told.tau, self.dim, 4.0))
        motion = self.motion(pose_features(told.motion, MOTION_WAVE))
        wait = sinusoids(told.wait, self.dim, LONGEST_WAIT)
        anchor = torch.cat([pose_features(told.anchor, ANCHOR_WAVE), wait], dim=-1)
        motion = torch.where(told.has_motion[..., None], motion, self.no_motion.to(motion.dtype))
        anchor = self.anchor(anchor)
        anchor = torch.where(told.has_anchor[..., None], anchor, self.no_anchor.to(anchor.dtype))
        return silu(level + motion + anchor)


def embedder(num_in: int, dim: int) -> nn.Module:
    """Make the two layers that bring some features to the network's width."""
    return nn.Sequential(nn.Linear(num_in, dim), nn.SiLU(), nn.Linear(dim, dim))


class WorldModel(nn.Module):
    """Diffusion transformer and plan head; see the module's docstring."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        num_layers, dim, num_heads = SIZES[config.size]
        self.head_dim = dim // num_heads
        patch_values = config.latent_channels * PATCH**2
        self.conditioning = Conditioning(dim)
        self.expectation = Expectation(*config.latent_shape) if config.flat_road else None
        self.embed = nn.Linear((1 + config.flat_road) * patch_values, dim)
        self.space = nn.Parameter(0.02 * torch.randn(config.num_tokens, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.out_modulation = nn.Linear(dim, 2 * dim)
        self.detail = None
        num_features = 0
        if config.num_detail:
            num_features, channels = NUM_FEATURES_OF_PLACE, config.latent_channels
            self.detail = Detail((1 + config.flat_road) * channels, channels, config.num_detail)
        self.out = nn.Linear(dim, patch_values + num_features * PATCH**2)
        self.plan_head = PlanHead(dim, num_heads, config.num_plan_blocks, config.num_hypotheses)
        for layer in (self.out_modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        latents: Latents,
        told: Told,
        mask: Bool[Tensor, "frame frame"] | None = None,
        memory: Memory | None = None,
        planning: slice | None = None,
        expecting: slice = EVERYTHING,
        expected: Expected | None = None,
    ) -> Seen:
        """Look at frames of latents (batch, frame, channel, height, width), noised as told.

        mask[i, j]: whether frame i sees frame j, all see all without. memory: of earlier frames,
        which all see besides. planning: the frames from which to plan, none without. expecting:
        those among which there are noised ones. expected: what `expect` returns, if it is known.
        """
        rows, columns = self.config.grid
        condition = self.conditioning(told)
        rotation = self.rotation(told.place)
        patches = "batch frame channel (row p) (column q) -> batch (frame row column) (channel p q)"
        expected = self.expect(told, expecting) if expected is None else expected
        shown = latents
        if expected is not None:
            shown = torch.cat([latents, expected.mean.to(latents.dtype)], dim=2)
        x = self.embed(rearrange(shown, patches, p=PATCH, q=PATCH))
        x = x + self.space.to(x.dtype).repeat(latents.shape[1], 1)
        sight = None if mask is None else sight_of(mask, rows * columns)
        kept = []
        for index, block in enumerate(self.blocks):
            seen = None if memory is None else memory[index]
            x, own = block(x, condition, rotation, sight, seen)
            kept.append(own)
        shift, scale = self.out_modulation(condition).chunk(2, dim=-1)
        out = rearrange(
            self.out(modulated(x, shift, scale)),
            "batch (frame row column) (channel p q) -> batch frame channel (row p) (column q)",
            row=rows, column=columns, p=PATCH, q=PATCH,
        )  # fmt: skip
        channels = self.config.latent_channels
        velocity = out[:, :, :channels].float()
        if self.detail is not None and len(range(latents.shape[1])[expecting]):
            features, of_frame = out[:, expecting, channels:], shown[:, expecting]
            drawn = self.detail(features.flatten(0, 1), of_frame.flatten(0, 1))
            detail = torch.zeros_like(velocity)
            detail[:, expecting] = drawn.unflatten(0, features.shape[:2])
            velocity = velocity + detail
        if expected is not None:
            velocity = velocity + velocity_about(latents.float(), told.tau, expected)
        plan = None
        if planning is not None:
            frames = "batch (frame space) dim -> batch frame space dim"
            tokens = rearrange(x, frames, space=rows * columns)[:, planning]
            asked = told.pick(planning)
            rates = (asked.motion / STEP * asked.has_motion[..., None]).float()
            plainest = plainest_plan(
                rates[..., 0],
                rates[..., 5],
                asked.anchor[..., [0, 1, 5]].float(),
                asked.wait.float(),
                asked.has_anchor & (self.config.plans_from == "way"),
            )
            plan = self.plan_head(tokens, condition[:, planning], plainest)
        return Seen(velocity, expected, plan, kept)

    def expect(self, told: Told, frames: slice = EVERYTHING) -> Expected | None:
        """Return what to expect of each noised frame, from the one before; else a standard normal.

        frames: those among which there are noised ones. A finished frame speaks for itself.
        """
        if self.expectation is None:
            return None
        some = told.pick(frames)
        found = self.expectation(some.moved.flatten(0, 1))
        mean, deviation = (part.unflatten(0, some.tau.shape) for part in found)
        is_told = (some.has_motion & (some.tau > 0))[..., None, None, None]
        all_means = torch.zeros_like(told.moved, dtype=mean.dtype)
        all_deviations = torch.ones_like(all_means)
        all_means[:, frames] = torch.where(is_told, mean, 0.0)
        all_deviations[:, frames] = torch.where(is_told, deviation, 1.0)
        return Expected(all_means, all_deviations)

    def rotation(self, place: Int[Tensor, "batch frame"]) -> Rotation:
        """Return the rotation of each token."""
        angle = angles(place, *self.config.grid, self.head_dim)
        return Rotation(angle.cos(), angle.sin())


def velocity_about(x: Latents, tau: Levels, expected: Expected) -> Latents:
    """Return the velocity E[o - eps | x] if o is normal about what is expected.

    x = tau eps + (1 - tau) o and o ~ N(m, s^2), so that with d = x - (1 - tau) m

        E[o - eps | x] = m + ((1 - tau) s^2 - tau) / (tau^2 + (1 - tau)^2 s^2) d.

    What a network adds is then of order one at all levels (Karras et al., Elucidating the Design
    Space, 2022, for their diffusion). The deviation is learnt from its own loss alone.
    """
    tau = tau[..., None, None, None]
    rest, variance = 1 - tau, expected.deviation.detach().square()
    slope = (rest * variance - tau) / (tau**2 + rest**2 * variance)
    return expected.mean + slope * (x - rest * expected.mean)


def num_parameters(config: WorldModelConfig, *, has_plan_head: bool = True) -> int:
    """Count the parameters of a size without making them, the plan head among them or not."""
    with torch.device("meta"):
        named = WorldModel(config).named_parameters()
    return sum(
        parameter.numel()
        for name, parameter in named
        if has_plan_head or not name.startswith("plan_head.")
    )
