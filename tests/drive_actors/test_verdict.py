import numpy as np
import pytest

from drive_actors.verdict import count_reversals, measure, reasons_to_fail
from drive_envs.scenarios import Thresholds

STEP = 0.2
TIME = np.arange(61) * STEP  # 12 s
HALF_WIDTH = 1.75
LIMITS = Thresholds()


def figures_of(lateral, limits=LIMITS, acceleration=None):
    acceleration = np.zeros(len(lateral) - 1) if acceleration is None else acceleration
    return measure(lateral, np.abs(lateral) > HALF_WIDTH, acceleration, STEP, limits)


def reasons(lateral):
    return reasons_to_fail(figures_of(lateral), LIMITS)


@pytest.mark.parametrize(
    "lateral",
    [
        0 * TIME,
        np.exp(-0.7 * TIME),
        -1.0 * (1 + 0.9 * TIME) * np.exp(-0.9 * TIME),
        np.full_like(TIME, 0.3),
        -0.9 + 0.09 * TIME,
        np.exp(-0.5 * TIME) * np.cos(2 * np.pi * 0.25 * TIME),
        0.05 * np.random.default_rng(0).standard_normal(len(TIME)),
    ],
    ids=["centred", "exponential", "critical", "offset", "drift", "damped", "jitter"],
)
def test_passes(lateral):
    assert reasons(lateral) == ()


@pytest.mark.parametrize(
    ("lateral", "word"),
    [
        (0.3 * np.sin(2 * np.pi * 0.3 * TIME), "oscillates"),
        (np.full_like(TIME, -0.6), "average"),
        (0.06 * TIME, "average"),
        (1.8 * np.exp(-0.7 * TIME), "left the lane"),
    ],
    ids=["weave", "offset", "drift", "edge"],
)
def test_fails_for_one_reason(lateral, word):
    assert len(reasons(lateral)) == 1
    assert word in reasons(lateral)[0]


@pytest.mark.parametrize("frequency", [0.286, 0.35, 0.45, 0.6])
@pytest.mark.parametrize("phase", np.linspace(0, 2 * np.pi, 7))
def test_a_weave_is_found_at_every_phase_and_on_a_drift(frequency, phase):
    weave = 0.2 * np.sin(2 * np.pi * frequency * TIME + phase) - 0.2 + 0.03 * TIME
    assert any("oscillates" in reason for reason in reasons(weave))


def test_reversals_by_definition():
    zigzag = np.array([0.0, 1.0, 0.5, 2.0])
    assert count_reversals(zigzag, 0.3) == 2
    assert count_reversals(zigzag, 0.6) == 0
    assert count_reversals(-zigzag, 0.3) == 2
    assert count_reversals(zigzag[::-1], 0.3) == 2


def test_figures_by_hand():
    lateral = np.array([2.0, 2.0, 1.0, 0.0, -0.5, 0.5, 0.5])
    limits = Thresholds(centering_window=0.4, oscillation_window=1.0)
    figures = figures_of(lateral, limits)
    assert figures.mean_abs_lateral == pytest.approx(0.5)
    assert figures.max_abs_lateral == 2.0
    assert figures.off_lane_time == pytest.approx(0.4)
    assert figures.peak_to_peak == pytest.approx(2.5)
    assert figures.num_reversals == 1
    assert figures.rms_lateral_speed == pytest.approx(np.sqrt((25 + 25 + 6.25 + 25) / 5))
    assert measure(lateral, lateral > 3, np.zeros(6), STEP, limits).off_lane_time == 0


def test_comfort_counts_where_a_lane_change_is_asked_for():
    jump = np.repeat([0.0, 3.1], 30)
    figures = figures_of(0 * TIME, acceleration=jump)
    assert figures.max_lateral_acceleration == pytest.approx(3.1)
    assert figures.max_lateral_jerk == pytest.approx(3.1 / 0.6)
    assert reasons_to_fail(figures, LIMITS) == ()
    why = reasons_to_fail(figures, LIMITS, is_comfort_judged=True)
    assert why == (
        "lateral acceleration 3.1 m/s^2 (at most 3)",
        "lateral jerk 5.2 m/s^3 over 0.6 s (at most 5)",
    )
    slow = figures_of(0 * TIME, acceleration=np.linspace(-2.9, 2.9, 60))
    assert reasons_to_fail(slow, LIMITS, is_comfort_judged=True) == ()
