"""What a good driver would do from here: two teachers, and what the recorded driver did.

`teach` is the `path` teacher, `follow` the `plan` teacher, which takes any plan for what to do.

The teacher converges onto the recorded path as a critically damped spring of rate w would, but no
harder than is comfortable: e'' = -clip(w^2 e + 2 w e', -a, a) for the lateral offset e, and
likewise for the error in station (how far the car is ahead of the recorded one), so that it ends
where the person was, when he was there. That has a closed form: a parabola up to the time when the
spring asks for no more than a, then

    e(t) = (e1 + (e1' + w e1) t) exp(-w t)

and whoever follows such a plan for a while and plans again gets the rest of the same plan. A car
that is slower than `SLOW` gets back by driving, not by waiting: there t is counted in
min(1, speed / SLOW) seconds a second, and does not go on while the car stands. A plan is this
motion in the Frenet frame of the path, p(s) + e n(s), differentiated analytically, so its
15 values agree.

The action is the curvature of the same motion, begun at the state that the car will have when the
command takes effect: the teacher knows the car's delay, lag, gain and wind, and what was sent.
It knows the path and nothing else: no lanes, no other cars.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from drive_envs.geometry import compose, invert
from drive_envs.path import (
    MIN_METRIC,
    PathOffset,
    PathPoint,
    Paths,
    RecordedPath,
    gather_paths,
)
from drive_envs.plan import (
    EULER,
    MIN_SPEED,
    NUM_POINTS,
    STEP,
    TIMES,
    action_from_plan,
    interpolate,
    plan_from_motion,
)
from drive_envs.vehicle import (
    MAX_ACCELERATION,
    MAX_LATERAL_ACCELERATION,
    MIN_ACCELERATION,
    MIN_WIND_SPEED,
    SUBSTEP,
    Vehicle,
    VehicleState,
    limit,
    predict,
)

LATERAL_RATE = 0.9  # 1/s, w across the path unless it is said
COMFORT = 2.0  # m/s^2, a across the path: the correction alone, not the path's own curve
LEAST_COMFORT = 0.5  # m/s^2, even where a curve alone takes all that the car can do
COMFORT_CURVATURE = 0.15  # 1/m, at low speed: what the correction may add to the path's curvature
SLOW = 3.0  # m/s
NEARLY_ZERO = 1e-6  # m, what rounding leaves
GRID = 0.2  # s between the points at which the time of slow cars is added up
LONGITUDINAL_RATE = 0.5  # 1/s
LONGITUDINAL_COMFORT = 1.5  # m/s^2

Scenes = Float[Tensor, " batch"]
Points = Float[Tensor, "batch num_points"]


class Targets(NamedTuple):
    """What to imitate: a plan in SI units, where it is known, and (curvature, acceleration)."""

    plan: Float[Tensor, "batch 33 15"]
    valid: Bool[Tensor, "batch 33"]
    action: Float[Tensor, "batch 2"]


class Decay(NamedTuple):
    """A critically damped error and its first two derivatives."""

    value: Points
    rate: Points
    acceleration: Points


class Motion(NamedTuple):
    """A motion along a path: velocity and acceleration are (tangential, normal) at `point`.

    heading: of the velocity against the path, rad, known also where the car stands. curvature: of
    the motion's track, 1/m.
    """

    point: PathPoint
    lateral: Points
    heading: Points
    curvature: Points
    velocity: tuple[Points, Points]
    acceleration: tuple[Points, Points]
    valid: Bool[Tensor, "batch num_points"]

    @property
    def yaw_rate(self) -> Points:
        """Turn of the velocity, rad/s."""
        return self.curvature * torch.hypot(*self.velocity)


class Pace(NamedTuple):
    """A motion along a path, the lateral part aside: station m, speed m/s, acceleration m/s^2."""

    station: Points
    speed: Points
    acceleration: Points
    valid: Bool[Tensor, "batch num_points"]


def settle(error: Scenes, rate: Scenes, w: float, most: Scenes, time: Points) -> Decay:
    """Let errors die out: e, e' and e'' at (batch, num_points) seconds, |e''| at most `most` > 0.

    The parabola ends where w^2 e + 2 w e' = a (a being `most` with the sign of the pull); with
    x, y, the error and its rate in units of that sign, at the positive root t of
    a w^2 t^2 / 2 + (2 w a - w^2 y) t = w^2 x + 2 w y - a.
    """
    pull = w**2 * error + 2 * w * rate
    excess = (pull.abs() - most).clamp(min=0.0)
    half, slope = 0.5 * most * w**2, 2 * w * most - w**2 * rate * pull.sign()
    until = ((slope**2 + 4 * half * excess).sqrt() - slope) / (2 * half)
    until = torch.where(excess > 0, until, 0.0)[:, None]
    error, rate, braking = error[:, None], rate[:, None], (most * pull.sign())[:, None]

    forced = torch.minimum(time, until)
    error = error + rate * forced - 0.5 * braking * forced**2
    rate = rate - braking * forced
    free = time - forced
    line, fall = error + (rate + w * error) * free, torch.exp(-w * free)
    value, change = line * fall, (rate + w * error - w * line) * fall
    spring = -(w**2) * value - 2 * w * change
    return Decay(value, change, torch.where(time < until, -braking, spring))


def catch_up(
    paths: Paths, ahead: Scenes, gain: Scenes, least: Scenes, start: Scenes, time: Points
) -> Pace:
    """Return the motion along the path of cars that are `ahead` m and gain `gain` m/s.

    They do not go back, not behind `least` m either: who has come too far waits, and stands. When
    the recorded car gets there he is as fast as it at once; who plans again on the way is not.
    """
    comfort = torch.full_like(gain, LONGITUDINAL_COMFORT)
    lead = settle(ahead, gain, LONGITUDINAL_RATE, comfort, time)
    recorded = paths.at_time(start[:, None] + time)
    free = recorded.station + lead.value
    station = torch.maximum(free, least[:, None]).cummax(1).values
    waits = station > free + NEARLY_ZERO
    speed = torch.where(waits, 0.0, recorded.speed + lead.rate)
    push = torch.where(waits, 0.0, recorded.acceleration + lead.acceleration)
    push = torch.where(speed > 0, push, push.clamp(min=0.0))
    return Pace(station, speed.clamp(min=0.0), push, recorded.valid)


def driven_time(pace: Pace, time: Points) -> Points:
    """Count min(1, speed / SLOW) seconds a second, up to each `time`; `pace` is at every `GRID`."""
    share = (pace.speed / SLOW).clamp(max=1.0)
    sums = GRID * ((share[:, 1:] + share[:, :-1]) / 2).cumsum(1)
    sums = torch.cat([torch.zeros_like(share[:, :1]), sums], dim=1)
    index = (time / GRID).floor().long().clamp(0, share.shape[1] - 2)
    begin, end = share.gather(1, index), share.gather(1, index + 1)
    elapsed = time - GRID * index.to(time)
    return sums.gather(1, index) + elapsed * (begin + (end - begin) * elapsed / (2 * GRID))


def convergence(
    paths: Paths,
    offset: PathOffset,
    speed: Scenes,
    start: Scenes,
    time: Points,
    lateral_rate: float = LATERAL_RATE,
) -> Motion:
    """Return the motion that leads from an offset onto the recorded path.

    `offset` and `speed` are the car's at `start` seconds into the scene; the motion is evaluated at
    `time` (batch, num_points) seconds after that, rising. `lateral_rate` is w across the path, 1/s.
    """
    now = paths.at_time(start[:, None])
    here = paths.at_station(offset.station[:, None]).curvature[:, 0]
    metric = (1 - here * offset.lateral).clamp(min=MIN_METRIC)
    ahead = offset.station - now.station[:, 0]
    gain = speed * offset.heading.cos() / metric - now.speed[:, 0]
    schedule = paths, ahead, gain, offset.station, start
    pace = catch_up(*schedule, time)

    # Derivatives by a slow car's own time are those of a car that is not slow.
    num_points = int(float(time.max()) / GRID) + 2
    grid = GRID * torch.arange(num_points, dtype=torch.float64).expand(len(speed), -1)
    driven = driven_time(catch_up(*schedule, grid), time)
    brisk = speed.clamp(min=SLOW)
    cos = offset.heading.cos().clamp(min=MIN_METRIC)
    rate = (speed * cos / metric).clamp(min=SLOW) * metric * offset.heading.sin() / cos
    # The correction adds to the curve's own acceleration, and the car does only so much in all.
    side = torch.sign(lateral_rate * offset.lateral + 2 * rate)
    room = (MAX_LATERAL_ACCELERATION + side * here * speed**2).clamp(min=LEAST_COMFORT, max=COMFORT)
    comfort = torch.minimum(room, COMFORT_CURVATURE * brisk**2)
    lateral = settle(offset.lateral, rate, lateral_rate, comfort, driven)

    point = paths.at_station(pace.station)
    metric = (1 - point.curvature * lateral.value).clamp(min=MIN_METRIC)
    share = (pace.speed / SLOW).clamp(max=1.0)
    change = torch.where(pace.speed < SLOW, pace.acceleration / SLOW, 0.0)
    brisk = pace.speed.clamp(min=SLOW)
    push = torch.where(pace.speed < SLOW, 0.0, pace.acceleration)
    velocity = brisk * metric, lateral.rate
    along, across = frenet_acceleration(point, metric, lateral, brisk, push)
    squared_speed = velocity[0] ** 2 + velocity[1] ** 2
    turn = velocity[0] * across - velocity[1] * along
    return Motion(
        point=point,
        lateral=lateral.value,
        heading=torch.atan2(velocity[1], velocity[0]),
        curvature=turn / squared_speed**1.5,
        velocity=(share * velocity[0], share * velocity[1]),
        acceleration=(
            share**2 * along + change * velocity[0],
            share**2 * across + change * velocity[1],
        ),
        valid=pace.valid,
    )


def frenet_acceleration(
    point: PathPoint, metric: Points, lateral: Decay, pace: Points, push: Points
) -> tuple[Points, Points]:
    """Return the (tangential, normal) acceleration of p(s) + e n(s): s' = pace, s'' = push."""
    bend = 2 * point.curvature * pace * lateral.rate
    along = push * metric - point.curvature_slope * pace**2 * lateral.value - bend
    return along, point.curvature * pace**2 * metric + lateral.acceleration


