import math

import pytest
import torch

from drive_envs.plan import (
    ACCELERATION,
    EULER,
    EULER_RATE,
    MIN_LOG_SCALE,
    POSITION,
    SCALE,
    TIMES,
    VELOCITY,
    Hypotheses,
    action_from_plan,
    best_plan,
    interpolate,
    negative_log_likelihood,
    plan_from_motion,
    plan_of_arc,
    plan_to_pose,
)


def arc(speed, curvature, pose=(0.0, 0.0, 0.0)):
    """Write down the plan of a car on a circle, seen from `pose` in the world."""
    x0, y0, yaw0 = pose
    yaw = yaw0 + speed * curvature * TIMES
    tangent = torch.stack([yaw.cos(), yaw.sin()], -1)
    normal = torch.stack([-yaw.sin(), yaw.cos()], -1)
    to_centre = torch.tensor([-math.sin(yaw0), math.cos(yaw0)], dtype=torch.float64)
    centre = torch.tensor([x0, y0], dtype=torch.float64) + to_centre / curvature
    return plan_from_motion(
        torch.tensor(pose, dtype=torch.float64),
        centre - normal / curvature,
        speed * tangent,
        speed**2 * curvature * normal,
        yaw,
        torch.full_like(yaw, speed * curvature),
    )


def random_hypotheses(batch=4):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(batch, 5, 33, 15, generator=generator)
    log_scale = 0.5 * torch.randn(batch, 5, 33, 15, generator=generator)
    return Hypotheses(mean, log_scale, torch.randn(batch, 5, generator=generator))


def test_times_are_the_published_grid():
    assert TIMES[0] == 0
    assert TIMES[32] == 10
    assert TIMES[16] == 2.5
    torch.testing.assert_close(
        TIMES, torch.tensor([10 * (i / 32) ** 2 for i in range(33)]).double()
    )


def test_likelihood_matches_its_definition():
    hypotheses, target = random_hypotheses(), torch.randn(4, 33, 15) * SCALE
    valid = torch.arange(33) < torch.tensor([33, 20, 1, 5])[:, None]
    expected = torch.zeros(4)
    for n in range(4):
        count = int(valid[n].sum())
        losses = []
        for h in range(5):
            density = torch.distributions.Laplace(
                hypotheses.mean[n, h, :count] * SCALE[:count],
                hypotheses.log_scale[n, h, :count].maximum(MIN_LOG_SCALE).exp() * SCALE[:count],
            )
            log_likelihood = density.log_prob(target[n, :count]) + SCALE[:count].log()
            losses.append(-log_likelihood.mean())
        best = min(range(5), key=lambda h: losses[h])
        expected[n] = losses[best] - hypotheses.logit[n].log_softmax(-1)[best]
    result = negative_log_likelihood(hypotheses, target, valid)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_no_valid_time_scores_zero_and_sends_no_gradient():
    hypotheses = Hypotheses(*(x.requires_grad_() for x in random_hypotheses()))
    target = torch.full((4, 33, 15), float("nan"))
    loss = negative_log_likelihood(hypotheses, target, torch.zeros(4, 33, dtype=torch.bool))
    assert loss.tolist() == [0.0] * 4
    gradients = torch.autograd.grad(loss.sum(), list(hypotheses))
    assert all(gradient.abs().max() == 0 for gradient in gradients)


def test_constant_values_leave_the_loss_bounded():
    log_scale = torch.full((1, 5, 33, 15), -100.0)
    perfect = Hypotheses(torch.zeros(1, 5, 33, 15), log_scale, torch.zeros(1, 5))
    valid = torch.ones(1, 33, dtype=torch.bool)
    loss = negative_log_likelihood(perfect, torch.zeros(1, 33, 15), valid)
    assert loss.item() == pytest.approx(
        math.log(2) + float(MIN_LOG_SCALE.mean()) + math.log(5), abs=1e-5
    )


def test_best_plan_is_the_likeliest_in_si_units():
    hypotheses = random_hypotheses()
    plan = best_plan(hypotheses)
    for n in range(4):
        index = int(hypotheses.logit[n].argmax())
        torch.testing.assert_close(plan[n], hypotheses.mean[n, index] * SCALE)


@pytest.mark.parametrize("speed", [3.0, 12.0, 30.0])
@pytest.mark.parametrize("curvature", [-0.01, 0.002, 0.02])
def test_plan_of_an_arc(speed, curvature):
    rates = torch.tensor([speed, speed * curvature], dtype=torch.float64)
    torch.testing.assert_close(plan_of_arc(*rates), arc(speed, curvature))


def test_plan_of_an_arc_without_curvature_is_straight_on():
    plan = plan_of_arc(torch.tensor([[0.0], [12.0]]), torch.zeros(2, 1))
    assert plan.shape == (2, 1, 33, 15)
    torch.testing.assert_close(plan[1, 0, :, 0], 12 * TIMES.float())
    torch.testing.assert_close(plan[1, 0, :, VELOCITY.start], torch.full((33,), 12.0))
    assert plan.count_nonzero() == 32 + 33


