import functools
import itertools
import math

import pytest
import torch

from drive_envs.path import NUM_PAST, PathOffset, gather_paths
from drive_envs.plan import (
    ACCELERATION,
    EULER,
    EULER_RATE,
    POSITION,
    STEP,
    TIMES,
    VELOCITY,
    action_from_plan,
    plan_of_arc,
)
from drive_envs.teachers import (
    COMFORT,
    LATERAL_RATE,
    convergence,
    follow,
    plan_from_convergence,
    recorded_targets,
    settle,
    teach,
)
from drive_envs.vehicle import MAX_LATERAL_ACCELERATION, Vehicle, VehicleState, advance

NUM_STEPS, LONGEST = 60, 110
CORNERS = [
    {},
    *(
        {"delay": 0.2, "lag": 0.2, "gain": gain, "wind": wind}
        for gain, wind in itertools.product((0.9, 1.1), (-0.2, 0.2))
    ),
    {"delay": 0.3, "lag": 0.3, "gain": 1.15, "wind": 0.2},
    {"delay": 0.3, "lag": 0.0, "gain": 0.85, "wind": -0.2},
    {"delay": 0.0, "lag": 0.3},
]


def cars(batch, delay=0.0, lag=0.0, gain=1.0, wind=0.0):
    def each(value, *shape):
        return torch.full((batch, *shape), value, dtype=torch.float64)

    return Vehicle(
        delay=each(delay),
        lag=each(lag),
        gain=each(gain),
        wind=each(wind, LONGEST + 1),
        jitter=each(0.0, LONGEST, 2),
    )


def drive(paths, lateral, heading, vehicle, *, by_plan=False):
    """Close the loop of teacher and car as the environment does: errors, demands (time, batch).

    by_plan: of the path teacher, only its plan is known, as that of a world model would be.
    """
    speed = paths.speed[:, NUM_PAST]
    drift = vehicle.wind[:, 0] / speed.clamp(min=5.0) ** 2
    steering = paths.curvature[:, NUM_PAST] - drift
    state = VehicleState(
        pose=paths.displaced(NUM_PAST, lateral, heading),
        speed=speed,
        curvature=steering,
        commands=(steering / vehicle.gain)[:, None].repeat(1, 4),
    )
    station, errors, demands = paths.station[:, NUM_PAST], [], []
    for step in range(NUM_STEPS):
        offset = paths.project(state.pose, station)
        targets = teach(paths, offset, state, vehicle, step)
        if by_plan:
            targets = follow(targets.plan.float(), state, vehicle, step)
        errors.append(offset.lateral)
        demands.append(targets.action[:, 0] * speed**2)
        station = paths.station[:, NUM_PAST + step + 1]
        distance = (station - offset.station) * paths.stretch(offset)
        state = advance(state, targets.action, vehicle, step, distance)
    return torch.stack(errors), torch.stack(demands)


def cases(offsets):
    """Speeds with every curve that is comfortable at them (1.6 m/s^2), both ways, and offsets.

    Heading errors are up to 5 degrees, and up to a sideways drift of 0.8 m/s at high speed: to stop
    more takes longer than the test allows, at 2 m/s^2 and less where the curve takes its share.
    """
    for speed in (3.0, 5.0, 8.0, 12.0, 17.0, 22.0, 30.0):
        turns = [1 / r for r in (25, 40, 60, 100, 200, 400, 600) if speed**2 / r <= 1.6]
        most = min(math.radians(5), 0.8 / speed)
        for curvature in (0.0, *turns, *(-turn for turn in turns)):
            for lateral, heading in itertools.product(offsets, (-most, 0.0, most)):
                yield speed, curvature, lateral, heading


@functools.cache
def arcs(synthetic, chosen):
    """Return the paths of cases; for every corner the same, so they are made once."""
    recorded = [synthetic.arc_path(speed, curvature) for speed, curvature, _, _ in chosen]
    return gather_paths(recorded, [20] * len(chosen), NUM_STEPS)


def run(synthetic, offsets, corner):
    chosen = tuple(cases(offsets))
    table = torch.tensor(chosen, dtype=torch.float64)
    paths = arcs(synthetic, chosen)
    return drive(paths, table[:, 2], table[:, 3], cars(len(chosen), **corner))


