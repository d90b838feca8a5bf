from dataclasses import replace

import numpy as np
import pytest

from drive_envs.human import Human, HumanConfig, LaneChange, Lead, draw_driver, speed_profile
from drive_envs.plan import STEP
from drive_envs.roads import Block, Road, lane_centerline

CURVE = Block(kind="C", length=80.0, radius=100.0, angle_deg=60.0, turn="left")
ROAD = Road(blocks=(Block(kind="S", length=400.0), CURVE, Block(kind="S", length=300.0)))
STRAIGHT = Road(blocks=(Block(kind="S", length=1500.0),))
FIXED_SPEED = HumanConfig(min_speed=15.0, max_speed=15.0)


def drive(road, config, seed, *, seconds=30.0, lane_change=None, lead=None):
    line = lane_centerline(road, 1)
    driver = draw_driver(config, np.random.default_rng(seed))
    human = Human(line, driver, start=20.0, lane_change=lane_change)
    rows = []
    for _ in range(round(seconds / STEP)):
        rows.append((human.offset, human.speed, human.curvature, human.desire))
        human.advance(lead)
    return driver, *np.array(rows).T


def test_the_preference_of_a_drive_persists():
    for seed in range(6):
        driver, offset, *_ = drive(STRAIGHT, FIXED_SPEED, seed)
        assert np.abs(offset - driver.preference).max() < 0.45
        assert abs(offset[-50:].mean() - offset[:50].mean()) < 0.35


def test_preferences_differ_between_drives():
    config = HumanConfig()
    drawn = [draw_driver(config, np.random.default_rng(seed)).preference for seed in range(400)]
    assert np.std(drawn) == pytest.approx(0.38, abs=0.04)
    assert np.abs(drawn).max() <= config.max_preference


def test_without_habits_the_lane_centre_is_kept():
    config = HumanConfig(
        preference_std=0.0, drift_std=0.0, corner_cutting=0.0, min_speed=12.0, max_speed=12.0
    )
    _, offset, *_ = drive(ROAD, config, 0)
    assert np.abs(offset).max() < 0.2


def test_corners_are_cut_to_the_inside():
    centred = HumanConfig(
        preference_std=0.0, drift_std=0.0, min_speed=10.0, max_speed=10.0, corner_cutting=20.0
    )
    _, cutting, *_ = drive(ROAD, centred, 0, seconds=55)
    _, keeping, *_ = drive(ROAD, replace(centred, corner_cutting=0.0), 0, seconds=55)
    assert (cutting - keeping).max() > 0.08


def test_curves_are_driven_at_a_comfortable_lateral_acceleration():
    config = HumanConfig(min_speed=30.0, max_speed=30.0)
    _, _, speed, curvature, _ = drive(ROAD, config, 1, seconds=40)
    assert speed.max() > 25
    assert np.abs(speed**2 * curvature).max() < config.lateral_acceleration + 0.6
    driver = draw_driver(config, np.random.default_rng(0))
    profile = speed_profile(lane_centerline(ROAD, 1), driver)
    assert np.diff(profile).min() > -1.0  # brakes ahead of the curve, not in it


def test_a_lane_change_is_announced_once_and_ends_in_the_next_lane():
    change = LaneChange(start=8.0, offset=3.5, duration=5.0)
    driver, offset, _, _, desire = drive(STRAIGHT, FIXED_SPEED, 2, lane_change=change)
    assert np.flatnonzero(desire).tolist() == [40]
    assert desire[40] == 1
    assert offset[40] - driver.preference < 0.4
    assert offset[-40:].mean() - driver.preference == pytest.approx(3.5, abs=0.3)
    assert offset.max() - driver.preference < 4.0


def test_a_slower_lead_is_not_hit():
    line = lane_centerline(STRAIGHT, 1)
    driver = draw_driver(HumanConfig(min_speed=25.0, max_speed=25.0), np.random.default_rng(0))
    human = Human(line, driver, start=20.0, lane_change=None)
    lead = human.s + 60.0
    for _ in range(200):
        assert lead - human.s > 1.0
        human.advance(Lead(lead - human.s, 8.0))
        lead += 8.0 * STEP
    assert human.speed == pytest.approx(8.0, abs=1.0)


def test_impossible_habits_are_refused():
    with pytest.raises(ValueError, match="preference_std"):
        HumanConfig(preference_std=-1.0)
    with pytest.raises(ValueError, match="min_speed"):
        HumanConfig(min_speed=10.0, max_speed=5.0)
