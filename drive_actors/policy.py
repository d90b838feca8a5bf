"""The driver: two cameras and 2 s of history or more to a plan, an action and a value.

One frame becomes one token: both images through the encoders, concatenated to D features of unit
power, behind the bottleneck's noise, plus what the car knows of itself: speed, desire, last
action. A small causal transformer reads the last `context` tokens, the heads its last output.
Tokens do not depend on each other, so an actor keeps them and encodes each image once.

It does not know about environments, rollouts or losses. Without noise it is deterministic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from drive_actors.action import bounded_log_std, normalized_from_command
from drive_actors.bottleneck import noise_std, unit_power
from drive_actors.encoder import STRIDE, Convolutional, Encoder
from drive_actors.fastvit import FastVit, FastVitEncoder
from drive_envs.camera import CAMERAS
from drive_envs.plan import NUM_POINTS, NUM_VALUES, Hypotheses, plan_of_unit_speed
from drive_envs.protocol import NUM_CONTEXT

LONGEST = 100  # frames in a history: 20 s
SPEED_UNIT = 10.0  # m/s
NUM_STATE = 1 + 3 + 2  # speed, desire, last action

Observation = Mapping[str, Tensor]
Tokens = Float[Tensor, "batch dim"]
History = Float[Tensor, "batch past_and_now dim"]
Normalized = Float[Tensor, "batch 2"]
EncoderKind = Convolutional | FastVit


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Sizes of the network, and what it is allowed to see.

    width, height: of both images, multiples of 16. encoder: the network that each image goes
    through. channels: of the convolutional one. bottleneck_bits: capacity of the features a frame,
    None for no noise. sky: shares of the height at the top of the narrow and the wide image that
    are not read. Clouds are a compass, and a compass tells one recording from another, and so
    where in his lane its driver liked to be: reading it, a policy learns its recordings by heart.
    context: frames that are read, the current one among them, 5 a second: 1 for no history. A drive
    begins with 9 recorded ones; those that lie before it are not there, and are read as zeros.
    use_last_action: False hides the last command.
    """

    width: int = 128
    height: int = 64
    encoder: EncoderKind = Convolutional()
    channels: tuple[int, int, int] = (32, 48, 64)
    num_features: int = 512
    bottleneck_bits: float | None = 700.0
    sky: tuple[float, float] = (0.125, 0.5)
    model_dim: int = 128
    num_layers: int = 2
    num_heads: int = 4
    context: int = NUM_CONTEXT + 1
    num_hypotheses: int = 5
    use_last_action: bool = True

    def __post_init__(self) -> None:
        if self.width % STRIDE or self.height % STRIDE or min(self.width, self.height) < STRIDE:
            raise ValueError(
                f"width and height must be multiples of {STRIDE}, got {self.width} x {self.height}"
            )
        sizes = ("num_features", "model_dim", "num_layers", "num_heads", "num_hypotheses")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not all(0 <= share < 1 for share in self.sky):
            raise ValueError(f"sky must be shares of the height below 1, got {self.sky}")
        if isinstance(self.encoder, FastVit):
            for top in self.tops:
                self.encoder.grid(self.width, self.height - top)
        if min(self.channels) < 1 or self.channels[-1] % 2:
            raise ValueError(f"channels must be positive, the last one even, got {self.channels}")
        if self.model_dim % self.num_heads:
            raise ValueError(
                f"model_dim {self.model_dim} must be a multiple of num_heads {self.num_heads}"
            )
        if not 1 <= self.context <= LONGEST:
            raise ValueError(f"context must be 1 to {LONGEST} frames, got {self.context}")
        if self.bottleneck_bits is not None and self.bottleneck_bits <= 0:
            raise ValueError(
                f"bottleneck_bits must be positive, or null for none, got {self.bottleneck_bits}"
            )

    @property
    def num_past(self) -> int:
        """Frames before the current one that a history holds, be they read or not."""
        return max(NUM_CONTEXT, self.context - 1)

    @property
    def num_noised(self) -> int | None:
        """Numbers a frame that the bottleneck adds noise to, None for no noise."""
        return None if self.bottleneck_bits is None else self.num_features

    @property
    def tops(self) -> tuple[int, int]:
        """The first row that is read of the narrow and of the wide image."""
        narrow, wide = (round(share * self.height) for share in self.sky)
        return narrow, wide


class PolicyOutput(NamedTuple):
    """What the heads say, in the units of `drive_envs.plan` and `drive_actors.action`.

    plan and taught_... are with the habits of the recording's driver where these were given, for
    imitation; the action and the value are without.
    """

    plan: Hypotheses
    action_mean: Float[Tensor, "*batch 2"]
    action_log_std: Float[Tensor, "*batch 2"]
    value: Float[Tensor, "*batch"]
    taught_mean: Float[Tensor, "*batch 2"]
    taught_log_std: Float[Tensor, "*batch 2"]


