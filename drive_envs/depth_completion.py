"""Depth everywhere from a lidar's few points, guided by the image: edges of depth lie on its edges.

Inverse depth w is linear on the image of a plane, so the map that is wanted bends little:

    sum_k c (w_k - 1 / z_k)^2 + sum g |second differences of w|^2 + f sum g |first differences|^2

with g = exp(-|step of colour| / edge) small across edges of the image. Bends that remain are edges
of depth, and are made free in two more rounds by the weight 1 / (1 + |bend| / e), as in total
variation; each round is a linear system. (Spreading values along colour by such a system is
due to Levin, Lischinski and Weiss, 2004.) Above the highest points, where a lidar does not look,
walls go on straight up, and bright pixels that reach the top of the image are sky.

A point far behind others around it was seen past an obstacle from where the lidar sits, and is left
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.linalg import solveh_banded
from scipy.sparse import csr_array, diags_array
from threadpoolctl import threadpool_limits

Map = Float[np.ndarray, "rows columns"]
Mask = Bool[np.ndarray, "rows columns"]

CONFIDENCE = 300.0  # c: of a point
FLATNESS = 0.1  # f
BEND = 1e-3  # e, 1/m
NUM_ROUNDS = 2
WEAKEST = 1e-3  # g across the sharpest edge
FAR = 500.0  # m: what is farther is sky
HIDDEN = 1.25  # times as far as a neighbour on both sides is behind it
NEAR_POINT = 2  # pixels around a point that cannot be sky


@dataclass(frozen=True, kw_only=True)
class Completion:
    """How sparse depth is spread.

    edge: levels of 255 between neighbours at which a link 1 / e as strong.
    sky_level: least level of blue of the sky, which is sought above the horizon only; 256 for none.
    """

    kind: Literal["sparse"] = "sparse"
    edge: float = 20.0
    sky_level: int = 200

    def __post_init__(self) -> None:
        if not self.edge > 0:
            raise ValueError(f"depth.edge must be positive, got {self.edge}")
        if not 0 <= self.sky_level <= 256:
            raise ValueError(f"depth.sky_level must be 0..256, got {self.sky_level}")


def completed(
    sparse: Map, image: UInt8[np.ndarray, "rows columns 3"], horizon: float, config: Completion
) -> Map:
    """Fill a map of planar metres (NaN unknown) as large as its RGB image; `horizon` is a row.

    All NaN when there is no point at all.
    """
    sparse = without_hidden(sparse)
    known = np.isfinite(sparse)
    if not known.any():
        return sparse
    sky = sky_of(image, known, horizon, config.sky_level)
    inverse = spread(np.where(known, 1 / sparse, 0.0), known | sky, image, config.edge)
    inverse[sky] = 0
    with np.errstate(divide="ignore"):
        return np.where(inverse > 1 / FAR, 1 / inverse, np.inf)


def spread(
    target: Map, known: Mask, image: UInt8[np.ndarray, "rows columns 3"], edge: float
) -> Map:
    """Return the map that agrees with `target` where it is known and bends little elsewhere."""
    levels = image.astype(np.float64)
    across, down = (
        np.maximum(np.exp(-np.abs(np.diff(levels, axis=axis)).max(axis=-1) / edge), WEAKEST)
        for axis in (1, 0)
    )
    number = np.arange(target.size).reshape(target.shape)
    steps = [
        (_differences([number[:, :-1], number[:, 1:]], [-1, 1], target.size), across.ravel()),
        (_differences([number[:-1], number[1:]], [-1, 1], target.size), down.ravel()),
    ]
    bends = [
        (
            _differences([number[:, :-2], number[:, 1:-1], number[:, 2:]], [1, -2, 1], target.size),
            np.minimum(across[:, :-1], across[:, 1:]).ravel(),
        ),
        (
            _differences([number[:-2], number[1:-1], number[2:]], [1, -2, 1], target.size),
            np.minimum(down[:-1], down[1:]).ravel(),
        ),
    ]
    trust = CONFIDENCE * known.ravel()
    fixed = diags_array(trust + 1e-9)
    for operator, weight in steps:
        fixed = fixed + FLATNESS * (operator.T @ diags_array(weight) @ operator)
    inverse = np.zeros(target.size)
    for round_ in range(1 + NUM_ROUNDS):
        system = fixed
        for operator, weight in bends:
            free = 1 / (1 + np.abs(operator @ inverse) / BEND) if round_ else 1.0
            system = system + operator.T @ diags_array(weight * free) @ operator
        inverse = _solved(system.tocsr(), trust * target.ravel(), target.shape)
    return inverse.reshape(target.shape)


def _solved(
    system: csr_array, right: Float[np.ndarray, " pixels"], shape: tuple[int, ...]
) -> Float[np.ndarray, " pixels"]:
    """Solve the system of a map of this shape.

    Counted down the columns, pixels are linked to none farther than twice a column: a band, whose
    Cholesky factors take a quarter of the time of a general sparse solver.
    """
    order = np.arange(len(right)).reshape(shape).T.ravel()
    entries = system[order][:, order].tocoo()
    row, column = entries.coords
    below = row >= column
    band = np.zeros((2 * shape[0] + 1, len(right)))
    band[(row - column)[below], column[below]] = entries.data[below]
    result = np.empty_like(right)
    with threadpool_limits(1, "blas"):  # two wait for each other, eight times as long
        result[order] = solveh_banded(band, right[order], lower=True, overwrite_ab=True)
    return result


def _differences(
    places: Sequence[Int[np.ndarray, "_rows _columns"]], factors: Sequence[int], size: int
) -> csr_array:
    """Return the matrix that adds up the values at `places`, each times its factor."""
    count = places[0].size
    rows = np.tile(np.arange(count), len(places))
    columns = np.concatenate([place.ravel() for place in places])
    values = np.repeat(np.array(factors, float), count)
    return csr_array((values, (rows, columns)), shape=(count, size))


def without_hidden(sparse: Map) -> Map:
    """Leave out points that lie far behind others to the left and right, or above and below."""
    inverse = np.where(np.isfinite(sparse), 1 / sparse, 0.0)
    size = 2
    left, right, above, below = (np.zeros_like(inverse) for _ in range(4))
    for by in range(1, size + 1):
        left[:, by:] = np.maximum(left[:, by:], inverse[:, :-by])
        right[:, :-by] = np.maximum(right[:, :-by], inverse[:, by:])
        above[by:] = np.maximum(above[by:], inverse[:-by])
        below[:-by] = np.maximum(below[:-by], inverse[by:])
    around = np.maximum(np.minimum(left, right), np.minimum(above, below))
    return np.where(inverse * HIDDEN < around, np.nan, sparse)


def sky_of(
    image: UInt8[np.ndarray, "rows columns 3"], known: Mask, horizon: float, level: int
) -> Mask:
    """Find bright pixels above the horizon that reach the top of the image, away from points."""
    rows = np.arange(len(image))[:, None]
    blue, red = image[..., 2].astype(int), image[..., 0].astype(int)
    bright = (blue >= level) & (blue >= red - 10) & (rows < horizon)
    kernel = np.ones((2 * NEAR_POINT + 1, 2 * NEAR_POINT + 1), np.uint8)
    bright &= cv2.dilate(known.astype(np.uint8), kernel) == 0
    _, parts = cv2.connectedComponents(bright.astype(np.uint8), connectivity=4)
    return np.isin(parts, np.setdiff1d(parts[0], [0]))
