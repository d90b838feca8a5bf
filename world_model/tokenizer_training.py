"""Training our own tokenizer: what comes out shall be what went in, and the latent shall be smooth.

    L = |x - x'| + lpips_weight LPIPS(x, x') + kl_weight KL(q(z | x) || N(0, 1))

with z drawn from q in training (a VAE). LPIPS needs weights that are not shipped; without them L1
is all there is, and lines come out softer.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from drive_envs.segment import Segment
from world_model.autoencoder import Autoencoder
from world_model.encoding import images_as_recorded
from world_model.tokenizer import to_float

Frames = UInt8[Tensor, "frame 2 3 height width"]


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig:
    """Weights of the parts of the loss, see the module's docstring."""

    lpips: float = 0.5
    kl: float = 1e-5


class TokenizerLosses(NamedTuple):
    """Means over a minibatch; `lpips` is NaN without weights for it."""

    total: Tensor
    l1: Tensor
    lpips: Tensor
    kl: Tensor


def tokenizer_losses(
    autoencoder: Autoencoder,
    images: Frames,
    config: TokenizerLossConfig,
    perceptual: nn.Module | None,
    generator: torch.Generator,
) -> TokenizerLosses:
    """Encode, draw, decode and compare. `perceptual` is from `image_metrics.load_lpips`."""
    truth = to_float(images)
    mean, log_variance = autoencoder.moments(truth)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    guess = autoencoder.decode(mean + (0.5 * log_variance).exp() * noise)
    l1 = (guess - truth).abs().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    total = l1 + config.kl * kl
    lpips = total.new_tensor(float("nan"))
    if perceptual is not None and config.lpips:
        lpips = perceptual(guess.flatten(0, 1), truth.flatten(0, 1)).mean()
        total = total + config.lpips * lpips
    return TokenizerLosses(total, l1.detach(), lpips.detach(), kl.detach())


class FrameSet:
    """Frames drawn at random from recordings, decoded once and kept as uint8.

    A minibatch depends on the seed and the step alone; half of its frames are mirrored.
    """

    def __init__(self, frames: Frames, seed: int) -> None:
        self.frames, self.seed = frames, seed

    def minibatch(self, step: int, size: int) -> Frames:
        """Return the frames of gradient step `step`."""
        rng = np.random.default_rng([self.seed, step])
        picked = self.frames[torch.from_numpy(rng.integers(len(self.frames), size=size))]
        is_mirrored = torch.from_numpy(rng.random(size) < 0.5)
        picked[is_mirrored] = picked[is_mirrored].flip(-1)
        return picked


def spread_rows(num_rows: int, num: int, rng: np.random.Generator) -> list[int]:
    """Choose up to `num` different rows of a segment, one from each of as many equal parts."""
    num = min(num, num_rows)
    edges = np.linspace(0, num_rows, num + 1).astype(int)
    return [int(rng.integers(low, high)) for low, high in pairwise(edges)]


def frames_of_segment(segment: Segment, num: int, width: int, height: int, seed: int) -> Frames:
    """Decode some frames of a segment, always the same; SegmentError when one is damaged."""
    rows = spread_rows(len(segment), num, np.random.default_rng([seed, segment.number]))
    frames = [images_as_recorded(segment, slice(row, row + 1), width, height) for row in rows]
    return torch.cat(frames)