@pytest.mark.slow
@pytest.mark.parametrize("corner", CORNERS, ids=str)
def test_closed_loop_converges_without_oscillation(synthetic, corner):
    error, demand = run(synthetic, (-1.5, -0.7, 0.0, 0.7, 1.5), corner)
    at_six_seconds = error[30:].abs().amax(dim=0)
    assert at_six_seconds.max() < (0.2 if corner else 0.1)
    assert error[-1].abs().max() < 0.02
    assert demand.abs().max() <= MAX_LATERAL_ACCELERATION + 1e-9
    # No oscillation: a car that starts towards the path may cross it once, and none crosses again.
    assert max(map(num_crossings, error.T.tolist())) <= 1


@pytest.mark.parametrize("delay", [0.0, 0.06, 0.12, 0.174, 0.3])
def test_who_is_on_the_plan_is_told_its_curvature_whenever_that_takes_effect(delay):
    speed = torch.tensor([5.0, 15.0, 28.0], dtype=torch.float64)
    curvature = 2.0 / speed**2
    state = VehicleState(
        pose=torch.zeros(3, 3, dtype=torch.float64),
        speed=speed,
        curvature=curvature,
        commands=curvature[:, None].repeat(1, 4),
    )
    targets = follow(plan_of_arc(speed, speed * curvature), state, cars(3, delay=delay, lag=0.0), 0)
    torch.testing.assert_close(targets.action[:, 0], curvature, rtol=0.01, atol=0.0)


def num_crossings(errors, deadband=0.03):
    sides = [error > 0 for error in errors if abs(error) > deadband]
    return sum(a != b for a, b in itertools.pairwise(sides))


@pytest.mark.parametrize("corner", CORNERS, ids=str)
def test_comes_back_from_far_off(synthetic, corner):
    recorded = [synthetic.arc_path(speed, 0.001) for speed in (3.0, 8.0, 15.0, 30.0)] * 2
    lateral = torch.tensor([-3.5] * 4 + [3.5] * 4, dtype=torch.float64)
    paths = gather_paths(recorded, [20] * 8, NUM_STEPS)
    error, _ = drive(paths, lateral, torch.zeros(8).double(), cars(8, **corner))
    assert error[40:].abs().max() < 0.1
    assert error.abs().max() < 3.6


@pytest.mark.parametrize("corner", CORNERS, ids=str)
def test_a_plan_that_is_followed_leads_back(synthetic, corner):
    every = cases((-1.0, 1.0))
    chosen = tuple(case for case in every if case[0] in (5.0, 12.0, 22.0) and not case[3])
    paths = arcs(synthetic, chosen)
    table = torch.tensor(chosen, dtype=torch.float64)
    car = cars(len(chosen), **corner)
    error, _ = drive(paths, table[:, 2], table[:, 3], car, by_plan=True)
    assert error[30:].abs().max() < (0.15 if corner else 0.1)
    assert error[-1].abs().max() < 0.02
    assert max(map(num_crossings, error.T.tolist())) <= 1


def test_settle_matches_the_clipped_spring():
    """Integrate e'' = -clip(w^2 e + 2 w e', -a, a) with tiny steps."""
    error = torch.tensor([3.0, -2.0, 0.5, 0.0, 2.0]).double()
    rate = torch.tensor([0.0, -2.0, 0.3, 2.5, -2.5]).double()
    most = torch.tensor([2.0, 2.0, 2.0, 1.0, 1.5]).double()
    time = TIMES[:25].expand(5, 25)
    found = settle(error, rate, 0.9, most, time)
    dt, e, v, now, k = 1e-3, error.clone(), rate.clone(), 0.0, 0
    while k < 25:
        if now >= float(TIMES[k]) - 1e-9:
            torch.testing.assert_close(found.value[:, k], e, atol=0.01, rtol=0.01)
            torch.testing.assert_close(found.rate[:, k], v, atol=0.01, rtol=0.01)
            k += 1
        a = -torch.clamp(0.81 * e + 1.8 * v, -most, most)
        e, v, now = e + v * dt + a * dt**2 / 2, v + a * dt, now + dt
    assert (found.acceleration.abs() <= most[:, None] + 1e-9).all()


def test_settle_without_excess_is_the_critically_damped_form():
    error, rate = torch.tensor([1.0, -0.5]).double(), torch.tensor([0.2, 0.1]).double()
    time = TIMES.expand(2, 33)
    found = settle(error, rate, 0.9, torch.full((2,), 100.0).double(), time)
    line = error[:, None] + (rate + 0.9 * error)[:, None] * time
    torch.testing.assert_close(found.value, line * (-0.9 * time).exp())


