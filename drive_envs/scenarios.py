"""Closed-loop scenarios as data: where a drive begins, on which road, and what counts as passed.

A scenario file is a YAML list; three are shipped, `data/lane_centering.yaml`,
`data/lane_change.yaml` and `data/longitudinal.yaml`, whose heads document every key. Lengths are
metres, speeds m/s, times seconds; offsets, directions and headings are positive LEFT, headings are
in degrees because people write them. Stations count along the lane's centre from the beginning of
the road, lanes from 0 at the left.

It does not know how a scenario is driven or judged: see `drive_actors.scoring` and
`drive_actors.verdict`.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from jaxtyping import Float

from drive_envs.centerline import Centerline
from drive_envs.human import SUBSTEP, blend
from drive_envs.roads import Block, Road, lane_centerline
from drive_envs.scripted_cars import (
    Car,
    CutIn,
    Reference,
    SpeedChange,
    Times,
    Tracks,
    drive_well,
    tracks_of,
)
from drive_envs.traffic import CAR_LENGTH, CAR_WIDTH

CONTEXT = 2.0  # s that the driver has seen when a scenario starts
SIGHT = 30.0  # m of road that must lie ahead at the end

SIDES = {"left": 1, "right": -1}
SHIPPED = ("lane_centering", "lane_change", "longitudinal")
PLANNED = 10.0  # s that plans reach, beyond the end of the drive


class ScenarioError(ValueError):
    """A scenario that cannot be driven or read: names the file, the scenario and the mend."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a drive must keep to pass; see `drive_actors.verdict` for the reasons.

    max_mean_lateral (m): of |d| over the last `centering_window` (s).
    max_reversals: of the lateral movement, by more than `swing` (m), over the last
    `oscillation_window` (s).
    Where lane changes are asked for: max_lane_change_time (s) from the pulse until the car is in
    the new lane for good; max_lateral_acceleration (m/s^2) and max_lateral_jerk (m/s^3, averaged
    over 0.6 s) of the whole drive.
    Where the driver chooses the speed: min_gap (m) to the car ahead; min_headway (s), and
    max_close_time (s) for which it may be less; min_progress of the way of a good driver;
    max_discomfort, of what ISO 15622 allows, see `drive_actors.pace_verdict`.
    """

    centering_window: float = 3.0
    max_mean_lateral: float = 0.5
    oscillation_window: float = 8.0
    swing: float = 0.2
    max_reversals: int = 2
    max_lane_change_time: float = 8.0
    max_lateral_acceleration: float = 3.0
    max_lateral_jerk: float = 5.0
    min_gap: float = 1.5
    min_headway: float = 0.8
    max_close_time: float = 2.0
    min_progress: float = 0.8
    max_discomfort: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "max_reversals" and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.max_reversals < 0:
            raise ValueError(f"max_reversals must be 0 or more, got {self.max_reversals}")


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """The wish to change lanes, told to the driver at `time` s after the start."""

    time: float
    direction: Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One closed-loop drive.

    lane: where it starts, 0 at the left. station: of the start, m along the lane.
    lateral_offset (m) and heading_offset_deg: of the start against the lane's centre, left +.
    longitudinal: `recorded` drives at constant speed; with `policy` the driver chooses it.
    speed (m/s; at the start, and what a good driver returns to), duration (s).
    desire: lane changes asked for, in order of time, none for lane centering; a change takes
    `lane_change_time` (s), after which the new lane is the one to keep.
    cars: others, which drive as they are told to whatever ours does. seed: of the vehicle's noise.
    """

    name: str
    road: Road
    lane: int = 0
    station: float
    lateral_offset: float = 0.0
    heading_offset_deg: float = 0.0
    speed: float
    longitudinal: Literal["recorded", "policy"] = "recorded"
    duration: float = 12.0
    desire: tuple[Pulse, ...] = ()
    lane_change_time: float = 5.0
    cars: tuple[Car, ...] = ()
    thresholds: Thresholds = field(default_factory=Thresholds)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.name or set(self.name) & set("/\\ "):
            raise ValueError(f"name must be one word that can name a file, got {self.name!r}")
        for name in ("speed", "duration", "lane_change_time"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for lane in (*self.lanes, *(lane for car in self.cars for lane in car.lanes)):
            if not 0 <= lane < self.road.lane_count:
                raise ValueError(
                    f"lane {lane} does not exist, the road has lanes 0 to "
                    f"{self.road.lane_count - 1} (desire pulses and cars included)"
                )
        for pulse in self.desire:
            if not 0 <= pulse.time < self.duration:
                raise ValueError(
                    f"a desire at {pulse.time:g} s is not within the {self.duration:g} s that the "
                    "drive takes"
                )
        if self.station < CONTEXT * self.speed:
            raise ValueError(
                f"station is {self.station:g} m, but {CONTEXT:g} s of history at {self.speed:g} "
                f"m/s need {CONTEXT * self.speed:g} m of road behind the start"
            )
        needed, length = self.station + self.speed * self.duration + SIGHT, self.line.length
        if needed > length:
            raise ValueError(
                f"the lane is {length:.0f} m long, but the drive needs {needed:.0f} m "
                f"(with {SIGHT:g} m in sight at its end): add a straight or a longer curve"
            )
        for car in self.cars:
            beside = (self.lane - car.lane) * self.road.lane_width - self.lateral_offset
            if abs(car.gap) < CAR_LENGTH and abs(beside) < CAR_WIDTH:
                raise ValueError(
                    f"the car {car.gap:g} m ahead begins inside ours: its gap must be "
                    f"{CAR_LENGTH:g} m or more, or its lane another"
                )
            ends = np.array([-CONTEXT, self.duration])
            first, last = self.station + car.gap + car.driven(ends)[0]
            if first < 0 or last > length:
                raise ValueError(
                    f"the car {car.gap:g} m ahead drives from {first:.0f} to {last:.0f} m, but the "
                    f"lane is {length:.0f} m long: change its gap or speed"
                )

    @property
    def line(self) -> Centerline:
        """The centre of the lane where the drive starts."""
        return lane_centerline(self.road, self.lane)

    @property
    def lanes(self) -> tuple[int, ...]:
        """The lane at the start, and after each pulse."""
        lanes = [self.lane]
        for pulse in self.desire:
            lanes.append(lanes[-1] - SIDES[pulse.direction])
        return tuple(lanes)

    def target_offset(self, time: Times) -> tuple[Times, Times]:
        """Return where to be, in metres left of `line`, and how fast that moves, in m/s.

        A lane change is the quintic from one lane centre to the next with no velocity or
        acceleration at its ends: 10 x^3 - 15 x^4 + 6 x^5.
        """
        offset, rate = np.zeros_like(time), np.zeros_like(time)
        for pulse in self.desire:
            side = SIDES[pulse.direction] * self.road.lane_width
            x = ((time - pulse.time) / self.lane_change_time).clip(0, 1)
            offset += side * blend(x)
            rate += side * 30 * (x * (1 - x)) ** 2 / self.lane_change_time
        return offset, rate

    def edges(self, time: Times) -> tuple[Times, Times]:
        """Return the right and the left edge of where to be at all, in metres left of `line`.

        That is the lane to keep; from a pulse on and for `max_lane_change_time` it is both lanes.
        """
        centres = self.road.lane_width * (self.lane - np.array(self.lanes))[:, None]
        pulses = np.array([pulse.time for pulse in self.desire])
        begin = np.array([-np.inf, *pulses])[:, None]
        end = np.array([*(pulses + self.thresholds.max_lane_change_time), np.inf])[:, None]
        may_be = (time >= begin) & (time <= end)
        right = np.where(may_be, centres, np.inf).min(axis=0) - self.road.lane_width / 2
        left = np.where(may_be, centres, -np.inf).max(axis=0) + self.road.lane_width / 2
        return right, left

    def car_poses(self, time: Times) -> Float[np.ndarray, "time car 3"]:
        """Return the world poses (x, y, yaw) of the other cars."""
        poses = np.empty((len(time), len(self.cars), 3))
        tracks = self.car_tracks(time)
        for index, car in enumerate(self.cars):
            s, offset = tracks.station[:, index], tracks.offset[:, index]
            poses[:, index] = self.line.poses(s, offset)
            if car.cut_in is not None:
                # It points where it goes, unless it all but stands.
                rate = np.gradient(offset, time) if len(time) > 1 else np.zeros(1)
                poses[:, index, 2] += np.arctan2(rate, tracks.speed[:, index].clip(1.0))
        return poses

    def car_tracks(self, time: Times) -> Tracks:
        """Return where the other cars are and want to be, along and beside `line`."""
        return tracks_of(self.cars, time, self.station, self._left)

    @cached_property
    def reference(self) -> Reference:
        """Where a good driver would be, and how fast, from the start until his plans end."""
        time = SUBSTEP * np.arange(round((self.duration + PLANNED + 1.0) / SUBSTEP))
        if self.longitudinal == "recorded":
            return Reference(self.station + self.speed * time, np.full_like(time, self.speed))
        offset, goal = self.target_offset(time)[0], np.zeros_like(time)
        for pulse, lane in zip(self.desire, self.lanes[1:], strict=True):
            goal[time >= pulse.time] = self._left(lane)
        nothing = np.zeros((len(time), 1))
        wanted = Tracks(nothing, nothing, offset[:, None], goal[:, None])
        return drive_well(self.line, self.station, self.speed, self.car_tracks(time), wanted)

    def _left(self, lane: Any) -> Any:
        """Return how many metres a lane is left of `line`."""
        return self.road.lane_width * (self.lane - lane)

    def target_poses(self, time: Times) -> Float[np.ndarray, "time 3"]:
        """Return the world poses (x, y, yaw) of a drive that makes no error; time in s."""
        offset, rate = self.target_offset(time)
        s, speed = self.reference.at(time)
        poses = self.line.poses(s, offset)
        poses[:, 2] += np.arctan2(rate, speed.clip(1e-3) * (1 - self.line.curvature(s) * offset))
        return poses


def shipped_path(name: str = SHIPPED[0]) -> Path:
    """Return a list that comes with the package: see `SHIPPED`."""
    return Path(str(files("drive_envs") / "data" / f"{name}.yaml"))


def find_scenarios(given: Path | None) -> Path:
    """Return the file that is meant: a path, the name of a shipped list, or None for the first."""
    name = SHIPPED[0] if given is None else str(given)
    return shipped_path(name) if name in SHIPPED else Path(name)


def load_scenarios(path: Path | None = None) -> tuple[Scenario, ...]:
    """Read a scenario file, see `find_scenarios`; ScenarioError says what is wrong."""
    path = find_scenarios(path)
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such file; give a scenario list, scenarios=PATH") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ScenarioError(f"{path}: cannot be read as YAML ({reason})") from None
    if not isinstance(entries, list) or not entries:
        raise ScenarioError(f"{path}: must be a list of scenarios, one `- name: ...` each")
    scenarios = tuple(
        _scenario(entry, f"{path}: {_label(entry, i)}") for i, entry in enumerate(entries)
    )
    names = [scenario.name for scenario in scenarios]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ScenarioError(f"{path}: {', '.join(twice)}: given twice, every name must be unique")
    return scenarios


def _label(entry: Any, index: int) -> str:
    """Name a list entry for an error message, even if it is no scenario."""
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return f"scenario {name or f'number {index + 1}'}"


def _scenario(entry: Any, where: str) -> Scenario:
    """Build one scenario from its YAML mapping."""
    fields = {field.name: field for field in dataclasses.fields(Scenario)}
    lanes = {f.name: f for f in dataclasses.fields(Road) if f.name in ("lane_count", "lane_width")}
    _check_keys(entry, {*fields, *lanes}, where)
    if missing := [name for name in ("name", "road", "station", "speed") if name not in entry]:
        raise ScenarioError(f"{where}: {', '.join(missing)} missing")
    plain = entry.keys() & (fields.keys() - {"road", "desire", "cars", "thresholds"})
    values = {name: _typed(entry, fields[name], where) for name in plain}
    road = {name: _typed(entry, lanes[name], where) for name in entry.keys() & lanes.keys()}
    try:
        blocks = _list(entry["road"], f"{where}: road")
        values["road"] = Road(blocks=tuple(_block(b, f"{where}: road") for b in blocks), **road)
        pulses = _list(entry.get("desire", []), f"{where}: desire")
        values["desire"] = tuple(_record(Pulse, p, f"{where}: desire") for p in pulses)
        cars = _list(entry.get("cars", []), f"{where}: cars")
        values["cars"] = tuple(_car(c, f"{where}: cars") for c in cars)
        limits = entry.get("thresholds", {})
        values["thresholds"] = _record(Thresholds, limits, f"{where}: thresholds")
        return Scenario(**values)
    except ScenarioError:
        raise
    except ValueError as error:
        raise ScenarioError(f"{where}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A curve as a scenario file says it; see `drive_envs.roads.Block`."""

    radius: float
    angle: float
    direction: Literal["left", "right"]
    tail: float = 5.0


def _block(entry: Any, where: str) -> Block:
    """Build one piece of road from `{straight: LENGTH}` or `{curve: {...}}`."""
    _check_keys(entry, {"straight", "curve"}, where)
    if len(entry) != 1:
        raise ScenarioError(f"{where}: a piece is one straight or one curve, got {dict(entry)}")
    if "straight" in entry:
        return Block(kind="S", length=_number(entry["straight"], "straight", where))
    curve: Curve = _record(Curve, entry["curve"], f"{where}: curve")
    return Block(
        kind="C",
        length=curve.tail,
        radius=curve.radius,
        angle_deg=curve.angle,
        turn=curve.direction,
    )


def _car(entry: Any, where: str) -> Car:
    """Build another car, with what it is to do."""
    known = {field.name for field in dataclasses.fields(Car)}
    _check_keys(entry, known, where)
    changes = _list(entry.get("changes", []), f"{where}: changes")
    done: dict[str, Any] = {
        "changes": tuple(_record(SpeedChange, c, f"{where}: changes") for c in changes)
    }
    if "cut_in" in entry:
        done["cut_in"] = _record(CutIn, entry["cut_in"], f"{where}: cut_in")
    plain = {key: value for key, value in entry.items() if key not in ("changes", "cut_in")}
    return _record(Car, plain, where, **done)


def _record(schema: type[Any], entry: Any, where: str, **done: Any) -> Any:
    """Build a dataclass of plain values from a mapping, and of what is `done` already."""
    fields = [field for field in dataclasses.fields(schema) if field.name not in done]
    _check_keys(entry, {f.name for f in fields}, where)
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in entry]
    if required:
        raise ScenarioError(f"{where}: {', '.join(required)} missing")
    try:
        values = {f.name: _typed(entry, f, where) for f in fields if f.name in entry}
        return schema(**values, **done)
    except ScenarioError:
        raise
    except ValueError as error:
        raise ScenarioError(f"{where}: {error}") from None


def _typed(entry: Mapping[str, Any], target: "dataclasses.Field[Any]", where: str) -> Any:
    """Return `entry[target.name]` as the type of a field: text, a choice of texts or a number."""
    value = entry[target.name]
    if target.type in (int, float):
        number = _number(value, target.name, where)
        if target.type is int and number != int(number):
            raise ScenarioError(f"{where}: {target.name} should be a whole number, got {value!r}")
        return target.type(number)
    if choices := get_args(target.type):
        if value not in choices:
            words = " or ".join(choices)
            raise ScenarioError(f"{where}: {target.name} should be {words}, got {value!r}")
    elif not isinstance(value, str):
        raise ScenarioError(f"{where}: {target.name} should be text, got {value!r}")
    return value


def _number(value: Any, name: str, where: str) -> float:
    """Refuse what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScenarioError(f"{where}: {name} should be a number, got {value!r}")
    return float(value)


def _list(value: Any, where: str) -> list[Any]:
    """Refuse what is no list."""
    if not isinstance(value, list):
        raise ScenarioError(f"{where} should be a list, got {value!r}")
    return value


def _check_keys(entry: Any, known: set[str], where: str) -> None:
    """Refuse what is no mapping, and keys that nobody reads."""
    if not isinstance(entry, Mapping):
        raise ScenarioError(f"{where}: should be `key: value`, got {entry!r}")
    for key in entry:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
            raise ScenarioError(f"{where}: unknown key {key!r}; {hint}")
