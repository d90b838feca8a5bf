"""The other cars of a scenario, which drive as they are told to, and who drives well behind them.

Times are seconds from the start of the drive, lengths metres, speeds m/s, lanes count from 0 at the
left. It does not know the scenario's road but for the lane's centre line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from drive_envs.centerline import Centerline
from drive_envs.human import (
    SUBSTEP,
    Driver,
    HumanConfig,
    Lead,
    blend,
    eased,
    pace,
    speed_profile,
)
from drive_envs.traffic import CAR_LENGTH, CAR_WIDTH, SAFETY

JERK = 2.0  # m/s^3, of a good driver

Times = Float[np.ndarray, " time"]


@dataclass(frozen=True, kw_only=True)
class SpeedChange:
    """From `time` s on the car goes over to `speed` m/s, at `acceleration` m/s^2 either way."""

    time: float
    speed: float
    acceleration: float = 2.0

    def __post_init__(self) -> None:
        if self.speed < 0 or self.acceleration <= 0:
            raise ValueError(
                f"a change to {self.speed:g} m/s at {self.acceleration:g} m/s^2: the speed must be "
                "0 or more and the acceleration positive"
            )


@dataclass(frozen=True, kw_only=True)
class CutIn:
    """From `time` s on the car changes to `lane` within `duration` s."""

    time: float
    lane: int
    duration: float = 3.0

    def __post_init__(self) -> None:
        if self.duration <= 0:
            raise ValueError(f"a cut-in's duration must be positive, got {self.duration}")


@dataclass(frozen=True, kw_only=True)
class Car:
    """Another car, `gap` m ahead of ours at the start (behind when negative).

    lane counts from 0 at the left; gap is from centre to centre, along our first lane; speed m/s,
    until the first of the `changes`, which are in order of time.
    """

    lane: int
    gap: float
    speed: float
    changes: tuple[SpeedChange, ...] = ()
    cut_in: CutIn | None = None

    def __post_init__(self) -> None:
        if self.speed < 0:
            raise ValueError(f"a car's speed must be 0 or more, got {self.speed}")
        times, _ = self._profile
        if (np.diff(times) < 0).any():
            raise ValueError(
                f"the car {self.gap:g} m ahead is to change its speed before it has done so the "
                "last time: later, or at a higher acceleration"
            )

    @property
    def _profile(self) -> tuple[Times, Times]:
        """Times and speeds between which the speed is linear."""
        times, speeds = [0.0], [self.speed]
        for change in self.changes:
            last = speeds[-1]
            duration = abs(change.speed - last) / change.acceleration
            times += [change.time, change.time + duration]
            speeds += [last, change.speed]
        return np.array(times), np.array(speeds)

    @property
    def lanes(self) -> tuple[int, ...]:
        """The lanes that it is in, one after the other."""
        return (self.lane,) if self.cut_in is None else (self.lane, self.cut_in.lane)

    def driven(self, time: Times) -> tuple[Times, Times]:
        """Return how far it is from where it was at the start, and its speed."""
        times, speeds = self._profile
        times = np.array([min(times[0], time.min()), *times, max(times[-1], time.max()) + 1.0])
        speeds = np.array([speeds[0], *speeds, speeds[-1]])
        sums = np.concatenate([[0.0], np.cumsum(np.diff(times) * (speeds[1:] + speeds[:-1]) / 2)])
        sums -= sums[np.searchsorted(times, 0.0)]
        speed = np.interp(time, times, speeds)
        index = (np.searchsorted(times, time, side="right") - 1).clip(0, len(times) - 2)
        return sums[index] + (time - times[index]) * (speeds[index] + speed) / 2, speed

    def lane_at(self, time: Times) -> Times:
        """Return in which lane it is, a fraction while it changes."""
        if self.cut_in is None:
            return np.full_like(time, self.lane)
        x = ((time - self.cut_in.time) / self.cut_in.duration).clip(0, 1)
        return self.lane + (self.cut_in.lane - self.lane) * blend(x)

    def goal_at(self, time: Times) -> Times:
        """Return to which lane it wants, as its indicator tells."""
        goal = np.full_like(time, self.lane)
        if self.cut_in is not None:
            goal[time >= self.cut_in.time] = self.cut_in.lane
        return goal


class Tracks(NamedTuple):
    """Where cars are at some times: station (m), speed (m/s), and metres left of a lane's centre.

    offset: where they are. goal: where they want to be.
    """

    station: Float[np.ndarray, "time car"]
    speed: Float[np.ndarray, "time car"]
    offset: Float[np.ndarray, "time car"]
    goal: Float[np.ndarray, "time car"]


class Reference(NamedTuple):
    """A good drive: station (m) and speed (m/s) every `SUBSTEP` from the start on."""

    station: Times
    speed: Times

    def at(self, time: Times) -> tuple[Times, Times]:
        """Return station and speed; before it begins and after it ends it is as fast as there."""
        row = time / SUBSTEP
        rows = np.arange(len(self.station))
        station, speed = (np.interp(row, rows, values) for values in self)
        return station + (time - SUBSTEP * row.clip(0, rows[-1])) * speed, speed


def tracks_of(cars: Sequence[Car], time: Times, station: float, left: Callable) -> Tracks:
    """Return the cars' tracks; `left` says where a lane is, m left, of a number or an array."""
    shape = len(time), len(cars)
    tracks = Tracks(*(np.empty(shape) for _ in Tracks._fields))
    for index, car in enumerate(cars):
        distance, tracks.speed[:, index] = car.driven(time)
        tracks.station[:, index] = station + car.gap + distance
        tracks.offset[:, index] = left(car.lane_at(time))
        tracks.goal[:, index] = left(car.goal_at(time))
    return tracks