def test_following_the_plan_and_planning_again_gives_the_same_plan():
    error, rate = torch.tensor([3.0]).double(), torch.tensor([1.0]).double()
    most = torch.tensor([2.0]).double()
    halves = torch.arange(10)[None].double() * 0.3
    whole = settle(error, rate, 0.9, most, halves + 0.6)
    part = settle(error, rate, 0.9, most, torch.full((1, 1), 0.6).double())
    again = settle(part.value[:, 0], part.rate[:, 0], 0.9, most, halves)
    torch.testing.assert_close(again.value, whole.value)


def fine_plan(synthetic, lateral, heading, time):
    paths = gather_paths([synthetic.winding_path()] * 2, [20, 35], NUM_STEPS)
    offset_pose = paths.displaced(
        NUM_PAST, torch.tensor(lateral).double(), torch.tensor(heading).double()
    )
    offset = paths.project(offset_pose, paths.station[:, NUM_PAST])
    speed = paths.speed[:, NUM_PAST]
    return offset_pose, convergence(paths, offset, speed, torch.zeros(2).double(), time)


def test_plan_values_are_derivatives_of_each_other(synthetic):
    """Move the grid by 1 ms: every rate is the difference of what it is the rate of."""
    pose, motion = fine_plan(synthetic, [1.0, -0.8], [0.03, -0.02], TIMES.expand(2, 33))
    _, later = fine_plan(synthetic, [1.0, -0.8], [0.03, -0.02], TIMES.expand(2, 33) + 1e-3)
    plan = plan_from_convergence(pose, motion)
    after = plan_from_convergence(pose, later)
    rate = (after - plan) / 1e-3
    for of, its_rate, tolerance in (
        (POSITION, VELOCITY, 0.05),
        (VELOCITY, ACCELERATION, 0.25),
        (EULER, EULER_RATE, 0.01),
    ):
        torch.testing.assert_close(rate[..., of], plan[..., its_rate], atol=tolerance, rtol=0)
    heading = torch.atan2(plan[..., VELOCITY][..., 1], plan[..., VELOCITY][..., 0])
    torch.testing.assert_close(heading, plan[..., EULER][..., 2])


def test_plan_begins_here_and_ends_on_the_recording(synthetic):
    pose, motion = fine_plan(synthetic, [1.0, -0.8], [0.03, -0.02], TIMES.expand(2, 33))
    plan = plan_from_convergence(pose, motion)
    assert plan[:, 0, POSITION].abs().max() < 1e-3
    assert plan[:, 0, EULER].abs().max() < 1e-3
    cos, sin = pose[:, 2].cos(), pose[:, 2].sin()
    x, y = plan[:, -1, 0], plan[:, -1, 1]
    end = torch.stack([pose[:, 0] + cos * x - sin * y, pose[:, 1] + sin * x + cos * y], -1)
    path = synthetic.winding_path()
    expected = path.poses[torch.tensor([70, 85]), :2]
    assert (end - expected).norm(dim=-1).max() < 0.02