def plan_from_convergence(pose: Float[Tensor, "batch 3"], motion: Motion) -> Tensor:
    """Express a motion at `TIMES` as plans (batch, 33, 15) in the ego frame of world poses."""
    yaw = motion.point.yaw
    cos, sin = yaw.cos(), yaw.sin()

    def in_world(vector: tuple[Tensor, Tensor]) -> Tensor:
        along, across = vector
        return torch.stack([cos * along - sin * across, sin * along + cos * across], dim=-1)

    return plan_from_motion(
        pose,
        motion.point.position + in_world((torch.zeros_like(yaw), motion.lateral)),
        in_world(motion.velocity),
        in_world(motion.acceleration),
        yaw + motion.heading,
        motion.yaw_rate,
    )


def teach(
    paths: Paths,
    offset: PathOffset,
    state: VehicleState,
    vehicle: Vehicle,
    step: int,
    lateral_rate: float = LATERAL_RATE,
) -> Targets:
    """Say what to do in each scene at `step`: the plan from here, and the command to send now.

    A faster `lateral_rate` holds better against wind and a wrong gain, which push a car that does
    not know of them off by their acceleration over the rate's square. `offset` is
    `paths.project(state.pose, ...)`. The action respects the car's limits.
    """
    batch = len(offset.station)
    start = torch.full_like(offset.station, step * STEP)
    time = TIMES.expand(batch, NUM_POINTS)
    motion = convergence(paths, offset, state.speed, start, time, lateral_rate)
    plan = plan_from_convergence(state.pose, motion)
    along, across = (part[:, 0] for part in motion.acceleration)
    heading = motion.heading[:, 0]
    acceleration = along * heading.cos() + across * heading.sin()

    latency = vehicle.delay + vehicle.lag
    pose = predict(state, vehicle, step, latency, acceleration)
    speed = (state.speed + acceleration * latency).clamp(min=0.0)
    guess = offset.station + latency * (state.speed + speed) / 2
    later = paths.project(pose, guess)
    # A command is held for one step: take the curvature half-way through it.
    half = torch.full_like(time[:, :1], STEP / 2)
    in_effect = convergence(paths, later, speed, start + latency, half, lateral_rate)
    curvature = in_effect.curvature[:, 0]
    action = commanded(curvature, acceleration, speed, state, vehicle, step)
    return Targets(plan=plan, valid=motion.valid, action=action)


