from dataclasses import replace

import numpy as np
import pytest

from drive_envs.roads import Block, Road
from drive_envs.scenarios import Scenario
from drive_envs.scripted_cars import Car, CutIn, SpeedChange, gaps

TIME = np.arange(-2.0, 20.0, 0.01)
STRAIGHT = Road(blocks=(Block(kind="S", length=400.0),), lane_count=2)


def scenario(*cars, lane=0, speed=15.0, duration=16.0):
    return Scenario(
        name="mine",
        road=STRAIGHT,
        lane=lane,
        longitudinal="policy",
        station=40.0,
        speed=speed,
        duration=duration,
        cars=cars,
    )


def test_a_car_drives_as_it_is_told():
    stop, go = SpeedChange(time=3.0, speed=0.0), SpeedChange(time=10.0, speed=5.0, acceleration=1.0)
    car = Car(lane=0, gap=30.0, speed=10.0, changes=(stop, go))
    distance, speed = car.driven(TIME)
    assert np.interp([-2, 0, 3, 5.5, 8, 10, 15, 19], TIME, speed) == pytest.approx(
        [10, 10, 10, 5, 0, 0, 5, 5], abs=0.02
    )
    at = np.interp([-2, 0, 3, 8, 10, 15, 19], TIME, distance)
    assert at == pytest.approx([-20, 0, 30, 55, 55, 67.5, 87.5], abs=0.01)
    np.testing.assert_allclose(np.gradient(distance, TIME), speed, atol=0.02)
    alone, _ = car.driven(np.array([8.0]))
    assert alone == pytest.approx(55)


def test_a_car_that_cuts_in_is_in_both_lanes_and_points_where_it_goes():
    car = Car(lane=1, gap=20.0, speed=12.0, cut_in=CutIn(time=3.0, lane=0, duration=4.0))
    assert car.lane_at(np.array([0.0, 3.0, 5.0, 7.0, 9.0])).tolist() == [1, 1, 0.5, 0, 0]
    assert car.goal_at(np.array([2.9, 3.0, 9.0])).tolist() == [1, 0, 0]
    mine = scenario(car)
    poses = mine.car_poses(TIME)[:, 0]
    track = np.gradient(poses[:, :2], TIME, axis=0)
    heading = np.arctan2(track[:, 1], track[:, 0]) - poses[:, 2]
    assert np.abs(heading[2:-2]).max() < 0.02
    _, offset = mine.line.locate(poses[[0, -1], :2])
    assert offset == pytest.approx([-3.5, 0], abs=1e-6)


def test_the_gap_is_to_who_is_in_the_way_and_ahead():
    cars = [Car(lane=0, gap=gap, speed=10.0) for gap in (-20.0, 30.0, 60.0)]
    beside = Car(lane=1, gap=15.0, speed=10.0)
    mine, now = scenario(*cars, beside), np.zeros(1)
    station = np.array([mine.station])
    found = gaps(mine.car_tracks(now), station, now, width=1.9)
    assert found[0].tolist() == pytest.approx([np.inf, 25.4, 55.4, np.inf])
    found = gaps(mine.car_tracks(now), station, now - 3.4, width=1.9)
    assert found[0].tolist() == pytest.approx([np.inf, np.inf, np.inf, 10.4])


def test_a_good_driver_drives_on_alone_and_follows_with_distance():
    time = np.arange(0.0, 16.0, 0.2)
    free = scenario().reference
    np.testing.assert_allclose(free.at(time)[0], 40 + 15 * time, atol=1e-6)
    assert free.at(np.array([-2.0, 100.0]))[0].tolist() == pytest.approx([10, 1540])
    beside = scenario(Car(lane=1, gap=30.0, speed=5.0)).reference
    np.testing.assert_allclose(beside.at(time)[0], 40 + 15 * time, atol=1e-6)
    behind = scenario(Car(lane=0, gap=-20.0, speed=5.0)).reference
    np.testing.assert_allclose(behind.at(time)[0], 40 + 15 * time, atol=1e-6)
    slow = scenario(Car(lane=0, gap=45.0, speed=9.0))
    station, speed = slow.reference.at(time)
    gap = 40 + 45 + 9 * time - station - 4.6
    assert speed[-1] == pytest.approx(9, abs=0.3)
    assert gap[-1] == pytest.approx(5 + 1.5 * 9, abs=2)
    assert np.diff(speed, 2).min() > -2.0 * 0.2**2 - 0.01
    kept = replace(slow, longitudinal="recorded").reference
    np.testing.assert_allclose(kept.at(time)[0], 40 + 15 * time, atol=1e-6)


def test_a_good_driver_gives_way_as_soon_as_he_is_told():
    time = np.arange(0.0, 12.0, 0.05)
    car = Car(lane=1, gap=22.0, speed=12.0, cut_in=CutIn(time=4.0, lane=0))
    speed = scenario(car, speed=14.0, duration=12.0).reference.at(time)[1]
    assert np.ptp(speed[time < 4.0]) == pytest.approx(0, abs=1e-6)
    assert speed[time > 4.5].max() < 14.0
