"""Better depth from the frames before and after: the distance at which they look alike.

A plane sweep (Collins, 1996): each pixel of a frame is looked up in its neighbours in time as if it
lay at inverse depth w, for many w, and the difference of colour, at most `LIMIT` and averaged over
a window, is what w costs. What one neighbour does not see the other side may, so only the better
half of them counts (after Kang, Szeliski and Chai, 2001). A pixel leaves the depth that it came
with for the cheapest w if that is clearly cheaper and another place in the neighbours' images: at
the point that the car drives to nothing moves, and nothing is told. Points that were measured stay.

A ramp between two surfaces is then no surface: values are drawn to the nearer of the two.

What moves by itself is taken for what stands still at another distance. Nothing lies below the
road, which keeps a car ahead from becoming the sky.
"""

from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from drive_envs.camera import Camera
from drive_envs.inverse_depth import fill, inverse_depth
from drive_envs.reprojection import Motion, Rays, is_in_view, land, motions, rotate
from drive_envs.resampling import read

Map = Float[np.ndarray, "rows columns"]
Costs = Float[Tensor, "neighbour rows columns"]

LIMIT = 60.0  # levels of 255: of two colours that differ by more, neither is right
WINDOW = 7  # pixels
CHEAPER = 0.9  # of the cost that the depth so far has
LEAST_GAIN = 1.0  # levels: of the sky all looks alike, wherever it is
MOVED = 0.5  # pixels, in a row or a column of the neighbour that tells most
NEAREST = 3.0  # m
FARTHEST = 80.0  # m; and infinity
NUM_DISTANCES = 38
SHORTEST = 0.1  # m between two cameras: less tells nothing
NEAR_POINT = 2  # pixels
BELOW = 0.9  # of the road's inverse depth: what is farther lies below it
EDGE = 0.15  # of the nearer inverse depth: a step that is more is an edge,
EDGE_LEAST = 0.004  # 1/m: unless it is less than this


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Other frames of the same camera, and how it moved: points of theirs into this frame's."""

    images: UInt8[Tensor, "neighbour 3 height width"]
    this_from_other: Float[Tensor, "neighbour 4 4"]

    def that_tell(self) -> "Neighbours | None":
        """Leave out those from where nothing has moved; None if these are all."""
        apart = self.this_from_other[:, :3, 3].norm(dim=1) >= SHORTEST
        if not apart.any():
            return None
        return Neighbours(images=self.images[apart], this_from_other=self.this_from_other[apart])


def improved(
    depth: Map,
    image: UInt8[np.ndarray, "rows columns 3"],
    neighbours: Neighbours,
    camera: Camera,
    *,
    measured: Bool[np.ndarray, "rows columns"] | None = None,
    road: Map | None = None,
) -> Map:
    """Return planar depth in metres (sky inf) with what the neighbours know better.

    depth: as it is known so far; NaN stays NaN. measured: points that are left as they are, and
    what is beside them. road: the depth of the road, inf above the horizon.
    """
    unknown = np.isnan(depth)
    w = fill(inverse_depth(torch.from_numpy(depth).float()[None])).clamp_(min=0)[0]
    if unknown.all() or (telling := neighbours.that_tell()) is None:
        return depth
    held = unknown
    if measured is not None:
        beside = np.ones((2 * NEAR_POINT + 1, 2 * NEAR_POINT + 1), np.uint8)
        held = unknown | (cv2.dilate(measured.astype(np.uint8), beside) > 0)
    free = torch.from_numpy(~held)
    least = torch.zeros(()) if road is None else torch.from_numpy(BELOW / road).float()
    found = sweep(w, torch.from_numpy(image).permute(2, 0, 1), telling, camera, least)
    inverse = drawn_apart(torch.where(free, found, w).numpy())
    with np.errstate(divide="ignore"):
        return np.where(unknown, np.nan, 1 / inverse.astype(depth.dtype))


def sweep(
    w: Float[Tensor, "rows columns"],
    image: UInt8[Tensor, "3 rows columns"],
    neighbours: Neighbours,
    camera: Camera,
    least: Tensor,
) -> Float[Tensor, "rows columns"]:
    """Return `w` where nothing is clearly cheaper, elsewhere the cheapest inverse depth."""
    _, back = motions(neighbours.this_from_other, camera, camera)
    search = Search(image.float(), neighbours.images, rotate(back, camera), back, camera)
    first, at = search.cost(w)
    cost, best = torch.minimum(first * CHEAPER, first - LEAST_GAIN), w.clone()
    for value in [0.0, *np.geomspace(1 / FARTHEST, 1 / NEAREST, NUM_DISTANCES).tolist()]:
        other, there = search.cost(torch.full_like(w, value))
        moved = (there - at).abs_().amax(dim=(0, 1)).view_as(w)
        better = (other < cost) & (moved >= MOVED) & (value >= least)
        cost, best = torch.where(better, other, cost), best.masked_fill_(better, value)
    return best


@dataclass(frozen=True)
class Search:
    """What is needed to ask what an inverse depth costs."""

    image: Float[Tensor, "3 rows columns"]
    others: UInt8[Tensor, "neighbour 3 rows columns"]
    rays: Rays
    back: Motion
    camera: Camera

    def cost(
        self, w: Float[Tensor, "rows columns"]
    ) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "2 neighbour pixel"]]:
        """Return the cost of a map of inverse depths, and where its pixels lie in the others."""
        landing = land(w.reshape(1, -1).expand(len(self.rays), -1), self.rays, self.back)
        color = read(self.others, landing.u, landing.v)
        apart = (color - self.image.flatten(1)).abs_().mean(dim=1).clamp_(max=LIMIT)
        apart = apart.where(is_in_view(landing, self.camera), LIMIT).view(-1, *w.shape)
        costs = torch.stack([around(each) for each in apart])
        better_half = costs.sort(dim=0).values[: ceil(len(costs) / 2)]
        return better_half.mean(dim=0), torch.stack([landing.u, landing.v])


def around(values: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Average over the window around each pixel, of what is in the image."""
    window = {"ksize": (WINDOW, WINDOW), "normalize": False, "borderType": cv2.BORDER_CONSTANT}
    total = cv2.boxFilter(values.numpy(), -1, **window)
    return torch.from_numpy(total / cv2.boxFilter(np.ones_like(total), -1, **window))


def drawn_apart(inverse: Map) -> Map:
    """Take single pixels out, and give those between two surfaces to the nearer of the two.

    Between surfaces is where a row or a column climbs much more steeply than before and after: a
    road climbs as steeply all along.
    """
    inverse = cv2.medianBlur(inverse.astype(np.float32), 3)
    for axis in (0, 1):
        before2, before, after, after2 = (shifted(inverse, by, axis) for by in (-2, -1, 1, 2))
        along = np.abs(before - before2) + np.abs(after2 - after)
        step = np.abs(after - before) - 2 * along
        is_edge = step > np.maximum(EDGE * np.maximum(before, after), EDGE_LEAST)
        is_like_before = np.abs(inverse - before) < np.abs(after - inverse)
        inverse = np.where(is_edge, np.where(is_like_before, before, after), inverse)
    return inverse


def shifted(values: Map, by: int, axis: int) -> Map:
    """Return what lies `by` further along an axis; beyond the border, the border."""
    index = np.clip(np.arange(values.shape[axis]) + by, 0, values.shape[axis] - 1)
    return values.take(index, axis)
