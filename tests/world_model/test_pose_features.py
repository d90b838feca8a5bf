from math import pi

import torch

from world_model.pose_features import (
    MOTION_WAVE,
    NUM_FEATURES,
    pose_features,
    relative_pose,
    sinusoids,
)


def test_there_as_seen_from_here():
    here = torch.tensor([[2.0, 1.0, pi / 2]], dtype=torch.float64)
    there = torch.tensor([[1.0, 4.0, pi]], dtype=torch.float64)
    expected = torch.tensor([[3.0, 1.0, 0.0, 0.0, 0.0, pi / 2]], dtype=torch.float64)
    torch.testing.assert_close(relative_pose(here, there), expected)


def test_two_centimetres_sideways_are_seen_beside_six_metres_forward():
    poses = torch.zeros(2, 6, dtype=torch.float64)
    poses[:, 0] = 6.0
    poses[1, 1] = 0.02
    first, second = pose_features(poses, MOTION_WAVE)
    assert first.shape == (NUM_FEATURES,)
    assert (first - second).abs().max() > 0.5


def test_values_at_the_ends_of_a_range_differ():
    values = torch.linspace(0, 9, 46)
    encoded = sinusoids(values, 32, 20.0)
    apart = torch.cdist(encoded, encoded) + 9 * torch.eye(46)
    assert apart.min() > 0.3
