"""What a frame is expected to be, from what the frame before shows from there (`flat_road`).

A few convolutions mend what they can see to be wrong with it, and say of each value how far off it
is to be expected: the sky stays as it is, the road's grain does not.
"""

from math import log
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

NUM_HIDDEN = 64  # channels
FIRST_DEVIATION, LEAST_DEVIATION = 0.5, 0.05  # of latents whose own is one

Latent = Float[Tensor, "frame channel rows columns"]


class Expected(NamedTuple):
    """Mean and standard deviation of each value of a latent."""

    mean: Float[Tensor, "*frame channel rows columns"]
    deviation: Float[Tensor, "*frame channel rows columns"]


class Expectation(nn.Module):
    """Two convolutions, which also know where in the image they are."""

    def __init__(self, channels: int, rows: int, columns: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, NUM_HIDDEN, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(NUM_HIDDEN, rows, columns))
        self.last = nn.Conv2d(NUM_HIDDEN, 2 * channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)
        nn.init.constant_(self.last.bias[channels:], log(FIRST_DEVIATION))

    def forward(self, moved: Latent) -> Expected:
        """Say what to expect where the frame before, seen from there, shows `moved`."""
        found = self.last(silu(self.first(moved) + self.place)).float()
        mended, log_deviation = found.chunk(2, dim=1)
        deviation = log_deviation.clamp(max=2.0).exp().clamp(min=LEAST_DEVIATION)
        return Expected(moved.float() + mended, deviation)
