import numpy as np
import pytest

from drive_actors.verdict import count_reversals, measure, reasons_to_fail
from drive_envs.scenarios import Thresholds

STEP = 0.2
TIME = np.arange(61) * STEP  # 12 s
HALF_WIDTH = 1.75
LIMITS = Thresholds()


def reasons(lateral):
    return reasons_to_fail(measure(lateral, STEP, HALF_WIDTH, LIMITS), LIMITS)


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
    figures = measure(lateral, STEP, HALF_WIDTH, limits)
    assert figures.mean_abs_lateral == pytest.approx(0.5)
    assert figures.max_abs_lateral == 2.0
    assert figures.off_lane_time == pytest.approx(0.4)
    assert figures.peak_to_peak == pytest.approx(2.5)
    assert figures.num_reversals == 1
    assert figures.rms_lateral_speed == pytest.approx(np.sqrt((25 + 25 + 6.25 + 25) / 5))
    changing = np.arange(7) < 2
    assert measure(lateral, STEP, HALF_WIDTH, limits, changing).off_lane_time == 0
