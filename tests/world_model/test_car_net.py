import pytest
import torch

from world_model.car_net import (
    CarNetConfig,
    CarSamples,
    CarsSeen,
    cars_seen,
    errors_of,
    train_car_net,
)


def drawn(num, seed):
    """Draw frames with a dark car on a grey road, larger the nearer, and one that comes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((num, 2, 3, 32, 64), 150, dtype=torch.uint8)
    images += torch.randint(0, 20, images.shape, generator=generator, dtype=torch.uint8)
    places = torch.full((num, 2, 2), torch.nan)
    for index in range(num):
        for car, shade in ((0, 0), (1, 255)):
            if torch.rand((), generator=generator) < 0.3:
                continue
            distance = float(8 + 40 * torch.rand((), generator=generator))
            bearing = float(0.2 * torch.rand((), generator=generator)) * (1 if car else -1)
            column = int(32 - 100 * bearing)
            half = max(1, round(60 / distance))
            rows = slice(16 - half, 16 + half)
            columns = slice(max(0, column - half), column + half)
            images[index, :, :, rows, columns] = shade
            x = distance * torch.cos(torch.tensor(bearing))
            places[index, car] = torch.stack([x, distance * torch.sin(torch.tensor(bearing))])
    return CarSamples(images, places)


@pytest.mark.slow
def test_it_learns_who_is_where():
    network = train_car_net(drawn(1500, 0), CarNetConfig(num_steps=250), seed=0)
    errors = errors_of(network, drawn(300, 1))
    assert errors.missed.max() < 0.1
    assert errors.imagined.max() < 0.1
    assert errors.distance.max() < 0.15
    assert errors.bearing.max() < 0.03


def test_frames_are_told_of_apart_from_their_batch():
    samples = drawn(70, 2)
    network = train_car_net(samples, CarNetConfig(num_steps=2, batch_size=4), seed=0)
    assert not network.training
    together = cars_seen(network, samples.images)
    alone = cars_seen(network, samples.images[65:66])
    torch.testing.assert_close(together.distance[65:66], alone.distance, rtol=1e-4, atol=1e-4)


def test_who_is_not_there_has_no_place():
    logit = torch.tensor([[1.0, -1.0]])
    seen = CarsSeen(logit, torch.tensor([[20.0, 30.0]]), torch.tensor([[0.5, 0.1]]))
    ahead, coming = seen.places[0]
    assert ahead.tolist() == pytest.approx([20 * 0.87758, 20 * 0.47943], rel=1e-4)
    assert coming.isnan().all()


def test_errors_are_counted_by_car():
    samples = drawn(40, 3)
    network = train_car_net(samples, CarNetConfig(num_steps=1, batch_size=2), seed=0)
    (*_, bias) = network.out.parameters()
    bias.data[:2] = 50.0  # everybody is there
    errors = errors_of(network, samples)
    assert errors.missed.tolist() == [0, 0]
    assert errors.imagined.tolist() == [1, 1]


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"car_net\.num_steps must be 1"):
        CarNetConfig(num_steps=0)
