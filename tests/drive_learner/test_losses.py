import math
from dataclasses import replace

import pytest
import torch

from drive_actors.action import log_probs, normalized_from_command
from drive_actors.policy import PolicyOutput
from drive_envs.plan import Hypotheses, negative_log_likelihood
from drive_envs.protocol import NUM_CONTEXT
from drive_learner.batch import collate, fragments, source_of
from drive_learner.losses import LossConfig, losses, value_targets
from drive_learner.vtrace import vtrace

L = 4


@pytest.fixture
def batch(random_rollout):
    return collate(list(fragments(source_of(random_rollout(), 16), L)), L)


def output_of(policy, batch):
    with torch.no_grad():
        return policy.unroll(batch.observation, batch.noise)


def part(name, output, batch, **constants):
    """One loss alone, through the weights."""
    weights = dict.fromkeys(("plan", "action", "policy_gradient", "value", "entropy"), 0.0)
    total, metrics = losses(output, batch, LossConfig(**{**weights, name: 2.0}, **constants))
    torch.testing.assert_close(total.item(), 2 * metrics[f"loss/{name}"])
    return metrics[f"loss/{name}"]


def test_imitation_losses_are_means_over_the_active_steps(tiny_policy, batch):
    output = output_of(tiny_policy, batch)
    speed = batch.observation["speed"][NUM_CONTEXT:-1]
    teacher = normalized_from_command(batch.teacher_action, speed)
    plan, action, num_plans = 0.0, 0.0, 0
    beta = 0.3
    for t, b in batch.active.nonzero().tolist():
        if batch.teacher_plan_valid[t, b].any():
            one = Hypotheses(*(value[t, b][None] for value in output.plan))
            target, valid = batch.teacher_plan[t, b], batch.teacher_plan_valid[t, b]
            plan += negative_log_likelihood(one, target[None], valid[None]).item()
            num_plans += 1
        mean, log_std = output.action_mean[t, b], output.action_log_std[t, b]
        density = torch.distributions.Normal(mean, log_std.exp())
        action -= (density.stddev ** (2 * beta) * density.log_prob(teacher[t, b])).sum().item()
    assert part("plan", output, batch) == pytest.approx(plan / num_plans, rel=1e-4)
    assert part("action", output, batch, action_beta=beta) == pytest.approx(
        action / batch.active.sum().item(), rel=1e-4
    )


def test_what_is_learnt_from_for_the_first_time_has_errors_of_its_own(tiny_policy, batch):
    output = output_of(tiny_policy, batch)
    _, of_all = losses(output, batch, LossConfig())
    assert not any(name.startswith("first_use/") for name in of_all)
    batch.is_first_use[:] = True
    _, of_new = losses(output, batch, LossConfig())
    assert of_new["first_use/value"] == pytest.approx(of_all["loss/value"])
    error = of_all["policy/lateral_action_error"]
    assert of_new["first_use/lateral_action_error"] == pytest.approx(error)

    # The mean over all is that over both kinds, each weighed by its active steps.
    batch.is_first_use[::2] = False
    _, of_some = losses(output, batch, LossConfig())
    batch.is_first_use[:] = ~batch.is_first_use
    _, of_others = losses(output, batch, LossConfig())
    steps = batch.active.sum(0)[batch.is_first_use].sum() / batch.active.sum()
    both = steps * of_others["first_use/value"] + (1 - steps) * of_some["first_use/value"]
    assert both == pytest.approx(of_all["loss/value"])


def test_value_targets_are_vtrace_on_the_true_next_states(tiny_policy, batch):
    """A scene's last active step is bootstrapped from its own final frame, not from the padding."""
    output = output_of(tiny_policy, batch)
    config = LossConfig(discount=0.9)
    log_ratio = (
        log_probs(output.action_mean[:-1], output.action_log_std[:-1], batch.action_normalized)
        - batch.log_probs
    ).sum(-1)
    together = value_targets(output.value, log_ratio, batch, config)
    for b, num in enumerate(batch.active.sum(0).tolist()):
        is_last = torch.zeros(num, 1, dtype=torch.bool)
        is_last[-1] = True
        alone = vtrace(
            log_ratio=log_ratio[:num, b : b + 1],
            reward=batch.reward[:num, b : b + 1],
            discount=0.9 * (~batch.terminated[:num, b : b + 1]).float(),
            value=output.value[:num, b : b + 1],
            next_value=output.value[1 : num + 1, b : b + 1],
            is_last=is_last,
            active=~torch.zeros_like(is_last),
        )
        torch.testing.assert_close(together.value_target[:num, b], alone.value_target[:, 0])
        torch.testing.assert_close(together.advantage[:num, b], alone.advantage[:, 0])


