"""Other cars: each keeps its lane and its distance (the intelligent driver model).

    a = a_max (1 - (v / v0)^4 - (g* / g)^2),   g* = g0 + v T + v dv / (2 sqrt(a_max b))

(Treiber, Hennecke, Helbing, 2000). They slow for curves and see the recorded car as one of them.
Where it is asked for, some stop for a while, and one cuts in ahead of the recorded car; otherwise
they keep their lane. All positions are kept along the recorded car's lane. Pure kinematics; it does
not know MetaDrive.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from drive_envs.human import Lead, blend
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
STOP_BRAKING = 2.0  # m/s^2, of a car that stops for no other
STOP_DURATION = (3.0, 15.0)  # s
STOPS_FROM, STOPS_UNTIL = -8.0, 16.0  # s: cars may stand when the drive begins
CUT_IN_DURATION = 3.0  # s
CUT_IN_GAP = (0.5, 1.6)  # s behind the car that cuts in, besides `CUT_IN_ROOM`
CUT_IN_ROOM = 6.0  # m
CUT_IN_SPEED = 0.75  # of ours, least, and of the car ahead's
NEVER = np.inf

Series = Float[np.ndarray, " cars"]
Kinds = Int[np.ndarray, " cars"]


@dataclass(frozen=True, kw_only=True)
class TrafficConfig:
    """How much traffic there is.

    share: of the drives that have any. spacing: m between cars of one lane, (low, high).
    relative_speed: wished speed relative to that of the recorded driver, (low, high).
    stopping_share: of the cars, which stop once for 3 to 15 s. cut_in_share: of the drives with
    traffic; there the first car of another lane that can does change to the recorded car's.
    """

    share: float = 0.4
    spacing: tuple[float, float] = (80.0, 300.0)
    relative_speed: tuple[float, float] = (0.6, 1.1)
    stopping_share: float = 0.0
    cut_in_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("share", "stopping_share", "cut_in_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"traffic.{name} must be 0 to 1, got {getattr(self, name)}")
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


@dataclass(kw_only=True)
class Cars:
    """Cars of one lane, arrays (cars,): s m along it, speed and wished speed m/s, kind.

    stop_begin, stop_end: s, when each stands or brakes to. shift: m left of the lane's centre from
    which each comes since `shift_begin` s.
    """

    s: Series
    speed: Series
    wished_speed: Series
    kind: Kinds
    stop_begin: Series
    stop_end: Series
    shift: Series
    shift_begin: Series

    @classmethod
    def of(cls, s: Series, speed: Series, wished_speed: Series, kind: Kinds) -> "Cars":
        """Make cars that never stop and are in the middle of their lane."""
        never, zero = np.full(len(s), NEVER), np.zeros(len(s))
        return cls(
            s=s,
            speed=speed,
            wished_speed=wished_speed,
            kind=kind,
            stop_begin=never,
            stop_end=never,
            shift=zero,
            shift_begin=zero,
        )

    def __len__(self) -> int:
        return len(self.s)

    def taken(self, which: np.ndarray) -> "Cars":
        """Return some of the cars, by mask or number."""
        return Cars(**{name: value[which] for name, value in vars(self).items()})

    def joined(self, other: "Cars") -> "Cars":
        """Return these cars and others."""
        return Cars(
            **{n: np.concatenate([value, getattr(other, n)]) for n, value in vars(self).items()}
        )

    def offset(self, time: float) -> Series:
        """Return where they are at `time` s, m left of the lane's centre."""
        u = ((time - self.shift_begin) / CUT_IN_DURATION).clip(0.0, 1.0)
        return self.shift * (1 - blend(u))