def follow(
    plan: Float[Tensor, "batch 33 15"],
    state: VehicleState,
    vehicle: Vehicle,
    step: int,
    lateral_rate: float = LATERAL_RATE,
) -> Targets:
    """Take plans from where the cars are for what to do: the `plan` teacher of a world model.

    The command is the plan's curvature at the time when it takes effect, half-way through its step.
    Until then the car drives on as it was told before; what takes it off the plan by then is
    corrected as by `teach`.
    """
    plan = plan.to(state.speed)
    latency = vehicle.delay + vehicle.lag
    wanted = action_from_plan(plan, latency + STEP / 2)
    acceleration = wanted[:, 1].clamp(MIN_ACCELERATION, MAX_ACCELERATION)
    speed = (state.speed + acceleration * latency).clamp(min=0.0)
    foretold = SUBSTEP * (latency / SUBSTEP).round()  # what the car is compared with is of then
    then = compose(invert(state.pose), predict(state, vehicle, step, foretold, acceleration))
    planar = plan[..., 0], plan[..., 1], plan[..., EULER][..., 2]
    planned = torch.stack([interpolate(part, foretold) for part in planar], dim=-1)
    x, y, turn = (then - planned).unbind(-1)
    cos, sin = planned[:, 2].cos(), planned[:, 2].sin()
    error, rate = y * cos - x * sin, speed * turn.sin()
    pull = lateral_rate**2 * error + 2 * lateral_rate * rate
    correction = pull.clamp(-COMFORT, COMFORT) / speed.clamp(min=MIN_SPEED) ** 2
    curvature = wanted[:, 0] - correction.clamp(-COMFORT_CURVATURE, COMFORT_CURVATURE)
    action = commanded(curvature, acceleration, speed, state, vehicle, step)
    valid = torch.ones(plan.shape[:2], dtype=torch.bool)
    return Targets(plan=plan, valid=valid, action=action)


