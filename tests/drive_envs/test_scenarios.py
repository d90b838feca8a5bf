from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from drive_envs.roads import Block, Road
from drive_envs.scenarios import (
    Pulse,
    Scenario,
    ScenarioError,
    Thresholds,
    load_scenarios,
    shipped_path,
)
from drive_envs.scripted_cars import Car

SHIPPED = load_scenarios()
CHANGES = load_scenarios(Path("lane_change"))
PACES = load_scenarios(Path("longitudinal"))

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
    roads = {scenario.road.fingerprint() for scenario in SHIPPED}
    assert not roads & {scenario.road.fingerprint() for scenario in CHANGES}


@pytest.mark.parametrize("scenario", CHANGES, ids=lambda scenario: scenario.name)
def test_a_lane_change_is_fair(scenario):
    assert (np.abs(curvature(scenario)) * scenario.speed**2).max() <= 1.4
    late = scenario.desire[0].time + scenario.thresholds.max_lane_change_time
    assert late <= scenario.duration - 2
    assert 2 * scenario.road.extent <= 512
    offset, _ = scenario.target_offset(np.arange(0, scenario.duration, 0.2))
    right, left = scenario.edges(np.arange(0, scenario.duration, 0.2))
    assert ((right < offset) & (offset < left)).all()


def test_defaults_are_what_the_shipped_file_says(tmp_path):
    scenario = load_scenarios(write(tmp_path))[0]
    assert scenario.road == Road(blocks=(Block(kind="S", length=300.0),))
    assert scenario.duration == 12
    assert scenario.thresholds.max_mean_lateral == 0.5


def test_every_key_is_read(tmp_path):
    curve = {"radius": 120, "angle": 60, "direction": "right", "tail": 80}
    path = write(
        tmp_path,
        road=[{"straight": 60}, {"curve": curve}],
        lane_count=3,
        lane_width=3.25,
        lane=1,
        desire=[{"time": 2, "direction": "left"}],
        thresholds={"swing": 0.3},
        duration=10,
        heading_offset_deg=-2,
    )
    scenario = load_scenarios(path)[0]
    blocks = (
        Block(kind="S", length=60.0),
        Block(kind="C", length=80.0, radius=120.0, angle_deg=60.0, turn="right"),
    )
    assert scenario.road == Road(blocks=blocks, lane_count=3, lane_width=3.25)
    assert scenario.lanes == (1, 0)
    assert scenario.desire == (Pulse(time=2.0, direction="left"),)
    assert scenario.thresholds.swing == 0.3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offset": 1}, "scenario mine: unknown key 'offset'"),
        ({"lateral_ofset": 1}, "did you mean 'lateral_offset'"),
        ({"speed": "fast"}, "speed should be a number, got 'fast'"),
        ({"speed": True}, "speed should be a number, got True"),
        ({"speed": -1}, "speed must be positive"),
        ({"lane": 0.5}, "lane should be a whole number"),
        ({"lane": 2}, "lane 2 does not exist"),
        ({"lane_count": 1.5}, "lane_count should be a whole number"),
        ({"lane_count": 4}, "lane_count must be 1, 2 or 3"),
        ({"desire": [{"time": 2, "direction": "left"}]}, "lane -1 does not exist"),
        ({"desire": [{"time": 2, "direction": "up"}]}, "should be left or right, got 'up'"),
        ({"desire": [{"time": 2}]}, "direction missing"),
        ({"lane": 1, "desire": [{"time": 12, "direction": "left"}]}, "not within the 12 s that"),
        ({"station": 10}, "need 20 m of road behind the start"),
        ({"road": [{"straight": 100}]}, "the lane is 130 m long, but the drive needs 190 m"),
        ({"road": [{"bend": 100}]}, "unknown key 'bend'"),
        ({"road": {"straight": 100}}, "road should be a list"),
        ({"road": [{"curve": {"radius": 10, "angle": 90, "direction": "left"}}]}, "radius of more"),
        ({"road": [{"curve": {"radius": 99}}]}, "curve: angle, direction missing"),
        ({"thresholds": {"swing": 0}}, "swing must be positive"),
        ({"cars": [{"lane": 2, "gap": 30, "speed": 8}]}, "lane 2 does not exist"),
        ({"cars": [{"lane": 1, "gap": 300, "speed": 8}]}, "300 m ahead drives from 324 to 436 m"),
        ({"cars": [{"lane": 1, "gap": 30, "speed": -1}]}, "a car's speed must be 0 or more"),
        ({"cars": [{"lane": 0, "gap": -4, "speed": 8}]}, "-4 m ahead begins inside ours: its gap"),
        ({"cars": [{**CAR, "changes": {"time": 3}}]}, "changes should be a list"),
        ({"cars": [{**CAR, "changes": [{"time": 3}]}]}, "cars: changes: speed missing"),
        ({"cars": [{**CAR, "changes": [{"time": 3, "speed": -1}]}]}, "the speed must be 0 or more"),
        ({"cars": [{**CAR, "changes": [STOP, {"time": 4, "speed": 8}]}]}, "before it has done so"),
        ({"cars": [{**CAR, "cut_in": {"time": 3}}]}, "cut_in: lane missing"),
        ({"cars": [{**CAR, "cut_in": {"time": 3, "lane": 2}}]}, "lane 2 does not exist"),
        ({"cars": [{**CAR, "cutin": 3}]}, "unknown key 'cutin'; did you mean 'cut_in'"),
        ({"longitudinal": "teacher"}, "longitudinal should be recorded or policy, got 'teacher'"),
        ({"name": "a/b"}, "name must be one word"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, words):
    path = write(tmp_path, **changes)
    with pytest.raises(ScenarioError, match=r"mine\.yaml") as error:
        load_scenarios(path)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must be a list of scenarios"),
        ("name: a", "must be a list of scenarios"),
        ("- [", "cannot be read as YAML"),
        ("- straight", "scenario number 1: should be `key: value`"),
        ("- {road: []}", "name, station, speed missing"),
    ],
)
def test_what_is_no_list_of_scenarios_is_refused(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=r"bad\.yaml") as error:
        load_scenarios(path)
    assert words in str(error.value)


