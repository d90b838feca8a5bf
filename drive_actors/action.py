"""The action distribution: a diagonal Normal over accelerations.

The network thinks in u = (curvature * max(v, 3 m/s)^2, acceleration) / (2 m/s^2): lateral and
longitudinal acceleration are both O(1) at any speed, where curvature spans three decades. The
environment is told the command (curvature 1/m, acceleration m/s^2). Densities are always those of
u: the Jacobian to the command does not depend on the policy and cancels in every ratio.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

UNIT = 2.0  # m/s^2
MIN_SPEED = 3.0  # m/s, keeps the curvature of a crawling car finite
MIN_STD, MAX_STD = 0.05, 1.0  # below 0.1 m/s^2 one easy dimension would rule the gradient

Pair = Float[Tensor, "*batch 2"]
Speed = Float[Tensor, "*batch 1"]
Scalar = Float[Tensor, "*batch"]


def normalized_from_command(command: Pair, speed: Speed) -> Pair:
    """Turn (curvature 1/m, acceleration m/s^2) at `speed` m/s into u."""
    curvature, acceleration = command.split(1, dim=-1)
    lateral = curvature * speed.clamp(min=MIN_SPEED).square()
    return torch.cat([lateral, acceleration], dim=-1) / UNIT


def command_from_normalized(normalized: Pair, speed: Speed) -> Pair:
    """Turn u at `speed` m/s into (curvature 1/m, acceleration m/s^2)."""
    lateral, acceleration = (normalized * UNIT).split(1, dim=-1)
    return torch.cat([lateral / speed.clamp(min=MIN_SPEED).square(), acceleration], dim=-1)


def bounded_log_std(raw: Pair) -> Pair:
    """Squash a network output smoothly into [log 0.05, log 1]; 0 gives a deviation of 0.22."""
    low, high = math.log(MIN_STD), math.log(MAX_STD)
    return low + (high - low) * raw.sigmoid()


def log_probs(mean: Pair, log_std: Pair, normalized: Pair) -> Pair:
    """Return log N(u; mean, std) of each of the two dimensions."""
    deviation = (normalized - mean) * (-log_std).exp()
    return -0.5 * deviation.square() - log_std - 0.5 * math.log(2 * math.pi)


def entropy(log_std: Pair) -> Scalar:
    """Return the differential entropy of N(., std) in nats, summed over the two dimensions."""
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
