"""How people drive: they keep their lane, not its centre.

A driver follows the target line

    y*(s) = preference + drift(s) + corner(s) + lane change(t)

in metres left of the lane's centre, and corrects late and lazily: he perceives where he was a
reaction time ago, ignores errors within a dead zone, and steers back slowly, through a steering
that lags. What he does not do is return to the centre of the lane: whoever hugs the left goes on
hugging it. That persistence is why imitating him does not teach recovery.

Pure kinematics at 20 Hz along a `Centerline`; it does not know MetaDrive. None of the constants is
published; they were chosen here, and each part can be switched off by setting it to zero.
"""

from dataclasses import dataclass
from functools import cached_property
from math import pi
from typing import NamedTuple, TypeVar

import numpy as np

from drive_envs.plan import STEP
from drive_envs.roads import Centerline

NUM_SUBSTEPS = 4
SUBSTEP = STEP / NUM_SUBSTEPS
NUM_WAVES = 4  # sines in the drift
MIN_FOLLOWING_GAP = 5.0  # metres to a standing lead
MAX_LATERAL_CORRECTION = 1.0  # m/s^2, what a person steers with to get back to his line
MIN_STEERING_SPEED = 3.0  # m/s, below which steering is as at this speed

Amount = TypeVar("Amount", float, np.ndarray)