def commanded(
    curvature: Scenes,
    acceleration: Scenes,
    speed: Scenes,
    state: VehicleState,
    vehicle: Vehicle,
    step: int,
) -> Float[Tensor, "batch 2"]:
    """Return the command that makes a car drive a curvature, its gain and the wind accounted for.

    `speed` is that at which it takes effect.
    """
    drift = vehicle.wind[:, step] / speed.clamp(min=MIN_WIND_SPEED) ** 2
    command = (curvature - drift) / vehicle.gain
    return limit(torch.stack([command, acceleration], dim=-1), state)


def recorded_targets(path: RecordedPath, rows: Int[Tensor, " batch"]) -> Targets:
    """Return what the person did at some rows of a recording, seen from where he was.

    The plan is the recorded future, valid up to the recording's end; the action is the recorded
    curvature and acceleration. Rows need their context (`NUM_PAST` rows) before them.
    """
    zero = torch.zeros(len(rows), dtype=torch.float64)
    plan, valid = plans_back(path, rows, path.poses[rows], zero, zero)
    action = torch.stack([path.curvature[rows], path.acceleration[rows]], dim=-1)
    return Targets(plan=plan, valid=valid, action=action)


def plans_back(
    path: RecordedPath,
    rows: Int[Tensor, " batch"],
    poses: Float[Tensor, "batch 3"],
    lateral: Scenes,
    heading: Scenes,
    lateral_rate: float = LATERAL_RATE,
) -> tuple[Float[Tensor, "batch 33 15"], Bool[Tensor, "batch 33"]]:
    """Return the plans back onto a recording, and where they are valid, from beside some rows.

    `lateral` (m, left) and `heading` (rad) say how far off the recorded poses the `poses` are. The
    car keeps level with the recorded one: on the inside of a curve it is slower.
    """
    starts = rows.tolist()
    paths = gather_paths([path] * len(starts), starts, num_steps=0)
    offset = PathOffset(station=path.station[rows], lateral=lateral, heading=heading)
    time = TIMES.expand(len(starts), NUM_POINTS)
    start = torch.zeros_like(lateral)
    metric = (1 - path.curvature[rows] * lateral).clamp(min=MIN_METRIC)
    speed = path.speed[rows] * metric / heading.cos()
    motion = convergence(paths, offset, speed, start, time, lateral_rate)
    return plan_from_convergence(poses, motion), motion.valid
