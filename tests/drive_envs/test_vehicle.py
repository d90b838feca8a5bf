import math

import numpy as np
import pytest
import torch

from drive_envs.plan import STEP
from drive_envs.vehicle import (
    MAX_CURVATURE,
    MAX_LATERAL_ACCELERATION,
    MAX_LATERAL_JERK,
    Vehicle,
    VehicleConfig,
    VehicleState,
    actions_from_poses,
    advance,
    draw,
    limit,
    predict,
    preset,
)


def car(delay=0.0, lag=0.0, gain=1.0, wind=0.0, num_steps=100):
    constant = [torch.tensor([x], dtype=torch.float64) for x in (delay, lag, gain)]
    return Vehicle(
        delay=constant[0],
        lag=constant[1],
        gain=constant[2],
        wind=torch.full((1, num_steps), wind, dtype=torch.float64),
        jitter=torch.zeros(1, num_steps, 2, dtype=torch.float64),
    )


def at_rest_or_moving(speed, curvature=0.0, yaw=0.0):
    return VehicleState(
        pose=torch.tensor([[0.0, 0.0, yaw]], dtype=torch.float64),
        speed=torch.tensor([speed], dtype=torch.float64),
        curvature=torch.tensor([curvature], dtype=torch.float64),
        commands=torch.full((1, 4), curvature, dtype=torch.float64),
    )


def drive(state, actions, vehicle):
    states = [state]
    for step, action in enumerate(actions):
        states.append(advance(states[-1], action[None].double(), vehicle, step))
    return states


def by_definition(state, curvature, acceleration):
    """Integrate the step in plain numbers, four times a command."""
    x, y, yaw = state.pose[0].tolist()
    v = state.speed.item()
    dt = STEP / 4
    for k, a in zip(curvature, acceleration, strict=True):
        for j in range(4):
            d = max(v + a * dt * (j + 0.5), 0.0) * dt
            turn = d * k
            dx, dy = d * math.cos(turn / 2), d * math.sin(turn / 2)
            x, y = (
                x + math.cos(yaw) * dx - math.sin(yaw) * dy,
                y + math.sin(yaw) * dx + (math.cos(yaw) * dy),
            )
            yaw += turn
        v = max(v + a * STEP, 0.0)
    return x, y, yaw, v


def test_plain_car_moves_as_defined():
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(30, 2, generator=generator) * torch.tensor([0.1, 2.0])
    actions -= torch.tensor([0.05, 1.0])
    start = at_rest_or_moving(8.0, yaw=0.7)
    end = drive(start, actions, car())[-1]
    expected = by_definition(start, actions[:, 0].tolist(), actions[:, 1].tolist())
    torch.testing.assert_close(
        torch.cat([end.pose[0], end.speed]), torch.tensor(expected, dtype=torch.float64)
    )


def test_given_distance_is_travelled():
    distance = torch.tensor([1.3], dtype=torch.float64)
    action = torch.tensor([[0.0, -4.0]], dtype=torch.float64)
    end = advance(at_rest_or_moving(20.0), action, car(), 0, distance)
    assert end.pose[0].tolist() == pytest.approx([1.3, 0.0, 0.0])


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3, 0.6])
def test_command_takes_effect_after_the_delay(delay):
    actions = torch.tensor([[0.02, 0.0]] * 6)
    states = drive(at_rest_or_moving(10.0), actions, car(delay=delay))
    turned = torch.cat([state.pose[:, 2] for state in states])
    expected = [0.02 * 10 * max(STEP * k - delay, 0.0) for k in range(7)]
    assert turned.tolist() == pytest.approx(expected, abs=1e-7)


def test_lag_is_exponential():
    actions = torch.tensor([[0.02, 0.0]] * 5)
    states = drive(at_rest_or_moving(10.0), actions, car(lag=0.25))
    for k, state in enumerate(states):
        expected = 0.02 * (1 - math.exp(-STEP * k / 0.25))
        assert state.curvature.item() == pytest.approx(expected, abs=1e-7)


def test_gain_and_wind_add_up():
    end = drive(at_rest_or_moving(10.0), torch.tensor([[0.02, 0.0]] * 5), car(gain=0.9, wind=0.5))
    turned = end[-1].pose[0, 2].item()
    assert turned == pytest.approx((0.9 * 0.02 + 0.5 / 100) * 10 * 1.0, abs=1e-8)


@pytest.mark.parametrize("speed", [0.5, 3.0, 15.0, 30.0])
def test_limits(speed):
    state = at_rest_or_moving(speed)
    squared = max(speed, 1.0) ** 2
    for _ in range(10):
        action = limit(torch.tensor([[1.0, 9.0]], dtype=torch.float64), state)
        jerk = (action[0, 0] - state.commands[0, 0]) * squared / STEP
        assert jerk <= MAX_LATERAL_JERK + 1e-9
        assert action[0, 0] <= min(MAX_CURVATURE, MAX_LATERAL_ACCELERATION / squared) + 1e-12
        assert action[0, 1] == 3.0
        state = VehicleState(
            pose=state.pose,
            speed=state.speed,
            curvature=state.curvature,
            commands=action[:, :1].expand(1, 4),
        )
    assert state.commands[0, 0].item() == pytest.approx(min(0.2, 3.0 / squared))