@pytest.mark.parametrize("curvature", [-0.02, 0.0, 0.01])
def test_action_agrees_with_the_plan_in_steady_state(synthetic, curvature):
    paths = gather_paths([synthetic.arc_path(8.0, curvature)], [20], NUM_STEPS)
    state = VehicleState(
        pose=paths.poses[:, NUM_PAST],
        speed=paths.speed[:, NUM_PAST],
        curvature=torch.tensor([curvature]).double(),
        commands=torch.full((1, 4), curvature).double(),
    )
    offset = paths.project(state.pose, paths.station[:, NUM_PAST])
    for corner in ({}, {"delay": 0.2, "lag": 0.2}):
        targets = teach(paths, offset, state, cars(1, **corner), 0)
        expected = torch.tensor([[curvature, 0.0]]).double()
        torch.testing.assert_close(targets.action, expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(action_from_plan(targets.plan), expected, atol=2e-4, rtol=0)


def test_speed_error_dies_out_on_the_recorded_schedule(synthetic):
    """Two metres behind and 1 m/s too slow: the plan catches up, and the action begins to."""
    paths = gather_paths([synthetic.arc_path(12.0, 0.0)], [20], NUM_STEPS)
    speed = torch.tensor([11.0]).double()
    zero = torch.zeros(1).double()
    offset = PathOffset(paths.station[:, NUM_PAST] - 2, zero, zero)
    motion = convergence(paths, offset, speed, zero, TIMES.expand(1, 33))
    assert motion.velocity[0][0, 0].item() == pytest.approx(11.0)
    assert motion.acceleration[0][0, 0].item() == pytest.approx(0.25 * 2 + 2 * 0.5 * 1.0)
    end = motion.point.position[0, -1, 0].item()
    assert end == pytest.approx(paths.station[0, NUM_PAST + 50].item(), abs=0.2)


def stop_and_go(synthetic, curvature, lateral, heading, faster):
    """Drive 22 s behind a stop of 4 s, the speed as the teacher says: one row a step and car."""
    paths = gather_paths([synthetic.stopping_path(curvature)] * len(lateral), [10] * 3, LONGEST)
    vehicle = cars(len(lateral))
    state = VehicleState(
        pose=paths.displaced(NUM_PAST, lateral, heading),
        speed=paths.speed[:, NUM_PAST] + faster,
        curvature=paths.curvature[:, NUM_PAST],
        commands=paths.curvature[:, NUM_PAST, None].repeat(1, 4),
    )
    station = paths.station[:, NUM_PAST]
    for step in range(LONGEST):
        offset = paths.project(state.pose, station)
        targets = teach(paths, offset, state, vehicle, step)
        ahead = offset.station - paths.station[:, NUM_PAST + step]
        yield ahead, offset, state, targets
        state = advance(state, targets.action, vehicle, step)
        station = offset.station + STEP * state.speed


@pytest.mark.parametrize("curvature", [0.0, -0.02])
def test_a_car_stops_where_the_person_did_and_goes_on_with_him(synthetic, curvature):
    lateral, heading, faster = torch.tensor(
        [[1.0, 0.0, -0.5], [0.0, 0.0, 0.05], [0.0, 1.0, -1.0]], dtype=torch.float64
    )
    steps = list(stop_and_go(synthetic, curvature, lateral, heading, faster))
    ahead = torch.stack([step[0] for step in steps])
    speed = torch.stack([step[2].speed for step in steps])
    plans = torch.stack([step[3].plan for step in steps])
    assert ahead.abs().max() < 1.2
    assert ahead[-1].abs().max() < 0.05
    assert speed[34:48].max() < 0.1
    assert speed[100:].min() > 7.5
    assert steps[-1][1].lateral.abs().max() < 0.02
    # Who stands neither slides to the side nor turns on the spot, and is not told to.
    standing = plans[36]
    near = TIMES < 1.0
    assert standing[:, near][..., VELOCITY].norm(dim=-1).max() < 0.2
    turn = standing[:, near][..., EULER][..., 2] - standing[:, :1, EULER][..., 2]
    assert turn.abs().max() < 2e-3
    assert plans.isfinite().all()


def test_who_came_too_far_waits_and_does_not_go_back(synthetic):
    paths = gather_paths([synthetic.stopping_path(0.0)], [42], NUM_STEPS)
    zero = torch.zeros(1).double()
    offset = PathOffset(paths.station[:, NUM_PAST] + 1.5, zero, zero)
    motion = convergence(paths, offset, zero, zero, TIMES.expand(1, 33))
    assert motion.velocity[0].min() >= 0
    station = motion.point.position[0, :, 0]
    assert (station.diff() >= 0).all()
    assert station[0].item() == pytest.approx(offset.station.item())
    assert motion.acceleration[0][0, 0].item() == 0
    speed, held = motion.velocity[0][0], station.diff() == 0
    assert held.sum() > 5
    assert speed[:-1][held].max() == 0
    assert motion.acceleration[0][0, :-1][held].max() == 0
    end = paths.station[0, NUM_PAST + 50].item()
    assert station[-1].item() == pytest.approx(end, abs=0.2)


@pytest.mark.parametrize("speed", [0.0, 1.0, 2.0, 2.9, 5.0])
@pytest.mark.parametrize(("curvature", "lateral"), [(0.0, 0.0), (0.1, 1.5), (0.1, -1.5)])
def test_a_plan_begins_where_the_car_points_however_slow_it_is(
    synthetic, speed, curvature, lateral
):
    paths = gather_paths([synthetic.arc_path(max(speed, 0.5), curvature)], [20], NUM_STEPS)
    now = torch.tensor([speed]).double()
    offset = PathOffset(
        paths.station[:, NUM_PAST],
        torch.tensor([lateral]).double(),
        torch.tensor([0.3]).double(),
    )
    motion = convergence(paths, offset, now, torch.zeros(1).double(), TIMES.expand(1, 33))
    assert motion.heading[0, 0].item() == pytest.approx(0.3, abs=1e-6)
    assert torch.hypot(*motion.velocity)[0, 0].item() == pytest.approx(speed, abs=1e-6)


def test_a_scene_is_taught_alike_beside_any_other(synthetic):
    fast, slow = synthetic.arc_path(9.0, 0.01), synthetic.stopping_path(0.0)
    plans = []
    for recorded in ([fast], [fast, slow]):
        paths = gather_paths(recorded, [20] * len(recorded), NUM_STEPS)
        one = torch.ones(len(recorded)).double()
        offset = PathOffset(paths.station[:, NUM_PAST] + 6, 0.8 * one, 0.0 * one)
        motion = convergence(paths, offset, 14.0 * one, 0.0 * one, TIMES.expand(len(one), 33))
        plans.append([part[0] for part in (motion.lateral, motion.heading, *motion.velocity)])
    for alone, beside in zip(*plans, strict=True):
        torch.testing.assert_close(alone, beside, atol=1e-12, rtol=0)


def test_plan_of_a_slow_car_agrees_with_itself(synthetic):
    """Beside a stop, too, every rate is the difference of what it is the rate of."""
    paths = gather_paths([synthetic.stopping_path(0.02)] * 2, [36, 62], NUM_STEPS)
    lateral, heading = torch.tensor([[0.8, -0.6], [-0.02, 0.02]]).double()
    pose = paths.displaced(NUM_PAST, lateral, heading)
    offset = paths.project(pose, paths.station[:, NUM_PAST])
    speed, start = paths.speed[:, NUM_PAST], torch.zeros(2).double()
    assert speed.min() < 3
    # Off the rows, where a recorded acceleration jumps.
    time = torch.arange(0.05, 8.0, 0.1, dtype=torch.float64).expand(2, -1)
    one, two = (convergence(paths, offset, speed, start, t) for t in (time, time + 1e-4))
    for motion in (one, two):
        assert motion.velocity[0].min() >= 0
    rate = (two.lateral - one.lateral) / 1e-4
    torch.testing.assert_close(rate, one.velocity[1], atol=0.02, rtol=0)
    rate = (two.velocity[1] - one.velocity[1]) / 1e-4
    sideways = one.acceleration[1] - one.point.curvature * one.velocity[0] * (
        one.velocity[0] / (1 - one.point.curvature * one.lateral)
    )
    assert (rate - sideways).abs().median() < 0.02


def test_turning_the_world_changes_no_target(synthetic):
    path = synthetic.winding_path()
    cos, sin = math.cos(2.5), math.sin(2.5)
    x, y, yaw = path.poses.unbind(-1)
    turned = torch.stack([cos * x - sin * y + 100, sin * x + cos * y - 40, yaw + 2.5], -1)
    other = type(path)(time=path.time, poses=turned, speed=path.speed, desire=path.desire)
    rows = torch.arange(10, 100, 10)
    for one, two in zip(recorded_targets(path, rows), recorded_targets(other, rows), strict=True):
        torch.testing.assert_close(one, two)


def test_recorded_targets_are_the_recorded_future(synthetic):
    path = synthetic.winding_path()
    rows = torch.tensor([20, 60, 110])
    targets = recorded_targets(path, rows)
    for n, row in enumerate(rows.tolist()):
        for i in (16, 24, 32):
            at = row + float(TIMES[i]) / STEP
            assert bool(targets.valid[n, i]) == (at <= 129)
            if at != int(at) or at > 129:
                continue
            there = path.poses[int(at)]
            dx, dy = (there[:2] - path.poses[row, :2]).tolist()
            yaw = path.poses[row, 2].item()
            x, y = math.cos(yaw) * dx + math.sin(yaw) * dy, math.cos(yaw) * dy - math.sin(yaw) * dx
            assert targets.plan[n, i, :2].tolist() == pytest.approx([x, y], abs=0.02)
            turn = (there[2] - yaw).item()
            assert targets.plan[n, i, 11].item() == pytest.approx(turn, abs=1e-3)
    time = path.time[rows]
    expected = torch.stack([0.01 * (0.5 * time).sin(), 0.6 * (0.3 * time + 0.03).cos()], -1)
    torch.testing.assert_close(targets.action, expected, atol=1e-3, rtol=0)


def test_correction_stays_comfortable(synthetic):
    paths = gather_paths([synthetic.arc_path(15.0, 0.0)], [20], NUM_STEPS)
    offset = PathOffset(
        paths.station[:, NUM_PAST], torch.full((1,), 3.9).double(), torch.full((1,), 0.1).double()
    )
    motion = convergence(
        paths, offset, paths.speed[:, NUM_PAST], torch.zeros(1).double(), TIMES.expand(1, 33)
    )
    assert motion.acceleration[1].abs().max() <= COMFORT + 1e-9
    assert LATERAL_RATE <= 0.9
