from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from drive_envs.roads import Block, Road
from drive_envs.scenarios import (
    Scenario,
    load_scenarios,
    shipped_path,
)
from drive_envs.scripted_cars import Car

SHIPPED = load_scenarios()
PACES = load_scenarios(Path("longitudinal"))
CHANGES = load_scenarios(Path("lane_change"))

ENTRY = {"name": "mine", "road": [{"straight": 300}], "station": 40, "speed": 10}


CAR = {"lane": 1, "gap": 30, "speed": 8}
STOP = {"time": 3, "speed": 0, "acceleration": 2}


def write(tmp_path, **changes):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump([{**ENTRY, **changes}]))
    return path


def curvature(scenario, start=0.0):
    time = np.arange(start, scenario.duration + 0.01, 0.2)
    return scenario.line.curvature(scenario.station + scenario.speed * time)


def test_the_shipped_list_is_balanced_and_varied():
    assert len(SHIPPED) == 24
    turns = [np.sign(curvature(scenario, scenario.duration - 3).mean()) for scenario in SHIPPED]
    assert [turns.count(sign) for sign in (1, -1, 0)] == [8, 8, 8]
    radii = [1 / np.abs(k).max() for k in map(curvature, SHIPPED) if k.any()]
    assert 38 <= min(radii) <= 40
    assert 490 <= max(radii) <= 510
    assert {abs(scenario.lateral_offset) for scenario in SHIPPED} == {0, 0.3, 0.6, 1.0}
    for name in ("lateral_offset", "heading_offset_deg"):
        signs = [np.sign(getattr(scenario, name)) for scenario in SHIPPED]
        assert abs(signs.count(1) - signs.count(-1)) <= 3
    assert max(abs(scenario.heading_offset_deg) for scenario in SHIPPED) == 3
    assert {scenario.speed for scenario in SHIPPED} >= {5, 25}
    lanes = {(scenario.road.lane_count, scenario.lane) for scenario in SHIPPED}
    assert lanes == {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}
    assert len({scenario.seed for scenario in SHIPPED}) == 24
    assert len({scenario.road.fingerprint() for scenario in SHIPPED}) >= 20


@pytest.mark.parametrize("scenario", SHIPPED, ids=lambda scenario: scenario.name)
def test_a_shipped_scenario_is_fair(scenario):
    assert scenario.duration >= 10
    assert (np.abs(curvature(scenario)) * scenario.speed**2).max() <= 2.5
    in_curve = curvature(scenario) != 0
    assert not in_curve.any() or in_curve.mean() > 0.6
    assert abs(scenario.lateral_offset) < scenario.road.lane_width / 2
    assert not scenario.desire


def test_the_lane_changes_are_balanced_and_varied():
    assert len(CHANGES) == 20
    assert load_scenarios(shipped_path("lane_change")) == CHANGES
    assert [len(scenario.desire) for scenario in CHANGES] == [1] * 20
    sides = [scenario.desire[0].direction for scenario in CHANGES]
    assert sides.count("left") == 10
    assert [len(scenario.cars) for scenario in CHANGES].count(1) == 10
    for scenario in CHANGES:
        for car in scenario.cars:  # in the lane that is left, and hit by whoever stays
            assert car.lane == scenario.lane
            assert car.gap + (car.speed - scenario.speed) * scenario.duration < 0
    turns = [np.sign(curvature(scenario).mean()) for scenario in CHANGES]
    assert [turns.count(sign) for sign in (1, -1, 0)] == [6, 6, 8]
    ways = {(turn, side) for turn, side in zip(turns, sides, strict=True)}
    assert len(ways) == 6
    assert {min(s.speed for s in CHANGES), max(s.speed for s in CHANGES)} == {8, 28}
    assert len({scenario.seed for scenario in [*SHIPPED, *CHANGES]}) == 44


@pytest.mark.parametrize("scenario", PACES, ids=lambda scenario: scenario.name)
def test_a_longitudinal_scenario_is_fair(scenario):
    time = np.arange(0.0, scenario.duration, 0.05)
    station, speed = scenario.reference.at(time)
    assert station[0] == scenario.station
    np.testing.assert_allclose(np.gradient(station, time)[1:-1], speed[1:-1], atol=0.05)
    lateral = np.abs(scenario.line.curvature(station)) * speed**2
    assert lateral.max() < 2.3
    # Holding the speed is no way: it takes a tenth less to get by.
    assert speed.min() < 0.9 * scenario.speed
    if scenario.name.startswith("start-again"):
        assert speed.min() < 0.1
        assert speed[-1] > 0.3 * scenario.speed
    if scenario.name.startswith("standing"):
        assert speed[-20:].max() < 0.1


def test_other_cars_keep_their_lane_and_speed():
    curve = Block(kind="C", length=200.0, radius=120.0, angle_deg=90.0, turn="right")
    scenario = Scenario(
        name="cars",
        road=Road(blocks=(curve,), lane_count=2),
        lane=0,
        station=40.0,
        speed=12.0,
        cars=(Car(lane=1, gap=25.0, speed=10.0), Car(lane=0, gap=-10.0, speed=8.0)),
    )
    time = np.array([-2.0, 0.0, 5.0])
    for index, (side, ahead, speed) in enumerate([(-3.5, 65, 10), (0, 30, 8)]):
        s, offset = scenario.line.locate(scenario.car_poses(time)[:, index, :2])
        np.testing.assert_allclose(offset, side, atol=1e-6)
        np.testing.assert_allclose(s, ahead + speed * time, atol=1e-6)
    assert replace(scenario, cars=()).car_poses(time).shape == (3, 0, 3)