def test_names_are_unique_and_files_exist(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump([ENTRY, ENTRY]))
    with pytest.raises(ScenarioError, match="mine: given twice"):
        load_scenarios(path)
    with pytest.raises(ScenarioError, match=r"no\.yaml: no such file"):
        load_scenarios(tmp_path / "no.yaml")


def test_the_target_has_no_lateral_error_and_is_smooth(tmp_path):
    curve = Block(kind="C", length=200.0, radius=120.0, angle_deg=60.0, turn="left")
    scenario = Scenario(
        name="change",
        road=Road(blocks=(curve,), lane_count=3),
        lane=2,
        station=35.0,
        speed=12.0,
        desire=(Pulse(time=1.0, direction="left"), Pulse(time=7.0, direction="right")),
    )
    time = np.arange(0, 12.0, 0.01)
    poses = scenario.target_poses(time)
    offset, rate = scenario.target_offset(time)
    np.testing.assert_allclose(scenario.line.locate(poses[:, :2])[1], offset, atol=1e-9)
    assert offset[[0, 600, -1]] == pytest.approx([0, 3.5, 0], abs=1e-6)
    np.testing.assert_allclose(np.gradient(offset, time)[1:-1], rate[1:-1], atol=2e-3)
    heading = np.unwrap(np.arctan2(*np.gradient(poses[:, :2], time, axis=0).T[::-1]))
    np.testing.assert_allclose(heading[1:-1], np.unwrap(poses[1:-1, 2]), atol=2e-3)
    assert replace(scenario, desire=()).target_offset(time)[0].max() == 0


def test_edges_are_those_of_both_lanes_while_a_change_may_last():
    scenario = Scenario(
        name="change",
        road=Road(blocks=(Block(kind="S", length=300.0),), lane_count=3),
        lane=2,
        station=35.0,
        speed=10.0,
        desire=(Pulse(time=1.0, direction="left"), Pulse(time=6.0, direction="left")),
        thresholds=Thresholds(max_lane_change_time=4.0),
    )
    right, left = scenario.edges(np.array([0.0, 0.9, 1.0, 5.0, 5.1, 6.0, 10.0, 10.1]))
    assert right.tolist() == [-1.75, -1.75, -1.75, -1.75, 1.75, 1.75, 1.75, 5.25]
    assert left.tolist() == [1.75, 1.75, 5.25, 5.25, 5.25, 8.75, 8.75, 8.75]
    kept = replace(scenario, desire=()).edges(np.zeros(3))
    assert [edge.tolist() for edge in kept] == [[-1.75] * 3, [1.75] * 3]


def test_the_longitudinal_list_is_balanced_and_varied():
    assert len(PACES) == 16
    assert {scenario.longitudinal for scenario in PACES} == {"policy"}
    kinds = ("follow", "slows", "speeds-up", "standing", "cut-in", "curve", "start-again")
    counts = [sum(s.name.startswith(kind) for s in PACES) for kind in kinds]
    assert counts == [3, 3, 1, 3, 2, 2, 2]
    assert len({scenario.seed for scenario in (*SHIPPED, *CHANGES, *PACES)}) == 60
    others = {scenario.road.fingerprint() for scenario in (*SHIPPED, *CHANGES)}
    assert not others & {scenario.road.fingerprint() for scenario in PACES}


@pytest.mark.parametrize("scenario", PACES, ids=lambda scenario: scenario.name)
def test_a_longitudinal_scenario_is_fair(scenario):
    time = np.arange(0.0, scenario.duration, 0.05)
    station, speed = scenario.reference.at(time)
    assert station[0] == scenario.station
    np.testing.assert_allclose(np.gradient(station, time)[1:-1], speed[1:-1], atol=0.05)
    assert 2 * scenario.road.extent <= 512
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
