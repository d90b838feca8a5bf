"""Roads as data: straights and curves in a row, with lanes in both directions.

A road is MetaDrive's: it begins with a straight entry, each block goes on where the last one ended,
and the blocks describe the centre of the rightmost lane. Lane 0 is the leftmost one, beside the
yellow line; the lanes of the opposite direction lie beyond that line and count the same way.

Here s is metres along a lane's centre, offsets are metres to the LEFT of it, curvature is 1/m,
positive to the left. (MetaDrive's own `local_coordinates` are positive to the right.) Traffic
drives on the right. It does not know of MetaDrive's objects, and imports nothing of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import pi, radians
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Block:
    """A straight (S: `length` m) or a curve (C) and the straight after it (`length` m).

    `radius` m is that of the rightmost lane's centre, `angle_deg` the change of heading, `turn` its
    direction.
    """

    kind: Literal["S", "C"]
    length: float
    radius: float = 0.0
    angle_deg: float = 0.0
    turn: Literal["left", "right"] = "left"

    def __post_init__(self) -> None:
        if self.kind not in ("S", "C"):
            raise ValueError(f"a block is S (straight) or C (curve), got '{self.kind}'")
        if self.turn not in ("left", "right"):
            raise ValueError(f"a curve turns left or right, got '{self.turn}'")
        if not self.length > 0:
            raise ValueError(f"a block of kind {self.kind} needs length > 0 m, got {self.length}")
        if self.kind == "C" and not (self.radius > 0 and 0 < self.angle_deg <= 180):
            given = f"{self.radius} m and {self.angle_deg} degrees"
            raise ValueError(f"a curve needs radius > 0 and 0 < angle_deg <= 180, got {given}")


@dataclass(frozen=True, kw_only=True)
class Road:
    """Blocks in a row; `lane_count` lanes of `lane_width` m each way; `entry_length` m of entry."""

    blocks: tuple[Block, ...]
    lane_count: int = 2
    lane_width: float = 3.5
    entry_length: float = 30.0

    def __post_init__(self) -> None:
        if not 1 <= self.lane_count <= 3:
            raise ValueError(f"lane_count must be 1, 2 or 3, got {self.lane_count}")
        if not 2.5 <= self.lane_width <= 5.0:
            raise ValueError(f"lane_width must be 2.5 to 5 m, got {self.lane_width}")
        if not self.entry_length > 10.0:
            raise ValueError(f"entry_length must be more than 10 m, got {self.entry_length}")
        tightest = min((b.radius for b in self.blocks if b.kind == "C"), default=np.inf)
        if tightest <= (needed := 2 * self.lane_count * self.lane_width):
            lanes = f"{self.lane_count} lanes of {self.lane_width} m each way"
            raise ValueError(f"{lanes} need a radius of more than {needed} m, got {tightest}")

    def fingerprint(self) -> str:
        """Return a text that two roads share exactly when they are the same to a millimetre."""
        blocks = (
            f"S{b.length:.3f}"
            if b.kind == "S"
            else f"C{b.radius:.3f}{b.turn[0]}{b.angle_deg:.3f}+{b.length:.3f}"
            for b in self.blocks
        )
        lanes = f"{self.lane_count}x{self.lane_width:.3f}"
        return " ".join((lanes, f"I{self.entry_length:.3f}", *blocks))

    @property
    def length(self) -> float:
        """Metres along the centre of the rightmost lane, entry included."""
        return float(sum(arc.length for arc in self._reference))

    @property
    def extent(self) -> float:
        """Half the side in metres of the square around (0, 0) that holds all of its lanes."""
        line = Centerline(arcs=self._reference)
        points = line.poses(np.arange(0.0, line.length, 2.0))[:, :2]
        return float(np.abs(points).max()) + 2 * self.lane_count * self.lane_width

    def map_config(self) -> dict[str, Any]:
        """Return MetaDrive's `map_config` that builds this road."""
        blocks: list[dict[str, Any] | None] = [None]
        for b in self.blocks:
            block = {"id": b.kind, "pre_block_socket_index": 0, "length": b.length}
            if b.kind == "C":
                turn = {"radius": b.radius, "angle": b.angle_deg, "dir": int(b.turn == "right")}
                block |= turn
            blocks.append(block)
        first = self._reference[0]
        return {
            "type": "pg_map_file",
            "config": blocks,
            "lane_num": self.lane_count,
            "lane_width": self.lane_width,
            "exit_length": self.entry_length,
            "start_position": [first.x, first.y],
        }

    @cached_property
    def _reference(self) -> tuple["Arc", ...]:
        """The rightmost lane's centre, placed so that the road's bounding box is around (0, 0)."""
        arcs = [Arc(x=0.0, y=0.0, yaw=0.0, length=self.entry_length, curvature=0.0)]
        for block in self.blocks:
            if block.kind == "C":
                sign = 1.0 if block.turn == "left" else -1.0
                bend = radians(block.angle_deg) * block.radius
                arcs.append(arcs[-1].next(bend, sign / block.radius))
            arcs.append(arcs[-1].next(block.length, 0.0))
        line = Centerline(arcs=tuple(arcs))
        points = line.poses(np.arange(0.0, line.length, 1.0))[:, :2]
        x, y = (points.min(axis=0) + points.max(axis=0)) / 2
        return tuple(arc.moved(-float(x), -float(y)) for arc in arcs)


