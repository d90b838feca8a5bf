import pytest
import torch

from drive_learner.habits import Habits, HabitsConfig


def added(habits, recording, seed=0):
    return habits(torch.tensor(recording), torch.Generator().manual_seed(seed))[0]


def test_nothing_is_added_at_the_start_nor_what_all_have_in_common():
    habits = Habits(HabitsConfig(num_slots=16, share_without=0.0), 8)
    assert added(habits, [3, 5, 21]).abs().max() == 0
    with torch.no_grad():
        habits.codes[[3, 5]] = 2.0
    torch.testing.assert_close(added(habits, [3, 5, 21]), torch.zeros(3, 8))
    with torch.no_grad():
        habits.codes[3] = 4.0
    of_three, of_five, of_twenty_one = added(habits, [3, 5, 21])
    torch.testing.assert_close(of_three, -of_five)
    torch.testing.assert_close(of_five, of_twenty_one)  # the same slot
    assert of_three.abs().max() > 0


def test_a_share_is_left_without_a_code_and_the_seed_decides_which():
    habits = Habits(HabitsConfig(num_slots=512, share_without=0.25), 8)
    with torch.no_grad():
        habits.codes.normal_(generator=torch.Generator().manual_seed(0))
    every = list(range(512))
    without = added(habits, every).abs().sum(-1) == 0
    assert 0.2 < without.float().mean() < 0.3
    assert added(habits, every).equal(added(habits, every))
    assert not added(habits, every).equal(added(habits, every, seed=1))


@pytest.mark.parametrize("has_codes", [True, False])
def test_what_is_peculiar_to_a_recording_is_not_learnt_by_heart(has_codes):
    """A linear model that sees which recording it is learns its offset there, or leaves it."""
    generator = torch.Generator().manual_seed(0)
    num, steps = 40, 1000
    offset = torch.randn(num, generator=generator)
    slope = torch.zeros(1, requires_grad=True)
    heart = torch.zeros(num, requires_grad=True)
    habits = Habits(HabitsConfig(num_slots=64, share_without=0.25 if has_codes else 1.0), 1)
    groups = [
        {"params": [slope, heart], "lr": 4e-3},
        {"params": [habits.token_from_code.weight], "lr": 4e-3},
        {"params": [habits.codes], "lr": 2e-2},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        recording = torch.randint(0, num, (16,), generator=generator)
        x = torch.randn(16, generator=generator)
        habit, prior = habits(recording, torch.Generator().manual_seed(step))
        said = slope * x + heart[recording] + habit[:, 0]
        loss = (said - 2 * x - offset[recording]).square().mean() + prior
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert slope.item() == pytest.approx(2.0, abs=0.1)
    learnt = (heart - heart.mean()).norm() / (offset - offset.mean()).norm()
    assert learnt < 0.65 if has_codes else learnt > 0.85


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"rate": 0.0}, {"share_without": 1.5}])
def test_impossible_tables_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HabitsConfig(**wrong)
