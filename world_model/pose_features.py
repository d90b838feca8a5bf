"""Relative poses as numbers that a network can read, metres and centimetres alike.

A relative pose is six numbers: x, y, z in metres and roll, pitch, yaw in radians. What matters in
it spans four orders of magnitude (a car goes 6 m forward in a frame and a centimetre sideways), so
that each value comes as itself, in its own unit, and as sines and cosines of octaves of it.
"""

from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from drive_envs.geometry import compose, invert

NUM_OCTAVES = 7
# The longest wave of each value: twice what is ordinary. Chosen here, published nowhere.
MOTION_WAVE = (16.0, 1.0, 0.5, 0.1, 0.1, 0.4)  # from one frame to the next
ANCHOR_WAVE = (600.0, 200.0, 10.0, 0.4, 0.4, 4 * pi)  # to the anchor, seconds away
NUM_FEATURES = 6 * (1 + 2 * NUM_OCTAVES)

RelativePose = Float[Tensor, "*batch 6"]


def relative_pose(
    world_from_here: Float[Tensor, "*#batch 3"], world_from_there: Float[Tensor, "*#batch 3"]
) -> RelativePose:
    """Return there as seen from here, from planar poses (x, y, yaw): z, roll and pitch are zero."""
    x, y, yaw = compose(invert(world_from_here), world_from_there).unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([x, y, zero, zero, zero, yaw], dim=-1)


def pose_features(pose: RelativePose, wave: tuple[float, ...]) -> Float[Tensor, "*batch features"]:
    """Return the `NUM_FEATURES` numbers that stand for relative poses."""
    unit = pose * (2 / pose.new_tensor(wave))
    octaves = unit[..., None] * (pi * 2.0 ** torch.arange(NUM_OCTAVES, device=pose.device))
    waves = torch.cat([octaves.sin(), octaves.cos()], dim=-1).flatten(-2)
    return torch.cat([unit, waves], dim=-1).float()


def sinusoids(
    value: Float[Tensor, "*batch"], dim: int, longest: float
) -> Float[Tensor, "*batch dim"]:
    """Encode a number by waves, the longest of that period, the shortest a thousandth of it."""
    periods = longest * 1000.0 ** -torch.linspace(0, 1, dim // 2, device=value.device)
    angle = value[..., None] * (2 * pi / periods)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()