@dataclass(frozen=True, kw_only=True)
class HumanConfig:
    """The habits of the drivers; every drive draws its own driver.

    preference_std, max_preference: m, lateral preference of a whole drive, normal, clipped.
    drift_std, drift_wavelength: m, a slow wander around it.
    corner_cutting, max_corner_cutting: m^2 and m; offset to the inside of a curve per curvature.
    reaction_delay: s. dead_zone: m of lateral error that is not corrected. correction_rate: rad/s,
    natural frequency of the corrections. steering_lag: s.
    min_speed, max_speed: m/s, the range of preferred speeds. lateral_acceleration: m/s^2 that is
    comfortable in a curve. braking: m/s^2, comfortable. jerk: m/s^3, how fast braking and
    acceleration change; with 0 at once.
    lane_change_duration: s, range.
    """

    preference_std: float = 0.4
    max_preference: float = 0.8
    drift_std: float = 0.12
    drift_wavelength: float = 350.0
    corner_cutting: float = 10.0
    max_corner_cutting: float = 0.2
    reaction_delay: float = 0.4
    dead_zone: float = 0.08
    correction_rate: float = 0.5
    steering_lag: float = 0.2
    min_speed: float = 5.0
    max_speed: float = 30.0
    lateral_acceleration: float = 2.0
    braking: float = 1.2
    jerk: float = 0.0
    lane_change_duration: tuple[float, float] = (4.0, 6.0)

    def __post_init__(self) -> None:
        parts = (
            "preference_std max_preference drift_std corner_cutting max_corner_cutting "
            "reaction_delay dead_zone steering_lag jerk"
        )
        for name in parts.split():
            if getattr(self, name) < 0:
                raise ValueError(f"human.{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("drift_wavelength", "correction_rate", "lateral_acceleration", "braking"):
            if getattr(self, name) <= 0:
                raise ValueError(f"human.{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.min_speed <= self.max_speed:
            raise ValueError(
                f"human needs 0 < min_speed <= max_speed, got {self.min_speed}, {self.max_speed}"
            )


def blend(x: Amount) -> Amount:
    """Go from 0 to 1 with no velocity or acceleration at the ends: 10 x^3 - 15 x^4 + 6 x^5."""
    return x**3 * (10 - 15 * x + 6 * x**2)


@dataclass(frozen=True, kw_only=True)
class LaneChange:
    """From `start` s on the target moves `offset` m to the left within `duration` s."""

    start: float
    offset: float
    duration: float

    def at(self, time: float) -> float:
        """Metres moved so far: a quintic with no jump in velocity or acceleration."""
        return self.offset * blend(min(1.0, max(0.0, (time - self.start) / self.duration)))


class Lead(NamedTuple):
    """The car in front: metres of free road to it, and its speed in m/s."""

    gap: float
    speed: float


@dataclass(frozen=True, kw_only=True)
class Driver:
    """One person as drawn: where he likes to be in the lane, how he wanders, how fast he goes."""

    config: HumanConfig
    preference: float
    speed: float
    wavenumbers: np.ndarray
    phases: np.ndarray

    def target(self, s: float, curvature: float) -> float:
        """Return y* in metres left of the lane's centre, without lane changes."""
        config = self.config
        waves = np.sin(self.wavenumbers * s + self.phases).sum() * np.sqrt(2 / NUM_WAVES)
        inside = config.corner_cutting * curvature
        inside = min(config.max_corner_cutting, max(-config.max_corner_cutting, inside))
        return self.preference + config.drift_std * float(waves) + inside


def draw_driver(config: HumanConfig, rng: np.random.Generator) -> Driver:
    """Draw a driver. Speeds are uniform, preferences normal and clipped."""
    limit = config.max_preference
    wavelengths = config.drift_wavelength * rng.uniform(0.6, 1.6, NUM_WAVES)
    return Driver(
        config=config,
        preference=float(np.clip(rng.normal(0.0, config.preference_std), -limit, limit)),
        speed=float(rng.uniform(config.min_speed, config.max_speed)),
        wavenumbers=2 * pi / wavelengths,
        phases=rng.uniform(0, 2 * pi, NUM_WAVES),
    )


def speed_profile(line: Centerline, driver: Driver, spacing: float = 1.0) -> np.ndarray:
    """Return the speed in m/s that he drives at every `spacing` m of the lane, traffic aside.

    Curves at comfortable lateral acceleration, braking for them comfortably ahead.
    """
    config = driver.config
    s = np.arange(0.0, line.length + spacing, spacing)
    bend = np.abs(line.curvature(s)).clip(1e-6)
    speed = np.minimum(driver.speed, np.sqrt(config.lateral_acceleration / bend))
    gained = 2 * config.braking * spacing
    for i in range(len(speed) - 2, -1, -1):
        speed[i] = min(speed[i], np.sqrt(speed[i + 1] ** 2 + gained))
    return speed


def pace(speed: float, wanted: float, lead: Lead | None, braking: float) -> float:
    """Return the acceleration in m/s^2 of a person who wants to drive at `wanted` m/s.

    Behind a lead it is that of the intelligent driver model: the gap that it wants against the one
    there is; `braking` is what is comfortable, m/s^2.
    """
    acceleration = min(1.0, max(-4.0, (wanted - speed) / 0.5))
    if lead is not None:
        closing = speed * (speed - lead.speed) / (2 * np.sqrt(braking))
        gap = MIN_FOLLOWING_GAP + max(0.0, 1.5 * speed + closing)
        acceleration = min(acceleration, 1.0 - (gap / max(lead.gap, 0.5)) ** 2)
    return max(-6.0, acceleration)


def eased(before: float, wanted: float, jerk: float, duration: float) -> float:
    """Return an acceleration on its way from one to another, m/s^2, at once with a jerk of 0."""
    most = jerk * duration if jerk else np.inf
    return min(before + most, max(before - most, wanted))


class Human:
    """Drives along one lane, a `STEP` at a time. Starts on his own line at s metres."""

    def __init__(
        self, line: Centerline, driver: Driver, *, start: float, lane_change: LaneChange | None
    ) -> None:
        self.line, self.driver, self.lane_change = line, driver, lane_change
        self.time, self.s = 0.0, start
        self.offset = driver.target(start, self._curvature_ahead(start, driver.speed))
        self.speed = float(self._profile_at(start))
        x, y, yaw = line.poses(np.array([start]), self.offset)[0]
        self.pose = np.array([x, y, yaw])
        self.curvature = float(line.curvature(np.array([start]))[0])
        self.acceleration = 0.0
        self._delay = round(driver.config.reaction_delay / SUBSTEP)
        self._perceived = [(0.0, 0.0)] * (self._delay + 1)  # m and m/s, oldest first

    @property
    def desire(self) -> int:
        """1 or 2, on the step in which a lane change to the left or right begins; else 0."""
        change = self.lane_change
        if change is None or not 0 <= change.start - self.time < STEP - 1e-9:
            return 0
        return 1 if change.offset > 0 else 2

    def advance(self, lead: Lead | None = None, *, acceleration: float | None = None) -> None:
        """Drive on for one `STEP`; an acceleration (m/s^2) is wished for in place of his own."""
        for _ in range(NUM_SUBSTEPS):
            self._substep(lead, acceleration)

    def _substep(self, lead: Lead | None, wished: float | None) -> None:
        config, speed = self.driver.config, self.speed
        heading = self.pose[2] - self.line.poses(np.array([self.s]))[0, 2]
        rate = speed * np.sin(heading)
        self._perceived.append((self._target() - self.offset, self._target_rate() - rate))
        error, error_rate = self._perceived.pop(0)
        zone = config.dead_zone
        error -= min(zone, max(-zone, error))
        omega = config.correction_rate
        lateral = omega**2 * error + 2 * omega * error_rate
        lateral = min(MAX_LATERAL_CORRECTION, max(-MAX_LATERAL_CORRECTION, lateral))
        wanted = self._curvature_ahead(self.s, speed)
        wanted += (lateral + self._target_acceleration()) / max(speed, MIN_STEERING_SPEED) ** 2
        response = -np.expm1(-SUBSTEP / config.steering_lag) if config.steering_lag else 1.0
        self.curvature += response * (wanted - self.curvature)

        distance = speed * SUBSTEP
        turn = distance * self.curvature
        x, y, yaw = self.pose
        yaw_between = yaw + turn / 2
        self.pose = np.array(
            [x + distance * np.cos(yaw_between), y + distance * np.sin(yaw_between), yaw + turn]
        )
        s, offset = self.line.locate(self.pose[:2])
        self.s, self.offset = float(s[0]), float(offset[0])
        wished = self._acceleration(lead) if wished is None else wished
        self.acceleration = eased(self.acceleration, wished, config.jerk, SUBSTEP)
        self.speed = max(0.0, speed + SUBSTEP * self.acceleration)
        self.time += SUBSTEP

    def _target(self) -> float:
        curvature = self._curvature_ahead(self.s, self.speed)
        return self.driver.target(self.s, curvature) + self._changed(self.time)

    def _changed(self, time: float) -> float:
        return 0.0 if self.lane_change is None else self.lane_change.at(time)

    def _target_rate(self) -> float:
        """Lateral speed of a lane change, which is driven on purpose, not as a correction."""
        return (self._changed(self.time + SUBSTEP) - self._changed(self.time - SUBSTEP)) / (
            2 * SUBSTEP
        )

    def _target_acceleration(self) -> float:
        before, now, after = (self._changed(self.time + d) for d in (-SUBSTEP, 0.0, SUBSTEP))
        return (after - 2 * now + before) / SUBSTEP**2

    def _curvature_ahead(self, s: float, speed: float) -> float:
        """Return the lane's curvature as a person steers for it: smoothed over a second.

        Centred on where the car will be when the steering has followed.
        """
        ahead = s + speed * (self.driver.config.steering_lag + np.linspace(-0.5, 0.5, 11))
        return float(self.line.curvature(ahead).mean())

    def _acceleration(self, lead: Lead | None) -> float:
        wanted = self._profile_at(self.s + self.speed * SUBSTEP)
        return pace(self.speed, wanted, lead, self.driver.config.braking)

    @cached_property
    def _profile(self) -> np.ndarray:
        return speed_profile(self.line, self.driver)

    def _profile_at(self, s: float) -> float:
        return float(np.interp(s, np.arange(len(self._profile)), self._profile))
