"""Lines made of straights and circular arcs: the centre of a lane, exactly.

s is metres along the line, offsets are metres to the LEFT of it, curvature is 1/m, positive to the
left. It does not know what a road is.
"""

from dataclasses import dataclass
from functools import cached_property
from math import pi

import numpy as np

Values = np.ndarray | np.floating


@dataclass(frozen=True, kw_only=True)
class Arc:
    """A piece of constant curvature (1/m, left positive) that begins at (x, y, yaw)."""

    x: float
    y: float
    yaw: float
    length: float
    curvature: float

    def pose(self, s: float) -> tuple[float, float, float]:
        """Return x, y, yaw at s; beyond the ends the arc goes on."""
        x, y, yaw = along_arc(*np.array([self.x, self.y, self.yaw, self.curvature, s]))
        return float(x), float(y), float(yaw)

    def next(self, length: float, curvature: float) -> "Arc":
        """Return the arc that goes on from the end of this one."""
        x, y, yaw = self.pose(self.length)
        return Arc(x=x, y=y, yaw=yaw, length=length, curvature=curvature)

    def moved(self, x: float, y: float) -> "Arc":
        """Return the arc shifted in the world."""
        return Arc(
            x=self.x + x, y=self.y + y, yaw=self.yaw, length=self.length, curvature=self.curvature
        )

    def beside(self, offset: float) -> "Arc":
        """Return the parallel arc `offset` metres to the left."""
        scale = 1 - self.curvature * offset
        return Arc(
            x=self.x - offset * float(np.sin(self.yaw)),
            y=self.y + offset * float(np.cos(self.yaw)),
            yaw=self.yaw,
            length=self.length * scale,
            curvature=self.curvature / scale,
        )

    def reversed(self) -> "Arc":
        """Return the same piece driven the other way."""
        x, y, yaw = self.pose(self.length)
        return Arc(x=x, y=y, yaw=yaw + pi, length=self.length, curvature=-self.curvature)


@dataclass(frozen=True, kw_only=True)
class Centerline:
    """The centre of one lane: arcs in a row, in driving direction."""

    arcs: tuple[Arc, ...]

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each arc begins, in metres along the lane."""
        return np.concatenate([[0.0], np.cumsum([arc.length for arc in self.arcs])[:-1]])

    @cached_property
    def length(self) -> float:
        """Metres from the road's beginning to its end along this lane."""
        return float(sum(arc.length for arc in self.arcs))

    @cached_property
    def _table(self) -> np.ndarray:
        """The arcs as rows x, y, yaw, curvature, length: (5, arcs)."""
        rows = [(arc.x, arc.y, arc.yaw, arc.curvature, arc.length) for arc in self.arcs]
        return np.array(rows).T

    def _index(self, s: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts[1:], s, side="right")

    def poses(self, s: np.ndarray, offset: np.ndarray | float = 0.0) -> np.ndarray:
        """Return world poses (N, 3) at s (N,), `offset` metres to the left, heading along the lane.

        Beyond its ends the lane goes on as its first and last arc do.
        """
        s = np.asarray(s, float)
        index = self._index(s)
        x, y, yaw, curvature, _ = self._table[:, index]
        x, y, yaw = along_arc(x, y, yaw, curvature, s - self.starts[index])
        return np.stack([x - offset * np.sin(yaw), y + offset * np.cos(yaw), yaw], axis=-1)

    def curvature(self, s: np.ndarray) -> np.ndarray:
        """Return the curvature (N,) at s (N,); it jumps where an arc begins."""
        return self._table[3, self._index(np.asarray(s, float))]

    def locate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return s (N,) and the offset to the left (N,) of world points (N, 2), by nearest arc."""
        points = np.asarray(points, float).reshape(-1, 1, 2)
        x, y, yaw, curvature, length = self._table
        # From the middle of an arc, where the angle to a point on it cannot wrap.
        middle_x, middle_y, middle_yaw = along_arc(x, y, yaw, curvature, length / 2)
        dx, dy = points[..., 0] - middle_x, points[..., 1] - middle_y
        cos, sin = np.cos(middle_yaw), np.sin(middle_yaw)
        along, offset = relative_to_arc(curvature, cos * dx + sin * dy, cos * dy - sin * dx)
        along = along + length / 2
        low, high = np.zeros_like(length), length.copy()
        low[0], high[-1] = -np.inf, np.inf
        clamped = np.clip(along, low, high)
        foot_x, foot_y, _ = along_arc(x, y, yaw, curvature, clamped)
        distance = np.hypot(points[..., 0] - foot_x, points[..., 1] - foot_y)
        row, best = np.arange(len(points)), distance.argmin(axis=1)
        return (self.starts + clamped)[row, best], np.asarray(offset)[row, best]


def along_arc(
    x: Values, y: Values, yaw: Values, curvature: Values, s: Values
) -> tuple[Values, Values, Values]:
    """Return x, y, yaw after s metres on arcs that begin at (x, y, yaw); all broadcast.

    The chord of a turn of 2 h is s sin(h) / h long and points h to the side.
    """
    half = curvature * s / 2
    chord = s * np.sinc(half / pi)
    return x + chord * np.cos(yaw + half), y + chord * np.sin(yaw + half), yaw + 2 * half


def relative_to_arc(curvature: Values, ahead: Values, left: Values) -> tuple[Values, Values]:
    """Turn Cartesian coordinates at a point of an arc into arc length from there and offset."""
    is_straight = curvature == 0
    radius = 1 / np.where(is_straight, 1.0, np.abs(curvature))
    toward = radius - left * np.sign(curvature)  # to the centre of the circle
    along = radius * np.arctan2(ahead, toward)
    offset = np.sign(curvature) * (radius - np.hypot(ahead, toward))
    return np.where(is_straight, ahead, along), np.where(is_straight, left, offset)
