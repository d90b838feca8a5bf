"""Drives beside the recorded path: the poses that a world model must learn to show.

People leave their line by centimetres, and a model of what they saw shows little more, whatever
pose it is told. So recordings are also driven off their line, smoothly and to both sides, and seen
from there through the reprojective world: poses that the car could have, pictures that are right to
a fraction of a pixel.

An excursion is a lateral offset y(t) from the recorded path, a cubic spline through knots, each on
the path again with a certain chance. The heading is that of the motion: tan = y' / (v (1 - kappa
y)).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.interpolate import CubicSpline
from torch import Tensor

from drive_envs.path import MIN_METRIC, RecordedPath
from drive_envs.plan import MIN_SPEED, STEP

Rows = Float[Tensor, " rows"]


@dataclass(frozen=True, kw_only=True)
class ExcursionConfig:
    """How far and how fast recordings are left.

    lateral: m, knots are uniform within +-. spacing: s between knots, uniform in the range.
    share_on_path: of the knots that are on the path. max_heading: rad; an excursion that would turn
    the car more is made smaller as a whole, so that slow drives leave their path less.
    """

    lateral: float = 1.6
    spacing: tuple[float, float] = (1.5, 4.0)
    share_on_path: float = 0.3
    max_heading: float = 0.15

    def __post_init__(self) -> None:
        low, high = self.spacing
        if not 0 < low <= high:
            raise ValueError(f"excursions.spacing is ({low}, {high}) s; it must rise, from above 0")
        if not 0 <= self.lateral <= 4 or not 0 <= self.share_on_path <= 1:
            raise ValueError(
                f"excursions.lateral is {self.lateral} m and share_on_path {self.share_on_path}; "
                "they must be within 0..4 and 0..1"
            )
        if not 0 < self.max_heading < 1:
            raise ValueError(f"excursions.max_heading is {self.max_heading} rad, not within 0..1")


@dataclass(frozen=True, kw_only=True)
class Excursion:
    """A drive beside a recorded one, row by row: m to the left, rad, and the poses (rows, 3)."""

    lateral: Rows
    heading: Rows
    poses: Float[Tensor, "rows 3"]


def draw_excursion(
    path: RecordedPath, config: ExcursionConfig, rng: np.random.Generator
) -> Excursion:
    """Draw a drive beside `path`."""
    end = (len(path) - 1) * STEP
    times = [0.0]
    while times[-1] < end:
        times.append(times[-1] + rng.uniform(*config.spacing))
    offsets = rng.uniform(-config.lateral, config.lateral, len(times))
    offsets[rng.random(len(times)) < config.share_on_path] = 0.0
    spline = CubicSpline(times, offsets, bc_type="clamped")
    rows = STEP * np.arange(len(path))
    return excursion(path, spline(rows), spline(rows, 1), config.max_heading)


def excursion(
    path: RecordedPath,
    offset: Float64[np.ndarray, " rows"],
    offset_rate: Float64[np.ndarray, " rows"],
    max_heading: float,
) -> Excursion:
    """Follow an offset in metres, that changes at a rate in m/s, row by row of a path."""
    lateral, rate = torch.from_numpy(offset), torch.from_numpy(offset_rate)
    metric = (1 - path.curvature * lateral).clamp(min=MIN_METRIC)
    tangent = rate / (path.speed.clamp(min=MIN_SPEED) * metric)
    steepest = float(tangent.abs().max())
    shrink = min(1.0, float(np.tan(max_heading)) / max(steepest, 1e-9))
    lateral, heading = shrink * lateral, (shrink * tangent).atan()
    x, y, yaw = path.poses.unbind(-1)
    poses = torch.stack([x - lateral * yaw.sin(), y + lateral * yaw.cos(), yaw + heading], dim=-1)
    return Excursion(lateral=lateral, heading=heading, poses=poses)
