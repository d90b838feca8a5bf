"""Other cars: each keeps its lane and its distance (the intelligent driver model).

    a = a_max (1 - (v / v0)^4 - (g* / g)^2),   g* = g0 + v T + v dv / (2 sqrt(a_max b))

(Treiber, Hennecke, Helbing, 2000). They slow for curves, never change lanes, and see the recorded
car as one of them. All positions are kept along the recorded car's lane. Pure kinematics; it does
not know MetaDrive.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from drive_envs.human import Lead
from drive_envs.roads import Centerline, Road, lane_centerline

KINDS = ("s", "m")  # models of cars
CAR_LENGTH, CAR_WIDTH = 4.6, 1.9  # m; of the larger model
CURVE_ACCELERATION = 2.0  # m/s^2, lateral
MAX_ACCELERATION, BRAKING, MAX_BRAKING = 1.2, 1.8, 6.0  # m/s^2
STANDSTILL_GAP, TIME_GAP = 4.0, 1.5  # m, s
MIN_SPEED = 3.0  # m/s wished for, at least
SAFETY = 0.5  # m around the cars that counts as a collision
VISIBLE = 140.0  # m around the recorded car within which cars are shown
GRID = 2.0  # m between the points of tabulated curves


@dataclass(frozen=True, kw_only=True)
class TrafficConfig:
    """How much traffic there is.

    share: of the drives that have any. spacing: m between cars of one lane, (low, high).
    relative_speed: wished speed relative to that of the recorded driver, (low, high).
    """

    share: float = 0.4
    spacing: tuple[float, float] = (80.0, 300.0)
    relative_speed: tuple[float, float] = (0.6, 1.1)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"traffic.share must be 0 to 1, got {self.share}")
        if not 4 * CAR_LENGTH <= self.spacing[0] <= self.spacing[1]:
            raise ValueError(f"traffic.spacing must be a range above 18.4 m, got {self.spacing}")
        if not 0 < self.relative_speed[0] <= self.relative_speed[1]:
            raise ValueError(f"traffic.relative_speed must be a range, got {self.relative_speed}")


@dataclass(frozen=True, kw_only=True)
class Ego:
    """The recorded car: s and offset (m, left) on its own line, speed in m/s."""

    s: float
    offset: float
    speed: float


class LaneTraffic:
    """The cars of one lane: s (cars,) m along it, speed and wished speed (cars,) m/s, kind."""

    def __init__(self, line: Centerline, ego_line: Centerline, *, is_oncoming: bool) -> None:
        self.line, self.is_oncoming = line, is_oncoming
        # Lanes run in parallel: a table turns s on one into s on the other, whatever the curves.
        self._ego_grid = np.arange(0.0, ego_line.length + GRID, GRID)
        self._grid, left = line.locate(ego_line.poses(self._ego_grid)[:, :2])
        self.side = float(left[0]) if is_oncoming else -float(left[0])
        self.s, self.speed, self.wished_speed = np.empty((3, 0))
        self.kind = np.empty(0, int)

    def along(self, ego_s: float) -> float:
        """Return s on this lane beside a point of the ego's."""
        return float(np.interp(ego_s, self._ego_grid, self._grid))

    @property
    def ego_s(self) -> Float[np.ndarray, " cars"]:
        """Where the cars are along the ego's line, in metres."""
        order = slice(None, None, -1) if self.is_oncoming else slice(None)
        return np.interp(self.s, self._grid[order], self._ego_grid[order])

    @cached_property
    def limit(self) -> Float[np.ndarray, " points"]:
        """Speed in m/s every `GRID` m that is comfortable in, and ahead of, the curves."""
        s = np.arange(0.0, self.line.length + GRID, GRID)
        limit = np.sqrt(CURVE_ACCELERATION / np.abs(self.line.curvature(s)).clip(1e-6))
        for i in range(len(limit) - 2, -1, -1):
            limit[i] = min(limit[i], np.sqrt(limit[i + 1] ** 2 + 2 * BRAKING * GRID))
        return limit

    def limit_at(self, s: Float[np.ndarray, " cars"]) -> Float[np.ndarray, " cars"]:
        """Return the comfortable speed at s."""
        return np.interp(s, GRID * np.arange(len(self.limit)), self.limit)

    def advance(self, ego: tuple[float, float] | None, duration: float) -> None:
        """Drive on for `duration` s. `ego` is s and speed of the recorded car, if it is here.

        The end of the road is like a car that stands there.
        """
        if not len(self.s):
            return
        obstacles = np.array([*([] if ego is None else [ego]), (self.line.length, 0.0)])
        obstacles = np.concatenate([np.stack([self.s, self.speed], -1), obstacles])
        obstacles = obstacles[obstacles[:, 0].argsort()]
        nearest = np.searchsorted(obstacles[:, 0], self.s, side="right").clip(
            max=len(obstacles) - 1
        )
        ahead, ahead_speed = obstacles[nearest].T
        gap = (ahead - self.s - CAR_LENGTH).clip(0.1)
        closing = (
            self.speed * (self.speed - ahead_speed) / (2 * np.sqrt(MAX_ACCELERATION * BRAKING))
        )
        wanted = STANDSTILL_GAP + (self.speed * TIME_GAP + closing).clip(0.0)
        wished = np.minimum(self.wished_speed, self.limit_at(self.s + self.speed * duration))
        acceleration = MAX_ACCELERATION * (1 - (self.speed / wished) ** 4 - (wanted / gap) ** 2)
        speed = (self.speed + acceleration.clip(-MAX_BRAKING) * duration).clip(0.0)
        self.s = self.s + (self.speed + speed) / 2 * duration
        self.speed = speed


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The cars of all lanes of a road, both ways; no lanes is no traffic."""

    lanes: tuple[LaneTraffic, ...] = ()

    @property
    def num_cars(self) -> int:
        """How many cars there are on the road."""
        return sum(len(lane.s) for lane in self.lanes)

    def advance(self, ego: Ego, duration: float) -> None:
        """Let every car drive on for `duration` s."""
        for lane in self.lanes:
            here = None
            if abs(ego.offset - lane.side) < CAR_WIDTH + SAFETY:
                speed = -ego.speed if lane.is_oncoming else ego.speed
                here = (lane.along(ego.s), speed)
            lane.advance(here, duration)

    def poses(self, ego: Ego) -> dict[str, Float[np.ndarray, "cars 3"]]:
        """Return, by model, the world poses (x, y, yaw) of the cars in sight of the ego."""
        poses: dict[str, list[np.ndarray]] = {kind: [np.empty((0, 3))] for kind in KINDS}
        for lane in self.lanes:
            near = np.abs(lane.ego_s - ego.s) < VISIBLE
            for number, kind in enumerate(KINDS):
                poses[kind].append(lane.line.poses(lane.s[near & (lane.kind == number)]))
        return {kind: np.concatenate(found) for kind, found in poses.items()}

    def lead(self, ego: Ego, tracks: tuple[float, ...]) -> Lead | None:
        """Return the next car ahead that overlaps a track, in metres left of the ego's line."""
        leads = []
        for lane in self.lanes:
            if lane.is_oncoming or not any(abs(lane.side - y) < CAR_WIDTH + SAFETY for y in tracks):
                continue
            gap = lane.ego_s - ego.s - CAR_LENGTH
            leads += [
                Lead(gap=float(gap[i]), speed=float(lane.speed[i]))
                for i in np.flatnonzero((gap > -CAR_LENGTH) & (gap < VISIBLE))
            ]
        return min(leads, default=None)

    def is_clear(self, ego: Ego, side: float, behind: float, ahead: float) -> bool:
        """Tell whether the lane `side` m to the left has no car from `behind` to `ahead` m."""
        return not any(
            ((lane.ego_s > ego.s - behind) & (lane.ego_s < ego.s + ahead)).any()
            for lane in self.lanes
            if abs(lane.side - side) < CAR_WIDTH
        )

    def collides(self, ego: Ego) -> bool:
        """Tell whether a car is within `SAFETY` m of touching the ego's."""
        return any(
            (np.abs(lane.ego_s - ego.s) < CAR_LENGTH + SAFETY).any()
            for lane in self.lanes
            if abs(lane.side - ego.offset) < CAR_WIDTH + SAFETY / 2
        )