def gaps(
    tracks: Tracks, station: Times, offset: Times, width: float
) -> Float[np.ndarray, "time car"]:
    """Return the free metres to each car ahead that is less than `width` m to the side.

    Infinite for those that are beside or behind.
    """
    gap = tracks.station - station[:, None] - CAR_LENGTH
    is_there = np.abs(tracks.offset - offset[:, None]) < width
    is_ahead = tracks.station > station[:, None]
    return np.where(is_there & is_ahead, gap, np.inf)


def drive_well(
    line: Centerline, start: float, speed: float, tracks: Tracks, wanted: Tracks
) -> Reference:
    """Drive along a lane as an attentive person does, from `start` m on, at `speed` m/s if free.

    `tracks` are the others' every `SUBSTEP`; `wanted` has our own offset and goal, (time, 1). Who
    is in our way, or is about to be, is followed; see `drive_envs.human.pace`.
    """
    nobody = np.zeros(0)
    config = HumanConfig()
    driver = Driver(config=config, preference=0.0, speed=speed, wavenumbers=nobody, phases=nobody)
    profile = speed_profile(line, driver)
    in_way = is_in_way(tracks, wanted)
    s, v, acceleration = start, speed, 0.0
    stations, speeds = [s], [v]
    for step in range(len(tracks.station) - 1):
        ahead = tracks.station[step] - s
        leads = [
            Lead(gap=float(ahead[i] - CAR_LENGTH), speed=float(tracks.speed[step, i]))
            for i in np.flatnonzero(in_way[step] & (ahead > 0))
        ]
        wished = float(np.interp(s + v * SUBSTEP, np.arange(len(profile)), profile))
        wish = pace(v, wished, min(leads, default=None), config.braking)
        acceleration = eased(acceleration, wish, JERK, SUBSTEP)
        after = max(0.0, v + SUBSTEP * acceleration)
        s, v = s + SUBSTEP * (v + after) / 2, after
        stations.append(s)
        speeds.append(v)
    return Reference(np.array(stations), np.array(speeds))


def is_in_way(tracks: Tracks, wanted: Tracks) -> Bool[np.ndarray, "time car"]:
    """Tell who is, or wants to be, where we are or want to be."""
    near = CAR_WIDTH + SAFETY
    pairs = [(a, b) for a in (tracks.offset, tracks.goal) for b in (wanted.offset, wanted.goal)]
    return np.any([np.abs(theirs - ours) < near for theirs, ours in pairs], axis=0)
