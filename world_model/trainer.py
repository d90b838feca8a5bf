"""One gradient step of the world model after another, in one process or as one of several.

A step depends on the seed, its number and the weights alone: windows are numbered through a global
minibatch, of which each process takes every n-th, and noise is drawn per process. It does not know
how processes are started (`train`).
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from drive_envs.precision import Precision, autocast
from world_model.detail import NUM_BLOCKS, NUM_FEATURES
from world_model.dit import PATCH, SIZES, WorldModel, WorldModelConfig
from world_model.expectation import NUM_HIDDEN
from world_model.latents import LatentFile
from world_model.objective import Losses, ObjectiveConfig, losses
from world_model.optimizer import Optimizer, OptimizerConfig
from world_model.own_rollouts import OwnRollouts, OwnRolloutsConfig
from world_model.sampler import Sampler, SamplerConfig
from world_model.tokenizer import Tokenizer
from world_model.windows import Window, WindowConfig, WindowSampler, stack

LEVEL_EDGES = (0.2, 0.4, 0.6, 0.8)  # between the noise levels whose losses are shown apart
HELD_OUT_SEED = 10_000_019  # of windows and noise that are never learnt from


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How the network is trained.

    num_steps: gradient steps of batch_size windows, over all processes. sharding: of the weights
    where there are several processes: `ddp` copies them, `fsdp` splits them (FSDP2).
    """

    seed: int = 0
    num_steps: int = 10000
    batch_size: int = 16
    precision: Precision = "auto"
    sharding: Literal["ddp", "fsdp"] = "ddp"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    own_rollouts: OwnRolloutsConfig = field(default_factory=OwnRolloutsConfig)

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_steps is {self.num_steps} and batch_size {self.batch_size}; they must be 1 "
                "or more"
            )
        if self.own_rollouts.share and self.objective.layout == "paper":
            raise ValueError(
                "own_rollouts.share is for objective.layout=parallel: the paper's layout learns "
                "its history too, which is not to be what the model made"
            )


