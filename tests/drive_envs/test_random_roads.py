from dataclasses import replace

import numpy as np
import pytest

from drive_envs.random_roads import RoadsConfig, random_road
from drive_envs.roads import lane_centerline
from drive_envs.scenarios import load_scenarios

CONFIG = RoadsConfig()


def roads(num, config=CONFIG, length=500.0):
    return [random_road(config, np.random.default_rng(i), length) for i in range(num)]


def test_roads_are_long_enough_and_fit_the_region():
    for road in roads(12, length=900.0):
        assert road.length >= 900.0
        assert road.extent <= CONFIG.region / 2


def test_roads_stay_apart_from_themselves():
    for road in roads(8):
        line = lane_centerline(road, 0)
        s = np.arange(0.0, line.length, 10.0)
        points = line.poses(s)[:, :2]
        found, offset = line.locate(points)
        np.testing.assert_allclose(found, s, atol=1e-6)
        np.testing.assert_allclose(offset, 0, atol=1e-6)


def test_parameters_cover_their_ranges():
    made = roads(40, replace(CONFIG, region=1024), length=300.0)
    curves = [block for road in made for block in road.blocks if block.kind == "C"]
    radii = np.array([block.radius for block in curves])
    assert radii.min() > 25
    assert radii.max() < 600
    length = radii * np.radians([block.angle_deg for block in curves])
    assert length[radii < 60].sum() > 0.1 * length.sum()
    assert length[radii > 200].sum() > 0.1 * length.sum()
    for road in made:
        of_road = [block.radius for block in road.blocks if block.kind == "C"]
        least = 2 * road.lane_count * road.lane_width + 1.0
        assert max(of_road, default=0.0) <= CONFIG.spread * max(min(of_road, default=0.0), least)
    assert 0.35 < np.mean([block.turn == "left" for block in curves]) < 0.65
    assert {road.lane_count for road in made} == {1, 2, 3}
    assert all(3.2 <= road.lane_width <= 3.8 for road in made)


def test_the_same_seed_gives_the_same_road():
    assert roads(3) == roads(3)
    assert len({road.fingerprint() for road in roads(10)}) == 10


def test_no_random_road_is_a_scenario():
    scenarios = {scenario.road.fingerprint() for scenario in load_scenarios()}
    assert not scenarios & {road.fingerprint() for road in roads(10)}


def test_a_road_too_long_for_its_region_is_refused():
    straight = replace(CONFIG, region=512, straight_share=1.0, straight=(300.0, 310.0))
    with pytest.raises(ValueError, match="no road of 900 m found within a region of 512 m"):
        random_road(straight, np.random.default_rng(0), 900.0)


def test_impossible_ranges_are_refused():
    with pytest.raises(
        ValueError, match=r"roads\.radius must be a range above 0, got 90.0 to 30.0"
    ):
        RoadsConfig(radius=(90.0, 30.0))
    with pytest.raises(ValueError, match=r"roads\.straight_share must be 0 to 1, got 2"):
        RoadsConfig(straight_share=2.0)
