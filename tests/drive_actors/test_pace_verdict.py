from dataclasses import replace

import numpy as np
import pytest

from drive_actors.pace_verdict import measure_pace, pace_reasons
from drive_envs.scenarios import Thresholds

LIMITS = Thresholds()
TIME = np.arange(0.0, 10.01, 0.2)
FREE = np.full(len(TIME), np.inf)


def of(speed, gap=FREE, progress=1.0):
    return measure_pace(np.broadcast_to(speed, TIME.shape), gap, 0.2, progress, LIMITS)


def ramp(before, after, rate, begin=4.0):
    """Go from one speed to another at `rate` m/s^2, from `begin` s on."""
    duration = abs(after - before) / rate
    return np.interp(TIME, [begin, begin + duration], [before, after])


def test_a_steady_drive_on_a_free_road_passes():
    figures = of(15.0)
    assert pace_reasons(figures, LIMITS) == ()
    assert figures.min_gap == figures.min_headway == np.inf
    assert figures.close_time == figures.discomfort == 0


def test_figures_by_hand():
    gap = np.where(TIME < 5, 20.0, 6.0)
    figures = of(10.0, gap)
    assert (figures.min_gap, figures.min_headway) == (6.0, 0.6)
    assert figures.close_time == pytest.approx(0.2 * (TIME >= 5).sum())
    assert of(1.0, gap).min_headway == np.inf  # who crawls has no headway
    figures = of(ramp(20.0, 10.0, 2.5))
    assert figures.max_braking == pytest.approx(2.5)
    assert figures.max_jerk == pytest.approx(2.5)
    assert figures.discomfort == pytest.approx(1.0)
    assert of(ramp(5.0, 13.0, 2.0)).max_acceleration == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("speed", "gap", "progress", "word"),
    [
        (10.0, np.where(TIME < 1, 1.0, 20.0), 1.0, "1.0 m behind the car ahead (at least 1.5 m)"),
        (10.0, np.where(TIME < 3, 7.0, 20.0), 1.0, "less than 0.8 s behind the car ahead for 3.0"),
        (10.0, FREE, 0.7, "drove 70% of a good driver's way (at least 80%)"),
        (ramp(22.0, 10.0, 3.6), FREE, 1.0, "braking 3.6 m/s^2"),
        (ramp(20.0, 26.0, 2.4), FREE, 1.0, "acceleration 2.4 m/s^2"),
        (ramp(20.0, 17.0, 3.0), FREE, 1.0, "3.0 m/s^3"),
        (ramp(20.0, 17.0, 3.0, begin=0.0), FREE, 1.0, "3.0 m/s^3"),
    ],
)
def test_fails_for_one_reason(speed, gap, progress, word):
    (why,) = pace_reasons(of(speed, gap, progress), LIMITS)
    assert word in why


def test_what_is_too_hard_at_speed_is_not_in_town():
    assert pace_reasons(of(ramp(22.0, 16.0, 3.0)), LIMITS) != ()
    assert pace_reasons(of(ramp(8.0, 2.0, 3.0)), LIMITS) == ()
    assert pace_reasons(of(10.0, FREE, 0.7), replace(LIMITS, min_progress=0.5)) == ()