class Trainer:
    """A world model on its way; `optimizer.step` counts the steps taken.

    tokenizer: on the model's device; shows the model its own frames, where it learns from these.
    """

    def __init__(
        self,
        model: WorldModel,
        config: TrainerConfig,
        file: LatentFile,
        tokenizer: Tokenizer,
        *,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        if config.batch_size % num_processes:
            raise ValueError(
                f"batch_size {config.batch_size} cannot be shared out to {num_processes} processes"
            )
        self.config, self.rank = config, rank
        self.model = model
        self.device = next(model.parameters()).device
        self.network = distributed(model, config, num_processes)
        self.optimizer = Optimizer(model, config.optimizer, config.num_steps)
        numbers = range(rank, config.batch_size, num_processes)
        num_recorded = round((1 - config.own_rollouts.share) * len(numbers))
        self.numbers, self.recorded = numbers, numbers[:num_recorded]
        num_history, num_anchors = model.config.num_history, model.config.num_anchors
        num_frames = config.objective.num_frames(num_history)
        everything = replace(config.windows, num_drives=None)
        draw = partial(WindowSampler, file, num_anchors=num_anchors)
        self.train = draw("train", config.windows, num_frames=num_frames)
        self.held_out = draw("held_out", everything, num_frames=num_frames)
        self.own = None
        if own := numbers[num_recorded:]:
            num_frames = num_history + 1 + config.own_rollouts.num_frames
            self.own = OwnRollouts(
                Sampler(
                    model,
                    tokenizer,
                    SamplerConfig(
                        num_steps=config.own_rollouts.num_steps,
                        temperature=config.own_rollouts.temperature,
                        precision=config.precision,
                    ),
                ),
                draw(
                    "train",
                    config.windows,
                    num_frames=num_frames,
                    set_by="own_rollouts.num_frames",
                ),
                config.own_rollouts,
                seed=config.seed,
                numbers=own,
                num_targets=config.objective.num_targets,
            )
            if num_processes > 1 and config.sharding == "fsdp":
                self._look_once()

    def _look_once(self) -> None:
        """Have FSDP2 make what it makes at a first look, of which a rollout may not be the one.

        In inference mode it would make tensors that no gradient can be taken of.
        """
        from torch.distributed.fsdp import FSDPModule

        self.held_out_figures(1)
        assert isinstance(self.model, FSDPModule)
        self.model.reshard()  # what was gathered is not what will be restored

    def step(self) -> dict[str, float]:
        """Take one gradient step; return its figures, of this process's windows."""
        began = time.perf_counter()
        step, config = self.optimizer.step, self.config
        window = self.minibatch(step)
        loaded = time.perf_counter()
        generator = torch.Generator(self.device)
        generator.manual_seed((config.seed * 1_000_003 + step) * 1009 + self.rank)
        found = self.losses(window, generator)
        figures = self.optimizer.descend(found.total)
        seconds = time.perf_counter() - began
        return (
            figures
            | level_figures("loss", found)
            | {
                "speed/windows_per_second": config.batch_size / seconds,
                "speed/loading_share": (loaded - began) / seconds,
                "speed/flops_per_second": config.batch_size
                * self.flops_of_window(window)
                / seconds,
            }
        )

    def minibatch(self, step: int) -> Window:
        """Return the windows of a gradient step, those of the model's own history last."""
        seed, is_own = self.config.seed, step >= self.config.own_rollouts.first_step
        if self.own is None or not is_own or not self.train.is_anchored(seed, step):
            return self.train.minibatch(seed, step, self.numbers).to(self.device)
        own = self.own.minibatch(step)
        if not self.recorded:
            return own
        recorded = self.train.minibatch(seed, step, self.recorded).to(self.device)
        return stack([recorded, own])

    def losses(self, window: Window, generator: torch.Generator) -> Losses:
        """Look at a window and compare."""
        with self.autocast():
            return losses(
                self.network,
                window,
                self.config.objective,
                self.model.config.num_history,
                generator,
            )

    @torch.no_grad()
    def held_out_figures(self, num_batches: int) -> dict[str, float]:
        """Return the losses on held-out windows, always the same ones, with the weights as is."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for number in range(num_batches):
            window = self.held_out.minibatch(HELD_OUT_SEED, number, range(self.config.batch_size))
            generator = torch.Generator(self.device).manual_seed(HELD_OUT_SEED + number)
            found = self.losses(window.to(self.device), generator)
            for name, value in level_figures("held_out", found).items():
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + 1
        return {name: total / counts[name] for name, total in sums.items()}

    def flops_of_window(self, window: Window) -> int:
        """Count the floating-point operations of one window, forward and backward."""
        objective, config = self.config.objective, self.model.config
        frames = window.anchors.shape[1] + window.frames.shape[1]
        learnt = frames
        if objective.layout == "parallel":
            learnt = objective.num_targets
            frames += learnt - 1
        return 3 * (forward_flops(config, frames) + learnt * expecting_flops(config))

    def autocast(self) -> torch.autocast:
        """Return the context in which the network runs."""
        return autocast(self.config.precision, self.device.type)


def distributed(model: WorldModel, config: TrainerConfig, num_processes: int) -> nn.Module:
    """Copy or split a model over the processes, whose group is up; alone, leave it."""
    if num_processes == 1:
        return model
    if config.sharding == "fsdp":
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        register_fsdp_forward_method(model, "expect")
        return model
    return DistributedDataParallel(model)


def level_figures(area: str, found: Losses) -> dict[str, float]:
    """Return the losses, and that of the velocity by noise level."""
    figures = {
        f"{area}/total": found.total.item(),
        f"{area}/flow": found.flow.item(),
        f"{area}/plan": found.plan.item(),
        f"{area}/expectation": found.expectation.item(),
    }
    which = torch.bucketize(found.level, found.level.new_tensor(LEVEL_EDGES))
    for index, (low, high) in enumerate(zip((0.0, *LEVEL_EDGES), (*LEVEL_EDGES, 1.0), strict=True)):
        chosen = found.error[(which == index) & found.level.isfinite()]
        if len(chosen):
            figures[f"{area}/flow_at_{low:g}_{high:g}"] = chosen.mean().item()
    return figures


def forward_flops(config: WorldModelConfig, num_frames: int, num_seen: int | None = None) -> int:
    """Count the operations of looking at some frames, two for each multiplication and addition.

    Less those of what is expected of them, `expecting_flops`. num_seen: frames that each token
    looks at, by default all: what is masked is computed too.
    """
    num_layers, dim, _ = SIZES[config.size]
    tokens = num_frames * config.num_tokens
    seen = (num_frames if num_seen is None else num_seen) * config.num_tokens
    values = config.latent_channels * (3 if config.flat_road else 2)
    patch = PATCH**2 * (values + (NUM_FEATURES if config.num_detail else 0))
    of_block = 2 * tokens * 12 * dim**2 + 4 * tokens * seen * dim + 2 * num_frames * 6 * dim**2
    return num_layers * of_block + 2 * tokens * patch * dim


def expecting_flops(config: WorldModelConfig) -> int:
    """Count the operations of saying what to expect of one frame, and of drawing its detail."""
    channels, rows, columns = config.latent_shape
    of_place = 9 * NUM_HIDDEN * 3 * channels * config.flat_road
    if hidden := config.num_detail:
        shown = NUM_FEATURES + (1 + config.flat_road) * channels
        of_place += 9 * hidden * (shown + 2 * NUM_BLOCKS * hidden + channels)
    return 2 * rows * columns * of_place
