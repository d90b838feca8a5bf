"""What is learnt: rectified flow of the frames, and the plan from each (paper, eqs. 4 to 8).

Two layouts of the same objective:

- `paper`: [anchors, history, target]. With probability p the history is noised, each frame at its
  own level, the anchors are clean, the network is told tau = 0 of both, and the loss is on the
  target. Otherwise one level for all frames, and the loss on all.
- `parallel`: [anchors, clean frames, noised frames]. Every noised frame sees the anchors, the clean
  frames before it and itself, as in a rollout, so that one pass teaches many targets: K of them for
  the price of (A + H + 2K - 1) frames, where the paper's layout takes A + H + 1 for one. With
  probability p a sample's clean frames are noised as above.

Noise on the history is what keeps a rollout, which lives on its own output, from drifting away.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from drive_envs.plan import Hypotheses, negative_log_likelihood
from world_model.dit import Told
from world_model.expectation import Expected
from world_model.flow import Latents, Levels, logit_normal, noised, velocity
from world_model.windows import Window, joined, tell_window, window_mask

DRIFT_SIZES = (1, 2, 4, 8)  # places of a latent


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """How a window becomes a loss.

    num_targets: frames of a window that are learnt to be generated, `parallel` only.
    level_mean, level_std: of the logit-normal noise level of what is generated.
    history_noise: p, the share of samples whose history is noised, history_mean and history_std of
    its logit-normal levels. motion_dropout: share of targets that are not told their pose, for
    guidance. plan_weight: alpha, of the plan's loss; expectation_weight: of what is expected of a
    target (`expectation_loss`).
    """

    layout: Literal["parallel", "paper"] = "parallel"
    num_targets: int = 8
    level_mean: float = 0.0
    level_std: float = 1.0
    history_noise: float = 0.3
    history_mean: float = 0.0
    history_std: float = 0.25
    motion_dropout: float = 0.1
    plan_weight: float = 0.2
    expectation_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("history_noise", "motion_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name} is {getattr(self, name)}, not within 0..1")
        if self.num_targets < 1 or self.level_std <= 0 or self.history_std < 0:
            raise ValueError(
                f"objective.num_targets is {self.num_targets}, level_std {self.level_std} and "
                f"history_std {self.history_std}; they must be at least 1, positive, at least 0"
            )

    def num_frames(self, num_history: int) -> int:
        """Frames of a window."""
        return num_history + (self.num_targets if self.layout == "parallel" else 1)


class Sequence(NamedTuple):
    """What the network looks at, and what it should say of it.

    mask (frame, frame): who sees whom. target, velocity and level are of the last frames, as many
    as they have; a level of NaN is a frame without loss. planning: frames whose plan is learnt,
    `plans` those of the window that they are.
    """

    latents: Latents
    told: Told
    mask: Bool[Tensor, "frame frame"]
    target: Latents
    velocity: Latents
    level: Levels
    planning: slice
    plans: slice


class Losses(NamedTuple):
    """Means over the batch, and the squared error of each learnt frame with its level.

    expectation: `expectation_loss`, zero for a model that expects nothing.
    """

    total: Tensor
    flow: Tensor
    plan: Tensor
    expectation: Tensor
    error: Float[Tensor, "batch learnt"]
    level: Float[Tensor, "batch learnt"]


def losses(
    network: nn.Module,
    window: Window,
    config: ObjectiveConfig,
    num_history: int,
    generator: torch.Generator,
) -> Losses:
    """Draw noise and levels for a window, look at it and compare.

    network: a `WorldModel`, or what shares one out over processes. generator: on its device.
    """
    sequence = arrange(window, config, num_history, generator)
    learnt = sequence.velocity.shape[1]
    seen = network(
        sequence.latents,
        sequence.told,
        sequence.mask,
        planning=sequence.planning,
        expecting=slice(sequence.latents.shape[1] - learnt, None),
    )
    error = (seen.velocity[:, -learnt:] - sequence.velocity).square().mean((2, 3, 4))
    plan = plan_loss(
        seen.plan, window.plan[:, sequence.plans], window.plan_valid[:, sequence.plans]
    )
    has_loss = sequence.level.isfinite()
    flow = torch.where(has_loss, error, 0.0).sum() / has_loss.sum()
    expectation = flow.new_zeros(())
    if seen.expected is not None:
        is_told = has_loss & sequence.told.has_motion[:, -learnt:]
        expected = Expected(*(part[:, -learnt:] for part in seen.expected))
        expectation = expectation_loss(expected, sequence.target, is_told)
    total = flow + config.plan_weight * plan + config.expectation_weight * expectation
    return Losses(
        total=total,
        flow=flow.detach(),
        plan=plan.detach(),
        expectation=expectation.detach(),
        error=error.detach(),
        level=sequence.level,
    )


def expectation_loss(
    expected: Expected, target: Latents, is_told: Bool[Tensor, "batch frame"]
) -> Tensor:
    """Return the squared error of the mean and, for the deviation, the density of that error.

    The mean is not weighed by the deviation: else what is hard to foretell would never be learnt.
    Averaged over the frames that are told their motion.
    """
    square = (expected.mean - target).square()
    variance = expected.deviation.square()
    density = 0.5 * (square.detach() / variance + variance.log())
    each = (square + density).mean((2, 3, 4))
    return torch.where(is_told, each, 0.0).sum() / is_told.sum().clamp(min=1)


def plan_loss(
    plans: Hypotheses,
    target: Float[Tensor, "batch frame 33 15"],
    valid: Bool[Tensor, "batch frame 33"],
) -> Tensor:
    """Return the multi-hypothesis Laplace loss, its mean over batch and frames."""
    flat = Hypotheses(*(part.flatten(0, 1) for part in plans))
    return negative_log_likelihood(flat, target.flatten(0, 1), valid.flatten(0, 1)).mean()


def arrange(
    window: Window, config: ObjectiveConfig, num_history: int, generator: torch.Generator
) -> Sequence:
    """Lay a window out, with noise drawn for it.

    Raises ValueError when it has too few or too many frames.
    """
    num_frames = window.frames.shape[1]
    if num_frames != config.num_frames(num_history):
        raise ValueError(
            f"a window of {num_frames} frames does not fit the layout '{config.layout}', which "
            f"takes {config.num_frames(num_history)}"
        )
    lay_out = parallel if config.layout == "parallel" else as_in_paper
    return lay_out(window, config, num_history, generator)


def parallel(
    window: Window,
    config: ObjectiveConfig,
    num_history: int,
    generator: torch.Generator,
) -> Sequence:
    """Lay out anchors, clean frames and their noised copies."""
    num_anchors = window.anchors.shape[1]
    last = window.frames.shape[1] - 1
    clean, targets = window.shown[:, :-1], window.frames[:, num_history:]
    levels, wrong = history_levels(clean, config, generator), drift(clean.shape, generator)
    history = noised(clean, wrong, levels)
    moved = torch.cat([window.moved[:, :1], noised(window.moved[:, 1:], wrong, levels)], dim=1)
    anchors, told = tell_window(window._replace(moved=moved))
    noise = normal(targets.shape, generator)
    level = logit_normal(targets.shape[:2], config.level_mean, config.level_std, generator)
    becoming = told.pick(slice(num_history, None))._replace(tau=level)
    becoming = without_motion(becoming, config.motion_dropout, generator)
    return Sequence(
        latents=torch.cat([window.anchors, history, noised(targets, noise, level)], dim=1),
        told=joined(anchors, told.pick(slice(last)), becoming),
        mask=parallel_mask(num_anchors, last, num_history).to(level.device),
        target=targets,
        velocity=velocity(targets, noise),
        level=level,
        planning=slice(num_anchors + num_history - 1, num_anchors + last),
        plans=slice(num_history - 1, last),
    )


def parallel_mask(
    num_anchors: int, num_clean: int, num_history: int
) -> Bool[Tensor, "frame frame"]:
    """Say who sees whom: anchors, clean frames 0, 1, ..., and noised copies of frames H, H + 1, ...

    A copy sees what the clean frame in its place would, but itself for it.
    """
    clean = window_mask(num_anchors, num_clean + 1, num_history)
    copies = clean[num_anchors + num_history :].clone()
    copies[torch.arange(len(copies)), torch.arange(num_anchors + num_history, len(clean))] = False
    num_copies, last = len(copies), num_anchors + num_clean
    copies = torch.cat([copies[:, :last], torch.eye(num_copies, dtype=torch.bool)], dim=1)
    blind = torch.zeros(last, num_copies, dtype=torch.bool)
    return torch.cat([torch.cat([clean[:last, :last], blind], dim=1), copies])


def as_in_paper(
    window: Window,
    config: ObjectiveConfig,
    num_history: int,
    generator: torch.Generator,
) -> Sequence:
    """Lay out [anchors, history, target], with or without noise augmentation."""
    num_anchors = window.anchors.shape[1]
    before = num_anchors + num_history
    latents = torch.cat([window.anchors, window.frames], dim=1)
    batch, num_frames = latents.shape[:2]
    shared = logit_normal((batch, 1), config.level_mean, config.level_std, generator)
    shared = shared.expand(-1, num_frames)
    own = logit_normal((batch, num_frames), config.history_mean, config.history_std, generator)
    own[:, :num_anchors] = 0.0
    own[:, -1] = shared[:, -1]
    is_target = torch.arange(num_frames, device=own.device) >= before
    is_augmented = chance(config.history_noise, batch, generator)[:, None]
    level = torch.where(is_augmented, own, shared)
    noise = normal(latents.shape, generator)
    is_wrong = (is_augmented & ~is_target)[..., None, None, None]
    noise = torch.where(is_wrong, drift(latents.shape, generator), noise)
    tau = torch.where(is_augmented & ~is_target, 0.0, level)
    # What a frame's predecessor shows is noised as the predecessor is.
    shows = torch.cat([window.anchors_moved, window.moved], dim=1)
    shows = torch.cat([shows[:, :1], noised(shows[:, 1:], noise[:, :-1], level[:, :-1])], dim=1)
    moved, of_anchors = shows[:, num_anchors:], shows[:, :num_anchors]
    anchors, told = tell_window(window._replace(moved=moved, anchors_moved=of_anchors))
    target = without_motion(told.pick(slice(-1, None)), config.motion_dropout, generator)
    told = joined(anchors, told.pick(slice(-1)), target)
    # The loss of an augmented sample is on its target alone: elsewhere it wants what cannot be had.
    wanted = velocity(latents, noise)
    ones = torch.ones(num_frames, num_frames, device=own.device)
    return Sequence(
        latents=noised(latents, noise, level),
        told=told._replace(tau=tau),
        mask=ones.tril().bool(),
        target=latents,
        velocity=wanted,
        level=torch.where(is_augmented & ~is_target, torch.nan, level),
        planning=slice(before, before + 1),
        plans=slice(num_history, num_history + 1),
    )


def history_levels(clean: Latents, config: ObjectiveConfig, generator: torch.Generator) -> Levels:
    """Draw the levels of history: of a share p of the samples, each frame its own, else zero."""
    levels = logit_normal(clean.shape[:2], config.history_mean, config.history_std, generator)
    return levels * chance(config.history_noise, len(clean), generator)[:, None]


def drift(shape: tuple[int, ...], generator: torch.Generator) -> Latents:
    """Draw noise, of variance one, as a rollout goes wrong: in patches of all sizes, and for long.

    A fourth of it is of the size of a place, a fourth each of two, four and eight; half of each
    stays the same over the frames. White noise has no part in what the whole image, or several
    frames, have in common, so that a model which has only seen such lets colours run away.
    """
    batch, num_frames, channels, rows, columns = shape
    total = torch.zeros(shape, device=generator.device)
    for size in DRIFT_SIZES:
        coarse = channels, -(-rows // size), -(-columns // size)
        own = normal((batch, num_frames, *coarse), generator)
        lasting = normal((batch, 1, *coarse), generator)
        both = (own + lasting).repeat_interleave(size, -2).repeat_interleave(size, -1)
        total += both[..., :rows, :columns]
    return total / (2 * len(DRIFT_SIZES)) ** 0.5


def without_motion(told: Told, share: float, generator: torch.Generator) -> Told:
    """Keep silent about the motion of a share of the frames."""
    kept = torch.rand(told.tau.shape, generator=generator, device=generator.device) >= share
    return told._replace(has_motion=told.has_motion & kept)


def chance(share: float, num: int, generator: torch.Generator) -> Bool[Tensor, " num"]:
    """Draw which of `num` are in a share."""
    return torch.rand(num, generator=generator, device=generator.device) < share


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw normal numbers."""
    return torch.randn(shape, generator=generator, device=generator.device)
