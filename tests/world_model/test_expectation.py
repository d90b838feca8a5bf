import pytest
import torch

from world_model.expectation import FIRST_DEVIATION, Expectation, Expected
from world_model.objective import expectation_loss


def test_what_was_shown_is_expected_before_anything_is_learnt():
    moved = torch.randn(3, 4, 2, 6)
    with torch.no_grad():
        expected = Expectation(4, 2, 6)(moved)
    torch.testing.assert_close(expected.mean, moved)
    assert expected.deviation.flatten().tolist() == pytest.approx([FIRST_DEVIATION] * 144)


def test_learns_what_is_wrong_with_it_and_how_far_off_it_will_be():
    torch.manual_seed(0)
    expectation = Expectation(2, 4, 6)
    optimizer = torch.optim.Adam(expectation.parameters(), lr=1e-2)
    is_told = torch.ones(32, 1, dtype=torch.bool)
    grain = torch.tensor([0.1, 0.6])[:, None, None]
    moved = torch.zeros(32, 2, 4, 6)
    for _ in range(200):
        moved = torch.randn(32, 2, 4, 6)
        target = 0.8 * moved + 0.3 + grain * torch.randn_like(moved)
        found = expectation(moved)
        expected = Expected(*(part[:, None] for part in found))
        loss = expectation_loss(expected, target[:, None], is_told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean, deviation = (part.detach() for part in expectation(moved))
    assert (mean - 0.8 * moved - 0.3).square().mean().sqrt() < 0.2
    assert deviation.mean((0, 2, 3)).tolist() == pytest.approx([0.1, 0.6], abs=0.1)
