"""When a closed-loop drive has passed: a pure function of where the car was.

The lateral position d(t) is the distance of the vehicle centre from the centre of the lane to keep
in metres, positive left, sampled at equal steps. A drive passes when

1. it never leaves the lane: the vehicle centre is within its edges at every sample;
2. it ends centred: the mean of |d| over the last `centering_window` is at most `max_mean_lateral`;
3. it does not oscillate: over the last `oscillation_window` the lateral movement reverses by more
   than `swing` metres at most `max_reversals` times.

Why reversals by more than a swing: monotone settling has none whatever its shape, one overshoot
has one, an overshoot that is corrected has two, and only a weave goes on to a third; a slow drift,
a constant offset and pose jitter (centimetres) have none, so that nothing need be detrended. With
8 s and 2 reversals every weave of 0.4 m peak to peak with a period of 3.5 s or less is found, at
every phase. The swing of 0.2 m is a little more than a lane marking (0.15 m) and about people's own
lateral standard deviation, which is slow; at the vehicle's full lateral jerk of 5 m/s^3 it is
reached up to 0.6 Hz, A (2 pi f)^3 = 5 m/s^3 with A = 0.1 m, above the frequencies at which a
steering loop with half a second of delay becomes unstable.

Where lane changes are asked for, "the lane" is both lanes for `max_lane_change_time` seconds from
the pulse on, the old one before and the new one after. So leaving without a pulse, being late,
turning back, and crossing a line on the far side all count as leaving the lane. And, on the whole
drive,

4. it is comfortable: speed times yaw rate is at most `max_lateral_acceleration`, and its change
   over 0.6 s at most `max_lateral_jerk` a second. The figures are those of UN Regulation 79 for
   systems that steer passenger cars: 3 m/s^2, and 5 m/s^3 as a moving average of half a second.

Comfort counts where the driver chooses the speed, too: see `pace_verdict` for what else does.

Other cars are there to be driven around: 5. the car's box meets none of theirs.

It does not know how the drive came about, nor what the road looked like.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from drive_envs.scenarios import Thresholds

Series = Float[np.ndarray, " time"]

JERK_WINDOW = 0.6  # s


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured on one drive."""

    mean_abs_lateral: float  # m, mean |d| over the centering window
    max_abs_lateral: float  # m, over the whole drive
    off_lane_time: float  # s, outside the lane
    num_reversals: int  # of more than the swing, over the oscillation window
    peak_to_peak: float  # m, of d over the oscillation window
    rms_lateral_speed: float  # m/s, of d over the oscillation window
    max_lateral_acceleration: float  # m/s^2
    max_lateral_jerk: float  # m/s^3, averaged over 0.6 s


def count_reversals(lateral: Series, swing: float) -> int:
    """Count the turning points of a series that it then retreats from by more than `swing`.

    This is a zigzag filter: from the first excursion of `swing` on, the running extreme in the
    direction of movement becomes a turning point once the series has come back by `swing`.

    Example: 0, 1, 0.5, 2 has two reversals (at 1 and at 0.5) for a swing of 0.3 and none for 0.6.
    """
    low = high = lateral[0]
    direction, reversals = 0, 0
    for d in lateral:
        low, high = min(low, d), max(high, d)
        if direction >= 0 and high - d > swing:
            reversals += direction > 0
            direction, low = -1, d
        elif direction <= 0 and d - low > swing:
            reversals += direction < 0
            direction, high = 1, d
    return int(reversals)


def measure(
    lateral: Series,
    is_outside: Bool[np.ndarray, " time"],
    acceleration: Float[np.ndarray, " between"],
    step: float,
    thresholds: Thresholds,
) -> Figures:
    """Measure a drive.

    Args:
        lateral: d in metres, one value a `step` (s); the windows are counted from its end.
        is_outside: where the vehicle centre is beyond an edge of the lane.
        acceleration: of the vehicle to its left in m/s^2, one value between two of d.
        step: time between two values in seconds.
        thresholds: windows and the swing.
    """
    end = lateral[-_count(thresholds.centering_window, step) :]
    late = lateral[-_count(thresholds.oscillation_window, step) :]
    speed = np.diff(late) / step
    span = round(JERK_WINDOW / step)
    jerk = (acceleration[span:] - acceleration[:-span]) / (span * step)
    return Figures(
        mean_abs_lateral=float(np.abs(end).mean()),
        max_abs_lateral=float(np.abs(lateral).max()),
        off_lane_time=float(is_outside.sum() * step),
        num_reversals=count_reversals(late, thresholds.swing),
        peak_to_peak=float(np.ptp(late)),
        rms_lateral_speed=float(np.sqrt(np.square(speed).mean())) if len(speed) else 0.0,
        max_lateral_acceleration=float(np.abs(acceleration).max(initial=0.0)),
        max_lateral_jerk=float(np.abs(jerk).max(initial=0.0)),
    )


def reasons_to_fail(
    figures: Figures, thresholds: Thresholds, *, is_comfort_judged: bool = False
) -> tuple[str, ...]:
    """Return one sentence for each threshold that the drive did not keep; none if it passed.

    is_comfort_judged: whether lateral acceleration and jerk count.
    """
    reasons = []
    if figures.off_lane_time > 0:
        reasons.append(
            f"left the lane for {figures.off_lane_time:.1f} s, "
            f"{figures.max_abs_lateral:.2f} m from where to be at most"
        )
    if figures.mean_abs_lateral > thresholds.max_mean_lateral:
        reasons.append(
            f"{figures.mean_abs_lateral:.2f} m from the centre on average over the last "
            f"{thresholds.centering_window:g} s (at most {thresholds.max_mean_lateral:g} m)"
        )
    if figures.num_reversals > thresholds.max_reversals:
        reasons.append(
            f"oscillates: {figures.num_reversals} reversals of more than {thresholds.swing:g} m in "
            f"the last {thresholds.oscillation_window:g} s (at most {thresholds.max_reversals})"
        )
    acceleration, jerk = figures.max_lateral_acceleration, figures.max_lateral_jerk
    if is_comfort_judged and acceleration > thresholds.max_lateral_acceleration:
        reasons.append(
            f"lateral acceleration {acceleration:.1f} m/s^2 "
            f"(at most {thresholds.max_lateral_acceleration:g})"
        )
    if is_comfort_judged and jerk > thresholds.max_lateral_jerk:
        reasons.append(
            f"lateral jerk {jerk:.1f} m/s^3 over {JERK_WINDOW:g} s "
            f"(at most {thresholds.max_lateral_jerk:g})"
        )
    return tuple(reasons)


def _count(window: float, step: float) -> int:
    """Return the number of samples that span a window, its two ends included."""
    return round(window / step) + 1
