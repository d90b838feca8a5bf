import pytest
import torch

from drive_actors.policy import Policy
from drive_learner.batch import collate, fragments, source_of
from drive_learner.learner import Learner, LearnerConfig, OptimizerConfig, learning_rate
from drive_learner.losses import LossConfig

L = 4


@pytest.fixture
def batch(random_rollout):
    return collate(list(fragments(source_of(random_rollout(), 16), L)), L)


def make_learner(policy, num_steps=300, **changes):
    torch.manual_seed(1)
    config = LearnerConfig(
        num_steps=num_steps,
        device="cpu",
        optimizer=OptimizerConfig(learning_rate=1e-2, num_warmup_steps=5),
        **changes,
    )
    return Learner(Policy(policy.config), config)


def test_warm_up_then_cosine():
    config = OptimizerConfig(learning_rate=1.0, num_warmup_steps=9)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9], rel=0.01)
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_overfits_one_batch(tiny_policy, batch, precision):
    loss = LossConfig(policy_gradient=0.0, value=0.0, entropy=0.0)
    learner = make_learner(tiny_policy, loss=loss, precision=precision)
    first = learner.update(batch)
    for _ in range(298):
        learner.update(batch)
    last = learner.update(batch)
    assert last["policy/lateral_action_error"] < 0.1 * first["policy/lateral_action_error"]
    assert last["loss/plan"] < 0.5 * first["loss/plan"]


def test_restored_learner_continues_to_the_bit(tiny_policy, batch):
    straight, killed = make_learner(tiny_policy), make_learner(tiny_policy)
    for _ in range(3):
        straight.update(batch)
        killed.update(batch)
    state = killed.state()
    torch.manual_seed(99)
    resumed = Learner(Policy(tiny_policy.config), killed.config)
    resumed.restore(3, state)
    for _ in range(3):
        assert straight.update(batch) == resumed.update(batch)
    for mine, other in zip(straight.state().values(), resumed.state().values(), strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert resumed.step == 6


def test_averaged_weights_follow_the_raw_ones(tiny_policy, batch):
    learner = make_learner(tiny_policy)
    before = learner.weights(averaged=True)
    assert all(torch.equal(before[name], value) for name, value in learner.weights().items())
    learner.update(batch)
    after, raw = learner.weights(averaged=True), learner.weights()
    decay = 1 / 11  # of the first step
    for name in dict(learner.policy.named_parameters()):
        torch.testing.assert_close(after[name], torch.lerp(before[name], raw[name], 1 - decay))


def test_published_weights_are_copies(tiny_policy, batch):
    learner = make_learner(tiny_policy)
    published = learner.weights()
    kept = {name: value.clone() for name, value in published.items()}
    learner.update(batch)
    assert all(torch.equal(kept[name], value) for name, value in published.items())


def test_policy_lag_is_in_gradient_steps(tiny_policy, random_rollout):
    old = collate(list(fragments(source_of(random_rollout(version=0), 16), L)), L)
    learner = make_learner(tiny_policy)
    assert [learner.update(old)["learner/policy_lag"] for _ in range(3)] == [0, 1, 2]


def test_a_loss_that_is_not_finite_stops_the_run(tiny_policy, batch):
    learner = make_learner(tiny_policy)
    batch.reward[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="step 0"):
        learner.update(batch)