@pytest.mark.parametrize("speed", [3.0, 12.0, 30.0])
@pytest.mark.parametrize("curvature", [-0.01, 0.002, 0.02])
def test_arc_gives_back_its_curvature(speed, curvature):
    action = action_from_plan(arc(speed, curvature), look_ahead=0.4)
    torch.testing.assert_close(
        action, torch.tensor([curvature, 0.0], dtype=torch.float64), atol=1e-4, rtol=1e-3
    )


def test_braking_gives_back_its_deceleration():
    speed = 20 - 1.5 * TIMES
    zero = torch.zeros_like(speed)
    plan = plan_from_motion(
        torch.zeros(3, dtype=torch.float64),
        torch.stack([20 * TIMES - 0.75 * TIMES**2, zero], -1),
        torch.stack([speed, zero], -1),
        torch.stack([zero - 1.5, zero], -1),
        zero,
        zero,
    )
    assert action_from_plan(plan)[1].item() == pytest.approx(-1.5, abs=1e-6)


def test_plan_does_not_depend_on_where_the_world_is():
    torch.testing.assert_close(arc(10.0, 0.02), arc(10.0, 0.02, pose=(300.0, -50.0, 3.0)))


def test_plan_of_an_arc_by_definition():
    plan = arc(10.0, 0.05)
    assert plan[16, POSITION].tolist() == pytest.approx(
        [math.sin(1.25) / 0.05, (1 - math.cos(1.25)) / 0.05, 0]
    )
    assert plan[16, VELOCITY].tolist() == pytest.approx(
        [10 * math.cos(1.25), 10 * math.sin(1.25), 0]
    )
    assert plan[16, EULER].tolist() == pytest.approx([0, 0, 1.25])
    assert plan[16, EULER_RATE].tolist() == pytest.approx([0, 0, 0.5])


def test_interpolate_hits_the_grid_and_the_middle():
    values = torch.randn(2, 33, dtype=torch.float64)
    torch.testing.assert_close(interpolate(values, 2.5), values[:, 16])
    middle = float(TIMES[4] + TIMES[5]) / 2
    torch.testing.assert_close(interpolate(values, middle), (values[:, 4] + values[:, 5]) / 2)


def test_look_ahead_must_be_positive():
    with pytest.raises(ValueError, match="look_ahead is 0"):
        action_from_plan(arc(10.0, 0.05), look_ahead=0.0)


def test_the_way_to_a_pose_leads_there_and_on():
    speed, time = torch.tensor(10.0).double(), torch.tensor(4.0).double()
    pose = torch.tensor([40.0, 5.0, 0.3]).double()
    plan = plan_to_pose(speed, pose, time, 2.0)
    x, y, yaw = (
        interpolate(values, 4.0) for values in (plan[:, 0], plan[:, 1], plan[:, EULER][:, 2])
    )
    assert (x, y, yaw) == (
        pytest.approx(40.0, abs=0.1), pytest.approx(5.0, abs=0.05), pytest.approx(0.3, abs=0.01)
    )  # fmt: skip
    torch.testing.assert_close(plan[0, VELOCITY], torch.tensor([10.0, 0.0, 0.0]).double())
    late = TIMES > 4.0
    torch.testing.assert_close(
        plan[late][:, VELOCITY], plan[-1, VELOCITY].expand(int(late.sum()), -1)
    )
    length = (40 * math.cos(0.15) + 5 * math.sin(0.15)) / (math.sin(0.15) / 0.15)
    assert plan[-1, VELOCITY].norm() == pytest.approx(2 * length / 4 - 10, rel=1e-6)


def test_the_way_to_a_pose_is_one_motion():
    """Velocity and acceleration are the derivatives of position and velocity."""
    speed, time = torch.tensor(12.0).double(), torch.tensor(6.0).double()
    plan = plan_to_pose(speed, torch.tensor([60.0, -9.0, -0.5]).double(), time, 2.0)
    now = slice(0, 24)  # under way
    step = TIMES[1:][now] - TIMES[:-1][now]
    for values, rates in ((POSITION, VELOCITY), (VELOCITY, ACCELERATION), (EULER, EULER_RATE)):
        rise = (plan[1:, values] - plan[:-1, values])[now] / step[:, None]
        mean = (plan[1:, rates] + plan[:-1, rates])[now] / 2
        torch.testing.assert_close(rise, mean, atol=0.03, rtol=0.01)


def test_nobody_swerves_for_a_pose_that_is_near():
    speed = torch.tensor(10.0).double()
    near = torch.tensor([2.0, 1.0, 0.0]).double()
    plan = plan_to_pose(speed, near, torch.tensor(0.2).double(), 2.0)
    assert plan[:, ACCELERATION].abs().max() < 2.0
    assert interpolate(plan[:, 1], 2.0) == pytest.approx(1.0, abs=0.05)
    still = plan_to_pose(0 * speed, 0 * near, 0 * speed, 2.0)
    assert still.abs().max() == 0