class Block(nn.Module):
    """A pre-norm transformer layer; `only_last` computes it for the last token alone."""

    def __init__(self, dim: int, num_heads: int, *, only_last: bool) -> None:
        super().__init__()
        self.num_heads, self.only_last = num_heads, only_last
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "batch frame dim"]) -> Float[Tensor, "batch read dim"]:
        normed = self.norm_attention(x)
        if self.only_last:
            x, asking = x[:, -1:], normed[:, -1:]
        else:
            asking = normed
        heads = "batch frame (head dim) -> batch head frame dim"
        query = rearrange(self.query(asking), heads, head=self.num_heads)
        key, value = (
            rearrange(part, heads, head=self.num_heads)
            for part in self.key_value(normed).chunk(2, dim=-1)
        )
        read = scaled_dot_product_attention(query, key, value, is_causal=not self.only_last)
        x = x + self.out(rearrange(read, "batch head frame dim -> batch frame (head dim)"))
        return x + self.mlp(self.norm_mlp(x))


class Policy(nn.Module):
    """Tokens, then a history of them to an output; `unroll` is both over a whole rollout."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        dim, bits = config.model_dim, config.bottleneck_bits
        encoders = {
            camera: encoder_of(config, top)
            for camera, top in zip(CAMERAS, config.tops, strict=True)
        }
        num_outputs = sum(encoder.num_outputs for encoder in encoders.values())
        self.encoders = nn.ModuleDict(encoders)
        self.features_from_images = nn.Linear(num_outputs, config.num_features)
        nn.init.zeros_(self.features_from_images.bias)
        self.noise_std = 0.0 if bits is None else noise_std(bits, config.num_features)
        self.token_from_features = nn.Linear(config.num_features, dim)
        self.token_from_state = nn.Linear(NUM_STATE, dim)
        self.time_embedding = nn.Parameter(0.02 * torch.randn(config.num_past + 1, dim))
        self.blocks = nn.Sequential(
            *(
                Block(dim, config.num_heads, only_last=layer == config.num_layers - 1)
                for layer in range(config.num_layers)
            )
        )
        self.norm = nn.LayerNorm(dim)
        num_plan = config.num_hypotheses * (2 * NUM_POINTS * NUM_VALUES + 1)
        self.plan_head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, num_plan))
        self.action_head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4))
        self.value_head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 1))
        self.register_buffer("straight", plan_of_unit_speed(), persistent=False)

    def features(self, observation: Observation) -> Float[Tensor, "batch features"]:
        """Encode both images into unit-power features, before any noise."""
        outputs = [self.encoders[camera](observation[camera]) for camera in CAMERAS]
        return unit_power(self.features_from_images(torch.cat(outputs, dim=-1)))

    def tokens(
        self, observation: Observation, noise: Float[Tensor, "batch features"] | None
    ) -> Tokens:
        """Turn N frames into N tokens; `noise` is unit noise, or None for a noiseless channel.

        observation: `narrow`, `wide` uint8 (N, 3, H, W); `speed` (N, 1) m/s; `desire` (N, 3);
        `last_action` (N, 2), the command as sent.
        """
        features = self.features(observation)
        if noise is not None:
            features = features + self.noise_std * noise
        last_action = normalized_from_command(observation["last_action"], observation["speed"])
        state = torch.cat(
            [
                observation["speed"] / SPEED_UNIT,
                observation["desire"],
                last_action * self.config.use_last_action,
            ],
            dim=-1,
        )
        return self.token_from_features(features) + self.token_from_state(state)

    def forward(
        self, history: History, speed: Float[Tensor, "batch 1"], habit: Tokens | None = None
    ) -> PolicyOutput:
        """Read the tokens of a history, oldest first, and the current speed in m/s.

        `habit` is added to the last token for what is imitated (`drive_learner.habits`).
        """
        last = self.last(history)
        taught = last if habit is None else last + habit
        action = self.action(last)
        value = self.value_head(last).float().squeeze(-1)
        imitated = action if habit is None else self.action(taught)
        return PolicyOutput(self.plan(taught, speed), *action, value, *imitated)

    def act(self, history: History) -> tuple[Normalized, Normalized]:
        """Return the action's mean and log deviation alone: all that an actor needs."""
        return self.action(self.last(history))

    def last(self, history: History) -> Tokens:
        """Run the transformer and keep what it says of the current frame."""
        read = (history + self.time_embedding)[:, -self.config.context :]
        return self.norm(self.blocks(read)[:, -1])

    def action(self, last: Tokens) -> tuple[Normalized, Normalized]:
        """Read the action head: mean and log deviation of u (`drive_actors.action`)."""
        mean, raw_std = self.action_head(last).float().chunk(2, dim=-1)
        return mean, bounded_log_std(raw_std)

    def plan(self, last: Tokens, speed: Float[Tensor, "batch 1"]) -> Hypotheses:
        """Read the plan head; means are departures from driving straight on at this speed."""
        num = self.config.num_hypotheses
        sizes = [num * 2 * NUM_POINTS * NUM_VALUES, num]
        values, logit = self.plan_head(last).float().split(sizes, dim=-1)
        mean, log_scale = rearrange(
            values, "n (part k t d) -> part n k t d", part=2, k=num, t=NUM_POINTS
        )
        straight = speed[:, :, None, None] * self.get_buffer("straight")
        return Hypotheses(mean=mean + straight, log_scale=log_scale, logit=logit)

    def unroll(
        self,
        observation: Observation,
        noise: Float[Tensor, "frame batch features"] | None,
        needed: Bool[Tensor, "frame batch"] | None = None,
        habit: Tokens | None = None,
        num_context: int = NUM_CONTEXT,
    ) -> PolicyOutput:
        """Run over (num_context + T) frames of a rollout as the actor did, with leading (T, batch).

        `habit` (batch, dim) is one for each scene, see `forward`.
        Every image is encoded once, those of the context without a gradient: a third of all
        frames, which no step looks at for itself, and the encoders learn from the others. Where
        `needed` is False a frame is not encoded at all: it lies before the drive (`Batch.present`),
        or else (`Rollout.needed_frames`) outputs that depend on it are finite and mean nothing.
        """
        batch = observation["speed"].shape[1]
        with torch.no_grad():
            context = self.encoded(slice(num_context), observation, noise, needed)
        acted = self.encoded(slice(num_context, None), observation, noise, needed)
        missing = context.new_zeros(self.config.num_past - num_context, *context.shape[1:])
        tokens = torch.cat([missing, context, acted])
        windows = tokens.unfold(0, self.config.num_past + 1, 1)
        output = self(
            rearrange(windows, "t b d c -> (t b) c d"),
            observation["speed"][num_context:].flatten(0, 1),
            None if habit is None else habit.repeat(len(windows), 1),
        )
        return unflatten(output, batch)

    def encoded(
        self,
        frames: slice,
        observation: Observation,
        noise: Float[Tensor, "frame batch features"] | None,
        needed: Bool[Tensor, "frame batch"] | None,
    ) -> Float[Tensor, "some batch dim"]:
        """Turn some frames of a rollout into tokens, zero where they are not needed."""
        some = {key: value[frames].flatten(0, 1) for key, value in observation.items()}
        some_noise = None if noise is None else noise[frames].flatten(0, 1)
        shape = observation["speed"][frames].shape[:2]
        if needed is None:
            return self.tokens(some, some_noise).unflatten(0, shape)
        rows = needed[frames].flatten().nonzero().squeeze(-1)
        tokens = self.tokens(
            {key: value[rows] for key, value in some.items()},
            None if some_noise is None else some_noise[rows],
        )
        everywhere = tokens.new_zeros(shape.numel(), tokens.shape[-1])
        return everywhere.index_copy(0, rows, tokens).unflatten(0, shape)


def fresh_policy(config: PolicyConfig) -> Policy:
    """Make a policy to be trained: random weights, or those that an encoder is to begin with.

    `Policy` alone does not look for them, as a policy that was learnt is rebuilt without.
    """
    policy = Policy(config)
    for encoder in policy.encoders.values():
        if isinstance(encoder, FastVitEncoder):
            encoder.read_weights()
    return policy


def encoder_of(config: PolicyConfig, top: int) -> Encoder | FastVitEncoder:
    """Make the network for the images of one camera, of which rows above `top` are not read."""
    match config.encoder:
        case FastVit() as fastvit:
            return FastVitEncoder(fastvit, config.width, config.height, top=top)
        case _:
            return Encoder(config.width, config.height, config.channels, top=top)


def unflatten(output: PolicyOutput, batch: int) -> PolicyOutput:
    """Split the leading (time * batch) of every tensor into (time, batch)."""
    plan = Hypotheses(*(value.unflatten(0, (-1, batch)) for value in output.plan))
    return PolicyOutput(plan, *(value.unflatten(0, (-1, batch)) for value in output[1:]))
