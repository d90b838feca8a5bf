import pytest
import torch

from world_model.flow import euler, logit_normal, noised, velocity


def test_a_line_from_the_image_to_noise():
    image, noise = torch.randn(2, 2, 3, 4, 2, 2)
    tau = torch.tensor([[0.0, 1.0, 0.25], [0.5, 0.0, 1.0]])
    between = noised(image, noise, tau)
    torch.testing.assert_close(between[0, 0], image[0, 0])
    torch.testing.assert_close(between[0, 1], noise[0, 1])
    torch.testing.assert_close(between[0, 2], 0.25 * noise[0, 2] + 0.75 * image[0, 2])


@pytest.mark.parametrize("num_steps", [1, 3, 15])
def test_its_velocity_leads_back(num_steps):
    image, noise = torch.randn(2, 1, 2, 4, 2, 2)
    levels = []

    def field(x, tau):
        levels.append(tau)
        torch.testing.assert_close(x, noised(image, noise, torch.full((1, 2), tau)))
        return velocity(image, noise)

    torch.testing.assert_close(euler(field, noise, num_steps), image)
    assert levels == [1 - step / num_steps for step in range(num_steps)]


def test_logit_normal_levels():
    generator = torch.Generator().manual_seed(0)
    tau = logit_normal((20000,), 0.3, 0.25, generator)
    logit = torch.logit(tau)
    assert abs(logit.mean() - 0.3) < 0.01
    assert abs(logit.std() - 0.25) < 0.01


def test_levels_are_spread_over_the_draws():
    """Every N-th of the distribution has one of N levels, in no order."""
    generator = torch.Generator().manual_seed(0)
    tau = logit_normal((4, 8), -0.5, 1.5, generator)
    place = (torch.special.ndtr((tau.logit() + 0.5) / 1.5) * 32).floor().flatten()
    assert place.sort().values.tolist() == list(range(32))
    assert place.tolist() != sorted(place.tolist())
    again = logit_normal((4, 8), -0.5, 1.5, generator)
    assert not torch.equal(tau, again)
    assert logit_normal((1,), 0.0, 1.0, generator).shape == (1,)
