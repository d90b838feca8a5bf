"""Rectified flow (paper, eqs. 4 to 6): a straight line from the image, tau = 0, to noise, tau = 1.

Every frame of a sequence has a noise level of its own. The module knows no network.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

TINY = 1e-6  # of a distribution: its ends are infinite

Latents = Float[Tensor, "batch frame channel height width"]
Levels = Float[Tensor, "batch frame"]


def noised(latents: Latents, noise: Latents, tau: Levels) -> Latents:
    """Return o_tau = tau eps + (1 - tau) o."""
    tau = tau[..., None, None, None]
    return torch.lerp(latents, noise, tau)


def velocity(latents: Latents, noise: Latents) -> Latents:
    """Return o - eps, which points to the image all along the line: what a network regresses."""
    return latents - noise


def logit_normal(
    shape: tuple[int, ...], mean: float, std: float, generator: torch.Generator
) -> Tensor:
    """Draw noise levels tau = sigmoid(mean + std n), n normal, spread evenly over the draws.

    Of N draws each N-th of the distribution holds one, which one is chance: so the loss of a
    minibatch does not hang on whether its levels happened to be high (Kingma et al., Variational
    Diffusion Models, 2021, appendix I).
    """
    device, num = generator.device, math.prod(shape)
    place = torch.randperm(num, generator=generator, device=device)
    share = (place + torch.rand(num, generator=generator, device=device)) / num
    normal = torch.special.ndtri(share.clamp(TINY, 1 - TINY))
    return torch.sigmoid(mean + std * normal).view(shape)


def euler(field: Callable[[Latents, float], Latents], noise: Latents, num_steps: int) -> Latents:
    """Follow `field(o_tau, tau)` from noise to the image in equal steps of tau."""
    x = noise
    for step in range(num_steps):
        x = x + field(x, 1 - step / num_steps) / num_steps
    return x
