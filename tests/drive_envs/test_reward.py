import math

import pytest
import torch

from drive_envs.reward import RewardConfig, reward


def of(lateral=0.0, heading=0.0, jerk=0.0, ahead=0.0):
    e, psi, j, station = (torch.tensor([float(x)]) for x in (lateral, heading, jerk, ahead))
    return reward(e, psi, j, station, RewardConfig()).item()


def test_perfect_driving_earns_one_and_each_scale_halves_it():
    assert of() == 1
    assert of(lateral=0.5) == pytest.approx(0.5)
    assert of(heading=math.radians(-6)) == pytest.approx(0.5)
    assert of(jerk=5) == pytest.approx(0.5)
    assert of(ahead=-4) == pytest.approx(0.5)


def test_closer_is_better_even_far_away():
    rewards = [of(lateral=x) for x in (0, 0.1, 0.5, 1, 2, 3, 4)]
    assert rewards == sorted(rewards, reverse=True)
    assert rewards[-2] - rewards[-1] > 0.01
    assert rewards[-1] > 0


def test_scales_must_be_positive():
    with pytest.raises(ValueError, match=r"reward\.jerk is 0"):
        RewardConfig(jerk=0.0)
