import math

import torch
from torch.distributions import Normal

from drive_actors.action import (
    MAX_STD,
    MIN_STD,
    bounded_log_std,
    command_from_normalized,
    entropy,
    log_probs,
    normalized_from_command,
)


def test_command_and_back():
    normalized, speed = torch.randn(100, 2), 30 * torch.rand(100, 1)
    there_and_back = normalized_from_command(command_from_normalized(normalized, speed), speed)
    torch.testing.assert_close(there_and_back, normalized)


def test_one_unit_is_two_metres_per_second_squared():
    speed = torch.tensor([[20.0], [0.0]])
    curvature, acceleration = command_from_normalized(torch.ones(2, 2), speed).unbind(-1)
    torch.testing.assert_close(curvature, torch.tensor([2 / 20**2, 2 / 3**2]))
    torch.testing.assert_close(acceleration, torch.full((2,), 2.0))


def test_density_and_entropy_are_those_of_a_normal():
    mean, raw, normalized = torch.randn(3, 5, 4, 2)
    log_std = bounded_log_std(raw)
    normal = Normal(mean, log_std.exp())
    torch.testing.assert_close(log_probs(mean, log_std, normalized), normal.log_prob(normalized))
    torch.testing.assert_close(entropy(log_std), normal.entropy().sum(-1))


def test_deviation_is_bounded():
    log_std = bounded_log_std(torch.tensor([-1e3, 0.0, 1e3]).repeat(2, 1).T)
    torch.testing.assert_close(
        log_std[:, 0].exp(), torch.tensor([MIN_STD, math.sqrt(MIN_STD * MAX_STD), MAX_STD])
    )
