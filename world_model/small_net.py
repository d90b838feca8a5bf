"""What the networks that judge pictures have in common: convolutions, and how they are fitted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from drive_envs.precision import autocast
from world_model.optimizer import Optimizer, OptimizerConfig

CHANNELS = (32, 48, 64, 96)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How such a network is fitted. part: of a run's YAML, for errors."""

    part: ClassVar[str]
    num_steps: int = 1500
    batch_size: int = 32
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.part}.{name} must be 1 or more, got {getattr(self, name)}")


def convolutions(num_inputs: int, width: int, height: int) -> tuple[nn.Sequential, int]:
    """Return a stack of strided convolutions that ends flattened, and how many features it has."""
    layers: list[nn.Module] = []
    channels = num_inputs
    for more in CHANNELS:
        conv = nn.Conv2d(channels, more, 5, stride=2, padding=2)
        # As PyTorch initialises them, signals shrink from layer to layer, and learning begins with
        # a plateau of a thousand steps.
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.SiLU()]
        channels = more
    shrink = 2 ** len(CHANNELS)
    num = channels * max(1, height // shrink) * max(1, width // shrink)
    return nn.Sequential(*layers, nn.Flatten()), num


def fit(
    network: nn.Module,
    num_samples: int,
    loss: Callable[[Tensor, np.random.Generator], Tensor],
    config: FitConfig,
    seed: int,
    shown: Callable[[range], Iterable[int]] = iter,
) -> None:
    """Fit a network in place; it is left in evaluation mode, with averaged weights.

    loss: of the samples of these numbers, (batch,), with a generator for what else is by chance.
    shown: hands the steps out one by one, and may show how far they have come.
    """
    options = OptimizerConfig(
        learning_rate=config.learning_rate, num_warmup_steps=50, average_decay=0.99
    )
    optimizer = Optimizer(network, options, config.num_steps)
    for step in shown(range(config.num_steps)):
        rng = np.random.default_rng([seed, step])
        picked = torch.from_numpy(rng.integers(num_samples, size=config.batch_size))
        with autocast("auto", "cpu"):
            value = loss(picked, rng)
        optimizer.descend(value)
    network.load_state_dict(optimizer.averaged())
    network.eval().requires_grad_(False)
