"""Maps of inverse depth w = 1 / z: on the image of a plane w is linear, and in the sky it is 0.

That makes it what to differentiate, to extend and to compare; the larger w is the nearer surface.
Where depth is not known w is HOLE. Maps are (batch, height, width) in 1/m; CPU and GPU.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import hardshrink, interpolate, pad

from drive_envs import reprojection_loops
from drive_envs.camera import Camera, pixel_centers

Map = Float[Tensor, "batch height width"]
HOLE = float(reprojection_loops.HOLE)
MAX_SLOPE = float(reprojection_loops.MAX_SLOPE)


class Surface(NamedTuple):
    """A source as one plane a pixel: w = `slope_u` u + `slope_v` v + `offset` (1/m, pixels)."""

    slope_u: Map
    slope_v: Map
    offset: Map


def inverse_depth(depth: Map) -> Map:
    """Invert a depth map in metres: sky (inf) is 0, unknown (NaN, 0) is HOLE."""
    return depth.reciprocal().nan_to_num_(nan=HOLE, posinf=HOLE)


def surface_from_inverse_depth(w: Map, camera: Camera) -> Surface:
    """Fit a plane to every pixel from its neighbours in row and column."""
    slope_u, slope_v = slope(w, dim=2), slope(w, dim=1)
    u, v = pixel_centers(camera, w.device)
    offset = torch.addcmul(w, slope_u, u, value=-1).addcmul_(slope_v, v, value=-1)
    return Surface(slope_u, slope_v, offset)


def slope(w: Map, dim: int) -> Map:
    """Differentiate along `dim`: the smaller of both differences, so that no edge is crossed.

    Zero where the differences have opposite signs (minmod) and at edges on both sides.
    """
    length = w.shape[dim]
    result = torch.zeros_like(w)
    if length < 3:
        return result
    step = w.narrow(dim, 1, length - 1) - w.narrow(dim, 0, length - 1)
    left, right = step.narrow(dim, 0, length - 2), step.narrow(dim, 1, length - 2)
    falling = torch.maximum(left, right).clamp_(max=0)
    torch.add(
        torch.minimum(left, right).clamp_(min=0), falling, out=result.narrow(dim, 1, length - 2)
    )
    result.select(dim, 0).copy_(step.select(dim, 0))
    result.select(dim, length - 1).copy_(step.select(dim, length - 2))
    return result.sub_(hardshrink(result, MAX_SLOPE))


def close(w: Map) -> Map:
    """Raise every value to the smaller of its two neighbours in column, then row, in place.

    This closes cracks one pixel wide, through which the background would show; planes stay.
    """
    for dim in (1, 2):
        length = w.shape[dim]
        if length > 2:
            middle = w.narrow(dim, 1, length - 2)
            around = torch.minimum(w.narrow(dim, 0, length - 2), w.narrow(dim, 2, length - 2))
            torch.maximum(middle, around, out=middle)
    return w


def fill(w: Map) -> Map:
    """Give every HOLE the nearest surface of the smallest pyramid cell around it that has one."""
    height, width = w.shape[1:]
    if height == 1 and width == 1:
        return w
    if height % 2 or width % 2:
        even = pad(w, (0, width % 2, 0, height % 2), value=HOLE)
        return fill(even)[:, :height, :width]
    rows = torch.maximum(w[:, ::2], w[:, 1::2])
    coarse = fill(torch.maximum(rows[..., ::2], rows[..., 1::2]))
    coarse = interpolate(coarse[:, None], scale_factor=2, mode="nearest")[:, 0]
    return torch.addcmul(w, w.clamp(HOLE, 0), w - coarse)


def nearest_around(w: Map, pixel: Int64[Tensor, " some"]) -> Float[Tensor, " some"]:
    """Return the largest inverse depth of some pixels and their eight neighbours.

    pixel: their numbers, row by row, through all of the maps.
    """
    height, width = w.shape[1:]
    column = pixel % width
    row = (pixel // width) % height
    first = pixel - column - row * width
    rows = [(row + step).clamp_(0, height - 1).mul_(width).add_(first) for step in (-1, 0, 1)]
    columns = [(column + step).clamp_(0, width - 1) for step in (-1, 0, 1)]
    w = w.flatten()
    around = w[pixel]
    for above in rows:
        for beside in columns:
            torch.maximum(around, w[above + beside], out=around)
    return around