@dataclass(frozen=True, kw_only=True)
class Arc:
    """A piece of constant curvature (1/m, left positive) that begins at (x, y, yaw)."""

    x: float
    y: float
    yaw: float
    length: float
    curvature: float

    def poses(self, s: np.ndarray) -> np.ndarray:
        """Return (N, 3) poses at arc lengths s (N,); beyond the ends the arc goes on."""
        half = self.curvature * s / 2
        chord = s * np.sinc(half / pi)
        yaw = self.yaw + half
        return np.stack(
            [self.x + chord * np.cos(yaw), self.y + chord * np.sin(yaw), self.yaw + 2 * half], -1
        )

    def locate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return s (N,) and the offset to the left (N,) of points (N, 2), s not yet clamped."""
        # In the frame of the middle, where the angle to a point cannot wrap on the arc.
        x, y, yaw = self.poses(np.array([self.length / 2]))[0]
        dx, dy = points[:, 0] - x, points[:, 1] - y
        ahead = np.cos(yaw) * dx + np.sin(yaw) * dy
        left = np.cos(yaw) * dy - np.sin(yaw) * dx
        if self.curvature == 0:
            return self.length / 2 + ahead, left
        radius = 1 / abs(self.curvature)
        toward = left * np.sign(self.curvature)  # offset toward the centre of the circle
        angle = np.arctan2(ahead, radius - toward)
        offset = np.sign(self.curvature) * (radius - np.hypot(ahead, radius - toward))
        return self.length / 2 + radius * angle, offset

    def next(self, length: float, curvature: float) -> "Arc":
        """Return the arc that goes on from the end of this one."""
        x, y, yaw = (float(value) for value in self.poses(np.array([self.length]))[0])
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
        x, y, yaw = (float(value) for value in self.poses(np.array([self.length]))[0])
        return Arc(x=x, y=y, yaw=yaw + pi, length=self.length, curvature=-self.curvature)


@dataclass(frozen=True, kw_only=True)
class Centerline:
    """The centre of one lane: arcs in a row, in driving direction."""

    arcs: tuple[Arc, ...]

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each arc begins, in metres along the lane."""
        return np.concatenate([[0.0], np.cumsum([arc.length for arc in self.arcs])[:-1]])

    @property
    def length(self) -> float:
        """Metres from the road's beginning to its end along this lane."""
        return float(sum(arc.length for arc in self.arcs))

    def poses(self, s: np.ndarray, offset: np.ndarray | float = 0.0) -> np.ndarray:
        """Return world poses (N, 3) at s (N,), `offset` metres to the left, heading along the lane.

        Beyond its ends the lane goes on as its first and last arc do.
        """
        s = np.asarray(s, float)
        index = np.searchsorted(self.starts[1:], s, side="right")
        poses = np.empty((len(s), 3))
        for i in np.unique(index):
            here = index == i
            poses[here] = self.arcs[i].poses(s[here] - self.starts[i])
        poses[:, 0] -= offset * np.sin(poses[:, 2])
        poses[:, 1] += offset * np.cos(poses[:, 2])
        return poses

    def curvature(self, s: np.ndarray) -> np.ndarray:
        """Return the curvature (N,) at s (N,); it jumps where an arc begins."""
        curvatures = np.array([arc.curvature for arc in self.arcs])
        return curvatures[np.searchsorted(self.starts[1:], np.asarray(s, float), side="right")]

    def locate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return s (N,) and the offset to the left (N,) of world points (N, 2), by nearest arc."""
        points = np.asarray(points, float).reshape(-1, 2)
        best = np.full(len(points), np.inf)
        s, offset = np.zeros(len(points)), np.zeros(len(points))
        for i, (start, arc) in enumerate(zip(self.starts, self.arcs, strict=True)):
            along, left = arc.locate(points)
            first, last = i == 0, i == len(self.arcs) - 1
            clamped = along.clip(-np.inf if first else 0.0, np.inf if last else arc.length)
            distance = np.hypot(*(points - arc.poses(clamped)[:, :2]).T)
            near = distance < best
            best = np.where(near, distance, best)
            s = np.where(near, start + clamped, s)
            offset = np.where(near, left, offset)
        return s, offset


def lane_centerline(road: Road, lane: int, *, opposite: bool = False) -> Centerline:
    """Return the centre of a lane (0 leftmost), or of one in the opposite direction.

    ValueError when the road has no such lane.
    """
    if not 0 <= lane < road.lane_count:
        raise ValueError(
            f"lane {lane} does not exist: the road has lanes 0 to {road.lane_count - 1}"
        )
    steps = road.lane_count + lane if opposite else road.lane_count - 1 - lane
    arcs: Iterable[Arc] = (arc.beside(steps * road.lane_width) for arc in road._reference)
    if opposite:
        arcs = reversed([arc.reversed() for arc in arcs])
    return Centerline(arcs=tuple(arcs))
