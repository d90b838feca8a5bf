"""One moment of a drive, gone on with in several ways: what we do, and what the others do then.

A road with one lane each way: somebody drives ahead of us, and somebody comes towards us. Up to the
moment we drive as people do; from then on we hold our speed, or brake, or swerve towards those who
come. The others are those of `traffic`, who see our car: who comes towards us brakes when we are in
his way, and who is ahead does not care. So the same scene has several true continuations, against
which those that a world model makes can be held.

Pure kinematics, repeatable from its seeds.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from drive_envs.centerline import Centerline
from drive_envs.drives import DriveConfig, DropError, Trip, random_trip, seen
from drive_envs.human import HumanConfig, LaneChange
from drive_envs.plan import STEP
from drive_envs.random_roads import RoadsConfig
from drive_envs.roads import Road
from drive_envs.traffic import CAR_LENGTH, SAFETY, Ego, Traffic, TrafficConfig

MANOEUVRES = ("hold", "brake", "swerve")
WATCHED = ("ahead", "oncoming")  # the next car of our lane, and the next of those that come
NOBODY = -1
APPROACH = 75  # rows before the recording begins: time to close up to who is ahead
SPEED = 5.0  # m/s; who is slower has nothing to brake from

CarsInSight = dict[str, Float[np.ndarray, "cars 3"]]


def _drive_config() -> DriveConfig:
    return DriveConfig(
        lane_change_fraction=0.0,
        human=HumanConfig(preference_std=0.0, min_speed=8.0, max_speed=16.0, jerk=2.0),
        roads=RoadsConfig(radius=(120.0, 600.0), lane_count=(1, 1)),
        traffic=TrafficConfig(share=1.0, spacing=(30.0, 80.0), relative_speed=(0.6, 0.9)),
    )


@dataclass(frozen=True, kw_only=True)
class BranchesConfig:
    """What scenes are drawn from, and how they go on.

    braking: m/s^2. swerve: m to the left, within swerve_duration s. ahead, oncoming: m, ranges of
    how far these cars are at the moment. drive: what the drives before it are drawn from; `seconds`
    and the lanes are not asked.
    """

    braking: float = 2.5
    swerve: float = 1.5
    swerve_duration: float = 3.0
    ahead: tuple[float, float] = (10.0, 45.0)
    oncoming: tuple[float, float] = (40.0, 100.0)
    drive: DriveConfig = field(default_factory=_drive_config)

    def __post_init__(self) -> None:
        for name in ("braking", "swerve", "swerve_duration"):
            if getattr(self, name) <= 0:
                raise ValueError(f"branches.{name} must be positive, got {getattr(self, name)}")
        for name in WATCHED:
            low, high = getattr(self, name)
            if not CAR_LENGTH < low < high:
                raise ValueError(
                    f"branches.{name} must be a range of distances above {CAR_LENGTH} m, got "
                    f"({low}, {high})"
                )


class Row(NamedTuple):
    """One moment: our pose, speed and place, all cars in sight, and those that are watched.

    number: which car of its lane each is, or `NOBODY`; place: its pose in the world, or NaN.
    """

    pose: Float[np.ndarray, " 3"]
    speed: float
    ego: Ego
    cars: CarsInSight
    number: Int[np.ndarray, " watched"]
    place: Float[np.ndarray, "watched 3"]


@dataclass(frozen=True, kw_only=True)
class Branches:
    """A scene: `before` the moment, and how it goes on, by manoeuvre. line: our lane's centre."""

    road: Road
    line: Centerline
    before: list[Row]
    after: dict[str, list[Row]]

    def rows(self, manoeuvre: str) -> list[Row]:
        """Return one of the drives from its beginning."""
        return [*self.before, *self.after[manoeuvre]]


def random_branches(
    config: BranchesConfig, rng: np.random.Generator, num_before: int, num_after: int
) -> Branches:
    """Draw a scene and drive it on in every way; DropError where it is none.

    It is none when nobody is where `ahead` and `oncoming` want somebody, we are too slow to brake,
    or somebody is hit from behind.
    """
    trip = _set_out(config, rng, num_before + num_after)
    before = list(_watch(trip, num_before))
    moment = _row(trip)
    for slot, name in enumerate(WATCHED):
        low, high = getattr(config, name)
        place = moment.place[slot]
        if not low < np.hypot(*(place - moment.pose)[:2]) < high:  # nor for NaN
            raise DropError(f"nobody {name}")
    if moment.speed < SPEED:
        raise DropError("too slow")
    after = {}
    for manoeuvre in MANOEUVRES:
        branch = deepcopy(trip)
        if manoeuvre == "swerve":
            branch.human.lane_change = LaneChange(
                start=branch.human.time, offset=config.swerve, duration=config.swerve_duration
            )
        told = -config.braking if manoeuvre == "brake" else 0.0
        after[manoeuvre] = list(_watch(branch, num_after, acceleration=told))
    return Branches(road=trip.road, line=trip.human.line, before=before, after=after)


def random_rows(
    config: BranchesConfig, rng: np.random.Generator, num_rows: int
) -> tuple[Road, list[Row]]:
    """Draw a drive on such a road, as people drive; DropError when somebody is hit."""
    trip = _set_out(config, rng, num_rows)
    return trip.road, list(_watch(trip, num_rows))


def _set_out(config: BranchesConfig, rng: np.random.Generator, num_rows: int) -> Trip:
    """Draw a trip, and drive until the recording would begin."""
    roads = replace(config.drive.roads, lane_count=(1, 1))
    drive = replace(
        config.drive, seconds=(APPROACH + num_rows) * STEP, roads=roads, lane_change_fraction=0.0
    )
    trip = random_trip(drive, rng)
    for _ in _watch(trip, APPROACH):
        pass
    return trip


def _watch(trip: Trip, num_rows: int, acceleration: float | None = None) -> Iterator[Row]:
    """Drive on, with an acceleration of one's own or as told; yield every row before it is left."""
    for _ in range(num_rows):
        row = _row(trip)
        if _hits(trip.traffic, row.ego):
            raise DropError("collision")
        yield row
        lead = trip.traffic.lead(row.ego, (row.ego.offset,))
        trip.human.advance(lead, acceleration=acceleration)
        trip.traffic.advance(row.ego, STEP)


def _hits(traffic: Traffic, ego: Ego) -> bool:
    """Tell whether we touch somebody of our own lane; who comes can pass us by a hand's breadth."""
    return any(
        (np.abs(lane.ego_s - ego.s) < CAR_LENGTH + SAFETY).any()
        for lane in traffic.lanes
        if not lane.is_oncoming
    )


def _row(trip: Trip) -> Row:
    """Look at the scene as it is."""
    ego = seen(trip.human)
    number = np.full(len(WATCHED), NOBODY)
    place = np.full((len(WATCHED), 3), np.nan)
    for lane in trip.traffic.lanes:
        ahead = lane.ego_s - ego.s
        if not (ahead > 0).any():
            continue
        slot = WATCHED.index("oncoming" if lane.is_oncoming else "ahead")
        nearest = int(np.where(ahead > 0, ahead, np.inf).argmin())
        number[slot] = nearest
        place[slot] = lane.line.poses(lane.cars.s[[nearest]])[0]
    return Row(
        pose=trip.human.pose.copy(),
        speed=trip.human.speed,
        ego=ego,
        cars=trip.traffic.poses(ego),
        number=number,
        place=place,
    )