def test_uncorrected_targets_take_every_action_for_the_policys_own(tiny_policy, batch):
    output = output_of(tiny_policy, batch)
    lagged = torch.full_like(batch.reward, -0.7)
    config = LossConfig(is_corrected=False)
    ignored = value_targets(output.value, lagged, batch, config)
    own = value_targets(output.value, torch.zeros_like(lagged), batch, LossConfig())
    torch.testing.assert_close(ignored.value_target, own.value_target)
    corrected = value_targets(output.value, lagged, batch, LossConfig())
    assert (corrected.value_target - own.value_target).abs().max() > 1e-3


def test_what_a_scene_holds_after_its_end_changes_nothing(tiny_policy, batch):
    output = output_of(tiny_policy, batch)
    noisy = replace(
        batch,
        **{
            name: torch.where(
                batch.active.reshape(batch.active.shape + (1,) * (value.ndim - 2)), value, 1e3
            )
            for name in (
                "action_normalized",
                "log_probs",
                "reward",
                "teacher_plan",
                "teacher_action",
            )
            if (value := getattr(batch, name)) is not None
        },
    )
    assert not batch.active.all()
    for name in ("plan", "action", "policy_gradient", "value", "entropy"):
        assert part(name, output, batch) == pytest.approx(part(name, output, noisy), rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_action_loss_weighs_its_gradients_by_a_constant(batch, beta):
    """Of the mean: (mu - u) sigma^(2 beta - 2); at beta = 1 that of a squared error."""
    shape = batch.active.shape
    generator = torch.Generator().manual_seed(0)
    mean, log_std = (
        torch.randn(shape[0] + 1, shape[1], 2, generator=generator).requires_grad_()
        for _ in range(2)
    )
    zeros = torch.zeros(shape[0] + 1, shape[1], 2, 33, 15)
    output = PolicyOutput(
        Hypotheses(zeros, zeros, zeros[..., 0, 0]),
        mean,
        log_std,
        zeros[..., 0, 0, 0],
        mean,
        log_std,
    )
    weights = dict.fromkeys(("plan", "policy_gradient", "value", "entropy"), 0.0)
    losses(output, batch, LossConfig(**weights, action=1.0, action_beta=beta))[0].backward()
    speed = batch.observation["speed"][NUM_CONTEXT:-1]
    error = mean.detach()[:-1] - normalized_from_command(batch.teacher_action, speed)
    variance = (2 * log_std.detach()[:-1]).exp()
    share = batch.active[..., None] * variance**beta / batch.active.sum()
    assert mean.grad is not None
    assert log_std.grad is not None
    torch.testing.assert_close(mean.grad[:-1], share * error / variance)
    torch.testing.assert_close(log_std.grad[:-1], share * (1 - error**2 / variance))


@pytest.mark.parametrize("is_longitudinal", [True, False])
def test_policy_gradient_makes_better_actions_likelier(batch, is_longitudinal):
    """Its gradient in the mean is -A (u - mean) / std^2 at each step, averaged."""
    batch = replace(batch, active=torch.ones_like(batch.active))
    shape = batch.active.shape
    mean = torch.zeros(shape[0] + 1, shape[1], 2, requires_grad=True)
    log_std = torch.full_like(mean, math.log(0.5)).detach()
    zeros = torch.zeros(shape[0] + 1, shape[1], 2, 33, 15)
    plan = Hypotheses(zeros, zeros, zeros[..., 0, 0])
    output = PolicyOutput(plan, mean, log_std, zeros[..., 0, 0, 0], mean, log_std)
    behaviour = log_probs(mean[:-1], log_std[:-1], batch.action_normalized).detach()
    if not is_longitudinal:  # what is not obeyed does not count, however unlikely it has become
        behaviour[..., 1] -= 3.0
    batch = replace(batch, log_probs=behaviour)
    config = LossConfig(plan=0.0, action=0.0, value=0.0, entropy=0.0, policy_gradient=1.0)
    advantage = value_targets(output.value, torch.zeros(shape), batch, config).advantage
    total, metrics = losses(output, batch, config, is_longitudinal=is_longitudinal)
    total.backward()
    expected = -advantage[..., None] * batch.action_normalized / 0.25 / advantage.numel()
    expected[..., 1] *= is_longitudinal
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad[:-1], expected)
    assert metrics["vtrace/importance_ratio"] == pytest.approx(1)


@pytest.mark.parametrize("change", [{"plan": -1.0}, {"discount": 1.0}, {"c_max": 2.0}])
def test_impossible_weights_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        LossConfig(**change)
