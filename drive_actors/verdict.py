"""When a closed-loop drive counts as lane centering: a pure function of its lateral positions.

The lateral position d(t) is the distance of the vehicle centre from the lane centre in metres,
positive left, sampled at equal steps. A drive passes when

1. it never leaves the lane: |d| <= lane_width / 2 at every sample;
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

It does not know how the drive came about, nor what the road looked like.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from drive_envs.scenarios import Thresholds

Series = Float[np.ndarray, " time"]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured on one drive."""

    mean_abs_lateral: float  # m, mean |d| over the centering window
    max_abs_lateral: float  # m, over the whole drive
    off_lane_time: float  # s, outside the lane
    num_reversals: int  # of more than the swing, over the oscillation window
    peak_to_peak: float  # m, of d over the oscillation window
    rms_lateral_speed: float  # m/s, of d over the oscillation window


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
    step: float,
    half_width: float,
    thresholds: Thresholds,
    is_changing_lane: Bool[np.ndarray, " time"] | None = None,
) -> Figures:
    """Measure a drive.

    Args:
        lateral: d in metres, one value a `step` (s); the windows are counted from its end.
        step: time between two values in seconds.
        half_width: half the width of the lane in metres.
        thresholds: windows and the swing.
        is_changing_lane: where d is not held against the lane's edges, because the scenario asked
            for a lane change; nowhere by default.
    """
    outside = np.abs(lateral) > half_width
    if is_changing_lane is not None:
        outside &= ~is_changing_lane
    end = lateral[-_count(thresholds.centering_window, step) :]
    late = lateral[-_count(thresholds.oscillation_window, step) :]
    speed = np.diff(late) / step
    return Figures(
        mean_abs_lateral=float(np.abs(end).mean()),
        max_abs_lateral=float(np.abs(lateral).max()),
        off_lane_time=float(outside.sum() * step),
        num_reversals=count_reversals(late, thresholds.swing),
        peak_to_peak=float(np.ptp(late)),
        rms_lateral_speed=float(np.sqrt(np.square(speed).mean())) if len(speed) else 0.0,
    )


def reasons_to_fail(figures: Figures, thresholds: Thresholds) -> tuple[str, ...]:
    """Return one sentence for each threshold that the drive did not keep; none if it passed."""
    reasons = []
    if figures.off_lane_time > 0:
        reasons.append(
            f"left the lane for {figures.off_lane_time:.1f} s, "
            f"{figures.max_abs_lateral:.2f} m from its centre at most"
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
    return tuple(reasons)


def _count(window: float, step: float) -> int:
    """Return the number of samples that span a window, its two ends included."""
    return round(window / step) + 1