@pytest.mark.parametrize(("delay", "lag"), [(0.0, 0.0), (0.2, 0.2), (0.3, 0.0)])
def test_prediction_is_what_happens(delay, lag):
    vehicle = car(delay=delay, lag=lag, gain=1.1, wind=0.2)
    actions = torch.tensor([[0.01, 0.5], [0.02, 0.5], [-0.01, 0.5], [0.03, 0.5]])
    now = drive(at_rest_or_moving(12.0), actions, vehicle)[-1]
    if delay + lag == 0:
        # Without latency nothing is known of the future but the present.
        horizon = torch.zeros(1, dtype=torch.float64)
        torch.testing.assert_close(predict(now, vehicle, 4, horizon, now.speed * 0), now.pose)
        return
    action = torch.tensor([[-0.01, 0.5]], dtype=torch.float64)
    after = advance(now, action, vehicle, 4)
    horizon = torch.tensor([STEP], dtype=torch.float64)
    acceleration = torch.tensor([0.5], dtype=torch.float64)
    foretold = predict(now, vehicle, 4, horizon, acceleration)
    torch.testing.assert_close(foretold, after.pose)


def test_poses_to_actions_to_poses():
    time = torch.arange(51, dtype=torch.float64) * STEP
    actions = torch.stack([0.03 * (0.9 * time[:-1]).sin(), (0.5 * time[:-1]).cos()], -1)
    states = drive(at_rest_or_moving(9.0, yaw=2.9), actions, car())
    poses = torch.cat([state.pose for state in states])
    speed = torch.cat([state.speed for state in states])
    found = actions_from_poses(poses, speed)
    torch.testing.assert_close(found, actions, atol=2e-4, rtol=1e-3)
    again = drive(at_rest_or_moving(9.0, yaw=2.9), found, car())[-1]
    assert (again.pose[0, :2] - poses[-1, :2]).norm() < 0.01


def test_human_like_track_is_followed_for_ten_seconds():
    """Positions on a smooth curve, not made by our car: its inverse stays within centimetres."""
    time = torch.arange(51, dtype=torch.float64) * STEP
    x = 12.0 * time
    y, slope = 4 * (0.15 * time).sin() ** 2, 4 * 0.15 * (0.3 * time).sin() / 12.0
    speed = 12.0 * (1 + slope**2).sqrt()
    poses = torch.stack([x, y, slope.atan()], -1)
    start = at_rest_or_moving(speed[0].item())
    end = drive(start, actions_from_poses(poses, speed), car())[-1]
    assert (end.pose[0, :2] - poses[-1, :2]).norm() < 0.05


def test_turning_the_world_changes_no_action():
    time = torch.arange(20, dtype=torch.float64) * STEP
    poses = torch.stack([10 * time, time.sin(), time.cos() / 10], -1)
    speed = torch.full_like(time, 10.0)
    cos, sin = math.cos(2.0), math.sin(2.0)
    turned = torch.stack(
        [
            cos * poses[:, 0] - sin * poses[:, 1] + 50,
            sin * poses[:, 0] + cos * poses[:, 1] - 7,
            poses[:, 2] + 2.0,
        ],
        -1,
    )
    torch.testing.assert_close(actions_from_poses(turned, speed), actions_from_poses(poses, speed))


def test_draw_keeps_to_the_ranges_and_the_seed():
    config = preset("training")

    def drawn(seeds):
        return draw(config, [np.random.default_rng(s) for s in seeds], 40, 50)

    many = drawn(range(200))
    for name in ("delay", "lag", "gain", "wind"):
        low, high = getattr(config, name)
        values = getattr(many, name)
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high
    # Gusts: the wind of a scene changes, but seldom.
    changes = (many.wind.diff(dim=1) != 0).sum(dim=1)
    assert changes.min() >= 1
    assert changes.max() <= 8
    # Alone, and for a longer drive, the car is the same.
    alone = draw(config, [np.random.default_rng(7)], 90, 99)
    for name in ("delay", "lag", "gain"):
        assert getattr(alone, name)[0] == getattr(many, name)[7]
    assert (alone.wind[0, :40] == many.wind[7]).all()
    assert (alone.jitter[0, :50] == many.jitter[7]).all()


def test_realistic_gain_is_ten_percent_off():
    vehicle = draw(preset("realistic"), [np.random.default_rng(s) for s in range(40)], 5, 5)
    assert set(vehicle.gain.tolist()) == {0.9, 1.1}
    assert set(vehicle.delay.tolist()) == {0.2}


def test_plain_car_is_not_disturbed():
    vehicle = draw(preset("plain"), [np.random.default_rng(0)], 5, 5)
    assert vehicle.wind.abs().max() == 0
    assert vehicle.jitter.abs().max() == 0
    assert (vehicle.delay, vehicle.lag, vehicle.gain) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "value"), [("delay", (0.0, 0.7)), ("lag", (0.3, 0.1)), ("gain", (0.0, 1.0))]
)
def test_impossible_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"vehicle.{name}"):
        VehicleConfig(**{name: value})
