import math

import pytest
import torch

from drive_actors.bottleneck import capacity_bits, noise, noise_std, unit_power


def log_normal(x, variance):
    return -0.5 * (x.square() / variance + math.log(2 * math.pi * variance))


@pytest.mark.parametrize("std", [0.2, 0.42, 1.5])
def test_capacity_is_the_mutual_information_of_a_gaussian_input(std):
    torch.manual_seed(0)
    sent, white = torch.randn(2, 400_000, dtype=torch.float64)
    received = sent + std * white
    log_ratio = log_normal(received - sent, std**2) - log_normal(received, 1 + std**2)
    assert log_ratio.mean() / math.log(2) == pytest.approx(capacity_bits(1, std), abs=0.01)


def test_the_papers_700_bits():
    std = noise_std(700.0, 512)
    assert std == pytest.approx(0.42, abs=0.005)
    assert capacity_bits(512, std) == pytest.approx(700)


def test_power_is_constrained_whatever_the_network_says():
    features = torch.randn(4, 64) * torch.logspace(-3, 3, 4)[:, None]
    torch.testing.assert_close(unit_power(features).square().mean(-1), torch.ones(4))


def test_noise_is_white_and_given_by_its_seed():
    drawn = noise(3, 50, 4, 256)
    assert torch.equal(drawn, noise(3, 50, 4, 256))
    assert not torch.equal(drawn, noise(4, 50, 4, 256))
    assert drawn.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("wrong", [lambda: capacity_bits(8, 0.0), lambda: noise_std(0.0, 8)])
def test_an_unbounded_channel_is_refused(wrong):
    with pytest.raises(ValueError, match="positive"):
        wrong()
