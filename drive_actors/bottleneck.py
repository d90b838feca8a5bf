"""The information bottleneck: white Gaussian noise on power-constrained features.

A feature of unit mean power behind noise of standard deviation s is a Gaussian channel; it carries
at most C = 1/2 log2(1 + SNR) bits a sample, SNR = 1/s^2, and D of them carry D C bits a frame. The
power constraint is a hard one, ||features||^2 = D, or the network would scale past the noise.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def capacity_bits(num_dims: int, noise_std: float) -> float:
    """Return what `num_dims` unit-power dimensions carry past noise of this deviation, in bits."""
    if noise_std <= 0:
        raise ValueError(
            f"noise_std must be positive, got {noise_std}: without noise there is no bound"
        )
    return num_dims / 2 * math.log2(1 + noise_std**-2)


def noise_std(bits: float, num_dims: int) -> float:
    """Return the deviation that leaves `bits` of capacity: the inverse of `capacity_bits`."""
    if bits <= 0 or num_dims <= 0:
        raise ValueError(f"bits and num_dims must be positive, got {bits} and {num_dims}")
    return (2 ** (2 * bits / num_dims) - 1) ** -0.5


def unit_power(features: Float[Tensor, "batch dims"]) -> Float[Tensor, "batch dims"]:
    """Scale each sample to mean square 1, ||features||^2 = dims."""
    return torch.nn.functional.normalize(features, dim=-1) * features.shape[-1] ** 0.5


def noise(
    seed: int, num_frames: int, batch: int, num_dims: int
) -> Float[Tensor, "frame batch dims"]:
    """Draw the unit noise of a whole rollout, float32 on the CPU.

    Actor and learner call it with the same seed and sizes and get the same numbers, so that the
    learner repeats the actor's forward pass without the noise being sent.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_frames, batch, num_dims, generator=generator)