def random_traffic(
    road: Road,
    ego_lane: tuple[int, bool],
    config: TrafficConfig,
    rng: np.random.Generator,
    ego: Ego,
    speed: float,
) -> Traffic:
    """Spread cars over all lanes, leaving room around the ego, whose driver likes `speed` m/s.

    `ego_lane` is the number of the ego's lane and whether it is one of the opposite direction.
    """
    ego_line = lane_centerline(road, ego_lane[0], opposite=ego_lane[1])
    lanes = []
    for opposite in (False, True):
        for number in range(road.lane_count):
            line = lane_centerline(road, number, opposite=opposite)
            lane = LaneTraffic(line, ego_line, is_oncoming=opposite != ego_lane[1])
            _populate(lane, config, rng, speed)
            if abs(lane.side - ego.offset) < road.lane_width:
                keep = np.abs(lane.ego_s - ego.s) > 2.0 * ego.speed + 25.0
                lane.s, lane.speed, lane.wished_speed, lane.kind = (
                    values[keep] for values in (lane.s, lane.speed, lane.wished_speed, lane.kind)
                )
            lanes.append(lane)
    return Traffic(lanes=tuple(lanes))


def _populate(
    lane: LaneTraffic, config: TrafficConfig, rng: np.random.Generator, speed: float
) -> None:
    """Draw the cars of a lane."""
    low, high = config.spacing
    s = np.cumsum(rng.uniform(low, high, size=int(lane.line.length / low) + 1)) - low
    lane.s = s[s < lane.line.length - 2 * CAR_LENGTH]
    relative = rng.uniform(*config.relative_speed, size=len(lane.s))
    lane.wished_speed = (speed * relative).clip(MIN_SPEED)
    lane.speed = np.minimum(lane.wished_speed, lane.limit_at(lane.s))
    lane.kind = rng.integers(len(KINDS), size=len(lane.s))
