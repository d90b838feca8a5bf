from dataclasses import replace

import pytest
import torch

from drive_actors.probe import (
    ProbeConfig,
    center_and_spread,
    held_out,
    r_squared,
    resampled,
    splits,
)

CONFIG = ProbeConfig(num_folds=3, learning_rate=0.004, batch_size=64)
NUM_ROADS, PER_ROAD, DIM = 60, 12, 20
BOTH = ("linear", pytest.param("mlp", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def features():
    return torch.randn(NUM_ROADS * PER_ROAD, DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def roads():
    return 7 + torch.arange(NUM_ROADS).repeat_interleave(PER_ROAD)


def noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_ROADS * PER_ROAD, generator=generator)


def score(probe, features, target, roads):
    told = held_out(probe, features, target, roads, CONFIG)
    return r_squared(target, told, roads, torch.ones(1, len(roads.unique()))).item()


@pytest.mark.parametrize("probe", BOTH)
def test_a_planted_linear_signal_is_found(probe, features, roads):
    target = 3 + 0.1 * (features[:, 0] - features[:, 1] + noise(2))  # two thirds can be told
    assert score(probe, features, target, roads) == pytest.approx(2 / 3, abs=0.08)


@pytest.mark.slow
def test_a_planted_curved_signal_is_found_by_the_network_alone(features, roads):
    target = features[:, 0].abs() + 0.1 * noise(3)
    assert score("linear", features, target, roads) < 0.05
    assert score("mlp", features, target, roads) > 0.5


@pytest.mark.parametrize("probe", BOTH)
def test_nothing_is_found_in_noise(probe, features, roads):
    assert -0.05 < score(probe, features, noise(4), roads) < 0.03


@pytest.mark.parametrize("probe", BOTH)
def test_what_is_of_a_road_alone_is_not_found_on_another(probe, features, roads):
    # Every road is marked by its own direction, and has its own target: to be learnt by heart.
    generator = torch.Generator().manual_seed(5)
    marks = 5 * torch.randn(NUM_ROADS, DIM, generator=generator)
    of_road = torch.randn(NUM_ROADS, generator=generator)
    target = of_road[roads - 7]
    assert score(probe, features + marks[roads - 7], target, roads) < 0.1


def test_no_road_has_two_parts_and_each_is_judged_once(roads):
    shuffled = roads[torch.randperm(len(roads), generator=torch.Generator().manual_seed(6))]
    found = splits(shuffled, CONFIG)
    assert len(found) == CONFIG.num_folds
    assert (torch.stack([split.judged for split in found]).sum(0) == 1).all()
    for split in found:
        parts = [set(shuffled[part].tolist()) for part in split]
        assert all(parts)
        assert set.union(*parts) == set(roads.tolist())
        assert sum(map(len, parts)) == NUM_ROADS


def test_too_few_roads_are_refused():
    with pytest.raises(ValueError, match="5 roads are too few for 3 folds: draw at least 6"):
        splits(torch.arange(5), CONFIG)


def test_r_squared_is_its_definition_on_the_roads_that_were_drawn(roads):
    target, told = noise(7), noise(7) + 0.5 * noise(8)
    counts = resampled(NUM_ROADS, 3, seed=0)
    assert torch.equal(counts.sum(1), torch.full((3,), float(NUM_ROADS)))
    for draw, found in zip(counts, r_squared(target, told, roads, counts), strict=True):
        rows = torch.repeat_interleave(torch.arange(len(roads)), draw[roads - 7].int())
        error = (target[rows] - told[rows]).square().mean()
        spread = target[rows].var(correction=0)
        assert found.item() == pytest.approx((1 - error / spread).item(), abs=1e-5)


def test_the_same_seed_tells_the_same(features, roads):
    target, config = features[:, 0] + noise(9), replace(CONFIG, max_epochs=2)
    first, second = (held_out("mlp", features, target, roads, config) for _ in range(2))
    assert torch.equal(first, second)


def test_a_feature_that_never_varies_is_left_alone():
    mean, std = center_and_spread(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
    torch.testing.assert_close(mean, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(std, torch.tensor([1.0, 2**0.5]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_folds": 1}, "num_folds must be 2"),
        ({"validation_share": 0.0}, "validation_share must be 0 to 1"),
        ({"strengths": ()}, "strengths must be positive"),
        ({"hidden": 0}, "hidden must be 1"),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        ProbeConfig(**changes)
