import numpy as np
import pytest
import torch

from drive_envs.path import PathOffset, gather_paths
from drive_envs.vehicle import actions_from_poses
from world_model.excursions import ExcursionConfig, draw_excursion


def test_poses_are_where_the_offset_says(synthetic):
    path = synthetic.winding_path()
    drive = draw_excursion(path, ExcursionConfig(), np.random.default_rng(0))
    for row in (20, 55, 90):
        paths = gather_paths([path], [row], 0)
        found = paths.project(drive.poses[row : row + 1], path.station[row : row + 1] + 0.3)
        assert found.lateral.item() == pytest.approx(drive.lateral[row].item(), abs=0.01)
        assert found.heading.item() == pytest.approx(drive.heading[row].item(), abs=0.01)
    assert isinstance(found, PathOffset)


def test_a_car_could_drive_it(synthetic):
    """It moves where it points to, and turns no faster than a car."""
    path = synthetic.winding_path()
    for seed in range(10):
        drive = draw_excursion(path, ExcursionConfig(), np.random.default_rng(seed))
        step = drive.poses.diff(dim=0)
        travel = torch.atan2(step[:, 1], step[:, 0])
        middle = (drive.poses[1:, 2] + drive.poses[:-1, 2]) / 2
        slip = torch.atan2((travel - middle).sin(), (travel - middle).cos())
        assert slip.abs().max() < 0.02
        curvature = actions_from_poses(drive.poses, path.speed)[:, 0]
        assert (curvature * path.speed[:-1] ** 2).abs().max() < 9


def test_excursions_go_to_both_sides_and_touch_the_path(synthetic):
    path = synthetic.arc_path()
    drives = [
        draw_excursion(path, ExcursionConfig(), np.random.default_rng(seed)) for seed in range(30)
    ]
    lateral = torch.stack([drive.lateral for drive in drives])
    assert (lateral > 0.5).float().mean() > 0.1
    assert (lateral < -0.5).float().mean() > 0.1
    assert (lateral.abs() < 0.1).float().mean() > 0.1
    assert lateral.abs().max() < 2.5


def test_slow_drives_leave_their_path_less(synthetic):
    config = ExcursionConfig(max_heading=0.05)
    far = []
    for speed in (2.0, 20.0):
        path = synthetic.arc_path(speed=speed)
        drives = [draw_excursion(path, config, np.random.default_rng(seed)) for seed in range(5)]
        assert max(drive.heading.abs().max() for drive in drives) <= 0.0501
        far.append(np.mean([drive.lateral.abs().mean() for drive in drives]))
    assert far[0] < 0.5 * far[1]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"spacing": (3.0, 1.0)}, "must rise"),
        ({"lateral": 5.0}, "within 0..4"),
        ({"max_heading": 0.0}, "not within 0..1"),
    ],
)
def test_excursions_that_cannot_be(wrong, words):
    with pytest.raises(ValueError, match=words):
        ExcursionConfig(**wrong)
