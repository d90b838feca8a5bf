"""A drive before it is filmed: a random road, a person, and perhaps traffic, over time.

Pure kinematics, repeatable from its seeds. It does not know what any of it looks like.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from drive_envs.human import Driver, Human, HumanConfig, LaneChange, draw_driver
from drive_envs.plan import STEP
from drive_envs.random_roads import RoadsConfig, random_road
from drive_envs.roads import Road, lane_centerline
from drive_envs.traffic import CAR_WIDTH, Ego, Traffic, TrafficConfig, random_traffic

WARM_UP = 10  # steps before the recording begins
START = 25.0  # m along the lane where the warm-up begins
SIGHT = 150.0  # m of road beyond where the drive ends
BESIDE_LINE = 0.1  # m that a preference leaves between the side of the car and the line
LANE_CHANGE_GAPS = (1.2, 2.0)  # s to the car behind and in front that a lane change needs


class DropError(ValueError):
    """A drive that is not worth keeping; `cause` is why, in a word or two."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"the drive is dropped: {cause}")


@dataclass(frozen=True, kw_only=True)
class DriveConfig:
    """What drives are drawn from. `seconds` long; `lane_change_fraction` of them change lanes."""

    seconds: float = 40.0
    lane_change_fraction: float = 0.15
    human: HumanConfig = field(default_factory=HumanConfig)
    roads: RoadsConfig = field(default_factory=RoadsConfig)
    traffic: TrafficConfig = field(default_factory=TrafficConfig)

    def __post_init__(self) -> None:
        if not 2 * STEP <= self.seconds <= 60:
            raise ValueError(f"seconds must be 0.4 to 60 (a segment), got {self.seconds}")
        if not 0 <= self.lane_change_fraction <= 1:
            given = self.lane_change_fraction
            raise ValueError(f"lane_change_fraction must be 0 to 1, got {given}")


@dataclass(frozen=True, kw_only=True)
class Drive:
    """What happened, N rows `STEP` apart.

    poses (N, 3) world x, y, yaw; speed (N,) m/s; offset (N,) m left of the first lane's centre;
    desire (N,); cars: per row and model the poses (cars, 3) of those in sight.
    """

    road: Road
    lane: int
    opposite: bool
    driver: Driver
    poses: Float[np.ndarray, "rows 3"]
    speed: Float[np.ndarray, " rows"]
    offset: Float[np.ndarray, " rows"]
    desire: Int[np.ndarray, " rows"]
    cars: list[dict[str, Any]]
    num_cars: int


@dataclass(kw_only=True)
class Trip:
    """A road, who drives on it and among whom; `human` and `traffic` move on as they drive.

    wish: a lane change that is yet to be made.
    """

    road: Road
    lane: int
    opposite: bool
    human: Human
    traffic: Traffic
    wish: LaneChange | None


def random_drive(config: DriveConfig, rng: np.random.Generator) -> Drive:
    """Draw and drive one drive; DropError when there was a collision or the road ended.

    ValueError when no road is long enough, see `random_road`.
    """
    trip = random_trip(config, rng)
    human = trip.human
    rows = list(_drive(human, trip.traffic, trip.wish, round(config.seconds / STEP)))
    if human.line.length - human.s < SIGHT / 2:
        raise DropError("end of the road")
    poses, speed, offset, desire, cars = zip(*rows, strict=True)
    return Drive(
        road=trip.road,
        lane=trip.lane,
        opposite=trip.opposite,
        driver=human.driver,
        poses=np.array(poses),
        speed=np.array(speed),
        offset=np.array(offset),
        desire=np.array(desire),
        cars=list(cars),
        num_cars=trip.traffic.num_cars,
    )


def random_trip(config: DriveConfig, rng: np.random.Generator) -> Trip:
    """Draw a trip before its warm-up; ValueError when no road is long enough."""
    driver = draw_driver(config.human, rng)
    num_rows = round(config.seconds / STEP)
    length = driver.speed * (num_rows + WARM_UP) * STEP + SIGHT + START
    is_changing = bool(rng.random() < config.lane_change_fraction)
    road = random_road(_with_lanes(config.roads, 1 + is_changing), rng, length)
    limit = max(0.0, (road.lane_width - CAR_WIDTH) / 2 - BESIDE_LINE)
    driver = replace(driver, preference=float(np.clip(driver.preference, -limit, limit)))
    lane, opposite = int(rng.integers(road.lane_count)), bool(rng.random() < 0.5)
    line = lane_centerline(road, lane, opposite=opposite)
    human = Human(line, driver, start=START, lane_change=None)
    traffic = Traffic()
    if rng.random() < config.traffic.share:
        where = (lane, opposite)
        traffic = random_traffic(road, where, config.traffic, rng, seen(human), driver.speed)
    wish = _random_wish(config, road, lane, rng) if is_changing else None
    return Trip(road=road, lane=lane, opposite=opposite, human=human, traffic=traffic, wish=wish)


def _with_lanes(config: RoadsConfig, least: int) -> RoadsConfig:
    low, high = config.lane_count
    return replace(config, lane_count=(min(max(low, least), high), high))


def _random_wish(
    config: DriveConfig, road: Road, lane: int, rng: np.random.Generator
) -> LaneChange | None:
    """Draw a change to a neighbouring lane; None when there is no lane or no time for one."""
    duration = float(rng.uniform(*config.human.lane_change_duration))
    earliest = WARM_UP * STEP + 3.0
    latest = WARM_UP * STEP + config.seconds - duration - 2.0
    neighbours = [other for other in (lane - 1, lane + 1) if 0 <= other < road.lane_count]
    if not neighbours or latest <= earliest:
        return None
    other = neighbours[rng.integers(len(neighbours))]
    return LaneChange(
        start=float(rng.uniform(earliest, latest)),
        offset=(lane - other) * road.lane_width,
        duration=duration,
    )


def _drive(
    human: Human, traffic: Traffic, wish: LaneChange | None, num_rows: int
) -> Iterator[tuple[Any, ...]]:
    """Drive, and yield pose, speed, offset, desire and the cars in sight after the warm-up."""
    for step in range(WARM_UP + num_rows):
        ego = seen(human)
        if traffic.collides(ego):
            raise DropError("collision")
        if wish is not None and human.time >= wish.start:
            # Waits for a gap, which may never come.
            behind, ahead = (gap * human.speed + 8.0 for gap in LANE_CHANGE_GAPS)
            if traffic.is_clear(ego, wish.offset, behind, ahead):
                human.lane_change, wish = replace(wish, start=human.time), None
        if step >= WARM_UP:
            yield human.pose.copy(), human.speed, human.offset, human.desire, traffic.poses(ego)
        goal = 0.0 if human.lane_change is None else human.lane_change.offset
        tracks = (human.offset, goal)
        human.advance(traffic.lead(ego, tracks))
        traffic.advance(ego, STEP)


def seen(human: Human) -> Ego:
    """Return the driver's car as traffic sees it."""
    return Ego(s=human.s, offset=human.offset, speed=human.speed)
