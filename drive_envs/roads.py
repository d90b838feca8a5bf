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
from math import radians
from typing import Any, Literal

import numpy as np

from drive_envs.centerline import Arc, Centerline


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
    def _reference(self) -> tuple[Arc, ...]:
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
