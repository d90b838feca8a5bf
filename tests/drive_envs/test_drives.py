from dataclasses import replace

import numpy as np
import pytest

from drive_envs.drives import DriveConfig, random_drive
from drive_envs.human import HumanConfig
from drive_envs.plan import STEP
from drive_envs.roads import lane_centerline
from drive_envs.traffic import TrafficConfig

CONFIG = DriveConfig(seconds=12.0, lane_change_fraction=0.0)


def drives(num, config=CONFIG):
    return [random_drive(config, np.random.default_rng([3, i])) for i in range(num)]


@pytest.mark.slow
def test_drives_keep_their_lane_and_their_comfort():
    for drive in drives(12):
        line = lane_centerline(drive.road, drive.lane, opposite=drive.opposite)
        _, offset = line.locate(drive.poses[:, :2])
        np.testing.assert_allclose(offset, drive.offset, atol=1e-6)
        assert np.abs(offset).max() < drive.road.lane_width / 2 - 0.3
        yaw = np.unwrap(drive.poses[:, 2])
        lateral = drive.speed[:-1] * np.diff(yaw) / STEP
        assert np.abs(lateral).max() < 2.8
        travelled = np.hypot(*np.diff(drive.poses[:, :2], axis=0).T)
        np.testing.assert_allclose(travelled, drive.speed[:-1] * STEP, atol=0.2)


@pytest.mark.slow
def test_lane_changes_are_announced_and_done():
    config = replace(
        CONFIG, lane_change_fraction=1.0, seconds=20.0, traffic=TrafficConfig(share=0.0)
    )
    for drive in drives(6, config):
        row = int(np.flatnonzero(drive.desire)[0])
        moved = drive.offset[-1] - drive.offset[row]
        assert (drive.desire != 0).sum() == 1
        assert np.sign(moved) == {1: 1, 2: -1}[int(drive.desire[row])]
        assert abs(moved) == pytest.approx(drive.road.lane_width, abs=0.9)


def test_a_drive_is_repeatable_and_different_from_the_next():
    first, second = drives(2)
    again = drives(1)[0]
    np.testing.assert_array_equal(first.poses, again.poses)
    assert first.road.fingerprint() != second.road.fingerprint()


@pytest.mark.slow
def test_traffic_is_seen_and_not_hit():
    config = replace(CONFIG, traffic=TrafficConfig(share=1.0, spacing=(50.0, 90.0)))
    for drive in drives(5, config):
        assert drive.num_cars > 0
        for pose, cars in zip(drive.poses, drive.cars, strict=True):
            around = np.concatenate([cars["s"], cars["m"]])[:, :2]
            assert (np.hypot(*(around - pose[:2]).T) > 1.9).all()


def test_habits_can_be_switched_off():
    human = HumanConfig(preference_std=0.0, drift_std=0.0, corner_cutting=0.0)
    for drive in drives(2, replace(CONFIG, human=human)):
        assert drive.driver.preference == 0.0
        assert np.abs(drive.offset).max() < 0.3


def test_impossible_drives_are_refused():
    with pytest.raises(ValueError, match=r"seconds must be 0.4 to 60 \(a segment\), got 100"):
        DriveConfig(seconds=100.0)
    with pytest.raises(ValueError, match="lane_change_fraction must be 0 to 1, got -1"):
        DriveConfig(lane_change_fraction=-1.0)