class LaneTraffic:
    """The cars of one lane, since `time` s."""

    def __init__(self, line: Centerline, ego_line: Centerline, *, is_oncoming: bool) -> None:
        self.line, self.is_oncoming = line, is_oncoming
        # Lanes run in parallel: a table turns s on one into s on the other, whatever the curves.
        self._ego_grid = np.arange(0.0, ego_line.length + GRID, GRID)
        self._grid, left = line.locate(ego_line.poses(self._ego_grid)[:, :2])
        self.side = float(left[0]) if is_oncoming else -float(left[0])
        none = np.empty(0)
        self.cars = Cars.of(none, none, none, np.empty(0, int))
        self.time = 0.0

    def along(self, ego_s: float) -> float:
        """Return s on this lane beside a point of the ego's."""
        return float(np.interp(ego_s, self._ego_grid, self._grid))

    @property
    def ego_s(self) -> Float[np.ndarray, " cars"]:
        """Where the cars are along the ego's line, in metres."""
        order = slice(None, None, -1) if self.is_oncoming else slice(None)
        return np.interp(self.cars.s, self._grid[order], self._ego_grid[order])

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
        self.time += duration
        cars = self.cars
        if not len(cars):
            return
        obstacles = np.array([*([] if ego is None else [ego]), (self.line.length, 0.0)])
        obstacles = np.concatenate([np.stack([cars.s, cars.speed], -1), obstacles])
        obstacles = obstacles[obstacles[:, 0].argsort()]
        nearest = np.searchsorted(obstacles[:, 0], cars.s, side="right").clip(
            max=len(obstacles) - 1
        )
        ahead, ahead_speed = obstacles[nearest].T
        gap = (ahead - cars.s - CAR_LENGTH).clip(0.1)
        closing = (
            cars.speed * (cars.speed - ahead_speed) / (2 * np.sqrt(MAX_ACCELERATION * BRAKING))
        )
        wanted = STANDSTILL_GAP + (cars.speed * TIME_GAP + closing).clip(0.0)
        wished = np.minimum(cars.wished_speed, self.limit_at(cars.s + cars.speed * duration))
        acceleration = MAX_ACCELERATION * (1 - (cars.speed / wished) ** 4 - (wanted / gap) ** 2)
        is_stopping = (cars.stop_begin < self.time) & (self.time <= cars.stop_end)
        acceleration[is_stopping] = acceleration[is_stopping].clip(max=-STOP_BRAKING)
        speed = (cars.speed + acceleration.clip(-MAX_BRAKING) * duration).clip(0.0)
        cars.s = cars.s + (cars.speed + speed) / 2 * duration
        cars.speed = speed


