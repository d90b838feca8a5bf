"""When the speed that a driver chose was right: a pure function of speeds and gaps.

On a drive with `longitudinal: policy`, besides what `verdict` asks of every drive,

1. the gap to the car ahead is at least `min_gap`, always (the boxes' meeting is `verdict`'s);
2. the headway, gap over speed, is less than `min_headway` for at most `max_close_time`: 0.8 s is
   the least that ISO 15622 lets a driver set, and after a cut-in the gap takes a while to open;
3. it gets on: its way is at least `min_progress` of that of a good driver, who follows the
   intelligent driver model and brakes for curves (`Scenario.reference`);
4. it is comfortable. ISO 15622 (adaptive cruise control) allows 3.5 m/s^2 of braking as a mean of
   2 s, 2 m/s^2 of acceleration, and these to change towards braking by 2.5 m/s^3 as a mean of 1 s,
   at 20 m/s and more; 5, 4 and 5 at 5 m/s and less; in between we take the straight line.
   `discomfort` is the largest share of these that is used, and may be `max_discomfort`.

And lateral acceleration and jerk count, as in a lane change: whoever takes a curve too fast fails.
It does not know how the drive came about.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from drive_envs.scenarios import Thresholds

Series = Float[np.ndarray, " time"]

SPEEDS = (5.0, 20.0)  # m/s, between which the limits change
BRAKING, ACCELERATION, JERK = (5.0, 3.5), (4.0, 2.0), (5.0, 2.5)  # m/s^2, m/s^2, m/s^3
BRAKING_WINDOW, JERK_WINDOW = 2.0, 1.0  # s
MIN_SPEED = 2.0  # m/s, below which a headway means nothing


@dataclass(frozen=True, kw_only=True)
class PaceFigures:
    """What was measured of the speed on one drive; infinite gap and headway without a car ahead."""

    min_gap: float  # m
    min_headway: float  # s
    close_time: float  # s, with less than `min_headway`
    progress: float  # of the way of a good driver
    max_braking: float  # m/s^2, mean of 2 s
    max_acceleration: float  # m/s^2
    max_jerk: float  # m/s^3, towards braking, mean of 1 s
    discomfort: float  # the largest share used of what is comfortable


def measure_pace(
    speed: Series, gap: Series, step: float, progress: float, thresholds: Thresholds
) -> PaceFigures:
    """Measure a drive: speed (m/s) and gap to the car ahead (m), one value a `step` (s)."""
    headway = np.where(speed > MIN_SPEED, gap / speed.clip(MIN_SPEED), np.inf)
    acceleration = np.diff(speed) / step
    window = round(BRAKING_WINDOW / step)
    braking = -(speed[window:] - speed[:-window]) / (window * step)
    span = round(JERK_WINDOW / step)
    # Before the start the speed was steady.
    acceleration_since = np.concatenate([np.zeros(span), acceleration])
    jerk = -(acceleration_since[span:] - acceleration_since[:-span]) / (span * step)
    shares = (
        braking / np.interp(speed[:-window], SPEEDS, BRAKING),
        acceleration / np.interp(speed[:-1], SPEEDS, ACCELERATION),
        jerk / np.interp(speed[: len(jerk)], SPEEDS, JERK),
    )
    return PaceFigures(
        min_gap=float(gap.min(initial=np.inf)),
        min_headway=float(headway.min(initial=np.inf)),
        close_time=float((headway < thresholds.min_headway).sum() * step),
        progress=progress,
        max_braking=float(braking.max(initial=0.0)),
        max_acceleration=float(acceleration.max(initial=0.0)),
        max_jerk=float(jerk.max(initial=0.0)),
        discomfort=max(float(share.max(initial=0.0)) for share in shares),
    )


def pace_reasons(figures: PaceFigures, thresholds: Thresholds) -> tuple[str, ...]:
    """Return one sentence for each threshold that the drive did not keep; none if it passed."""
    reasons = []
    if figures.min_gap < thresholds.min_gap:
        reasons.append(
            f"{figures.min_gap:.1f} m behind the car ahead (at least {thresholds.min_gap:g} m)"
        )
    if figures.close_time > thresholds.max_close_time:
        reasons.append(
            f"less than {thresholds.min_headway:g} s behind the car ahead for "
            f"{figures.close_time:.1f} s (at most {thresholds.max_close_time:g} s)"
        )
    if figures.progress < thresholds.min_progress:
        reasons.append(
            f"drove {figures.progress:.0%} of a good driver's way "
            f"(at least {thresholds.min_progress:.0%})"
        )
    if figures.discomfort > thresholds.max_discomfort:
        reasons.append(
            f"braking {figures.max_braking:.1f} m/s^2 and {figures.max_jerk:.1f} m/s^3, "
            f"acceleration {figures.max_acceleration:.1f} m/s^2: {figures.discomfort:.0%} of what "
            f"is comfortable (at most {thresholds.max_discomfort:.0%})"
        )
    return tuple(reasons)