@dataclass(kw_only=True)
class Traffic:
    """The cars of all lanes of a road, both ways; no lanes is no traffic.

    will_cut_in: whether a car is to change to the ego's lane, as soon as one can.
    """

    lanes: tuple[LaneTraffic, ...] = ()
    will_cut_in: bool = False

    @property
    def num_cars(self) -> int:
        """How many cars there are on the road."""
        return sum(len(lane.cars) for lane in self.lanes)

    def advance(self, ego: Ego, duration: float) -> None:
        """Let every car drive on for `duration` s."""
        for lane in self.lanes:
            here = None
            if abs(ego.offset - lane.side) < CAR_WIDTH + SAFETY:
                speed = -ego.speed if lane.is_oncoming else ego.speed
                here = (lane.along(ego.s), speed)
            lane.advance(here, duration)
        if self.will_cut_in:
            self.will_cut_in = not self._cut_in(ego)

    def _cut_in(self, ego: Ego) -> bool:
        """Have a car change to the ego's lane, closely ahead of it; tell whether one could."""
        same_way = [lane for lane in self.lanes if not lane.is_oncoming]
        for goal in (lane for lane in same_way if abs(lane.side - ego.offset) < CAR_WIDTH / 2):
            for lane in same_way:
                gap = lane.ego_s - ego.s - CAR_LENGTH - CUT_IN_ROOM
                near, far = (seconds * ego.speed for seconds in CUT_IN_GAP)
                can = (near < gap) & (gap < far) & (lane.cars.speed > CUT_IN_SPEED * ego.speed)
                if lane is goal or ego.speed < MIN_SPEED or not can.any():
                    continue
                which = int(np.flatnonzero(can)[0])
                s, speed = lane.ego_s[which], lane.cars.speed[which]
                room = goal.ego_s - s - CAR_LENGTH - CUT_IN_ROOM
                is_near = np.abs(goal.ego_s - s) < CAR_LENGTH + CUT_IN_ROOM
                is_slow = (room > 0) & (speed**2 - goal.cars.speed**2 > 2 * BRAKING * room)
                if (is_near | is_slow).any():
                    continue
                car = lane.cars.taken(np.array([which]))
                car.s = np.array([goal.along(s)])
                car.shift = np.array([lane.side - goal.side])
                car.shift_begin = np.array([goal.time])
                lane.cars = lane.cars.taken(np.arange(len(lane.cars)) != which)
                goal.cars = goal.cars.joined(car)
                return True
        return False

    def poses(self, ego: Ego) -> dict[str, Float[np.ndarray, "cars 3"]]:
        """Return, by model, the world poses (x, y, yaw) of the cars in sight of the ego."""
        poses: dict[str, list[np.ndarray]] = {kind: [np.empty((0, 3))] for kind in KINDS}
        for lane in self.lanes:
            near = np.abs(lane.ego_s - ego.s) < VISIBLE
            for number, kind in enumerate(KINDS):
                which = near & (lane.cars.kind == number)
                offset = lane.cars.offset(lane.time)[which]
                poses[kind].append(lane.line.poses(lane.cars.s[which], offset))
        return {kind: np.concatenate(found) for kind, found in poses.items()}

    def lead(self, ego: Ego, tracks: tuple[float, ...]) -> Lead | None:
        """Return the next car ahead that overlaps a track, in metres left of the ego's line."""
        leads = []
        for lane in self.lanes:
            if lane.is_oncoming or not any(abs(lane.side - y) < CAR_WIDTH + SAFETY for y in tracks):
                continue
            gap = lane.ego_s - ego.s - CAR_LENGTH
            leads += [
                Lead(gap=float(gap[i]), speed=float(lane.cars.speed[i]))
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
                lane.cars = lane.cars.taken(keep)
            lanes.append(lane)
    # What is drawn only where it is asked for is drawn last: it must not change anything else.
    for lane in lanes if config.stopping_share else ():
        _let_stop(lane.cars, config.stopping_share, rng)
    will_cut_in = bool(config.cut_in_share and rng.random() < config.cut_in_share)
    return Traffic(lanes=tuple(lanes), will_cut_in=will_cut_in)


def _let_stop(cars: Cars, share: float, rng: np.random.Generator) -> None:
    """Draw who stops, and when; who has stopped before the drive begins stands.

    Those behind are as slow as they have to be to stop, too.
    """
    begin = rng.uniform(STOPS_FROM, STOPS_UNTIL, size=len(cars))
    end = begin + rng.uniform(*STOP_DURATION, size=len(cars))
    stops = rng.random(len(cars)) < share
    cars.stop_begin = np.where(stops, begin, NEVER)
    cars.stop_end = np.where(stops, end, NEVER)
    cars.speed = np.where((cars.stop_begin < 0) & (cars.stop_end > 0), 0.0, cars.speed)
    order = cars.s.argsort()[::-1]
    for ahead, behind in pairwise(order.tolist()):
        room = max(0.0, cars.s[ahead] - cars.s[behind] - CAR_LENGTH - STANDSTILL_GAP)
        most = np.sqrt(cars.speed[ahead] ** 2 + 2 * BRAKING * room)
        cars.speed[behind] = min(cars.speed[behind], most)


def _populate(
    lane: LaneTraffic, config: TrafficConfig, rng: np.random.Generator, speed: float
) -> None:
    """Draw the cars of a lane."""
    low, high = config.spacing
    s = np.cumsum(rng.uniform(low, high, size=int(lane.line.length / low) + 1)) - low
    s = s[s < lane.line.length - 2 * CAR_LENGTH]
    relative = rng.uniform(*config.relative_speed, size=len(s))
    wished_speed = (speed * relative).clip(MIN_SPEED)
    now = np.minimum(wished_speed, lane.limit_at(s))
    lane.cars = Cars.of(s, now, wished_speed, rng.integers(len(KINDS), size=len(s)))
