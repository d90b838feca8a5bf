"""What a plan is: the future motion of the ego on a grid that is dense now and sparse later.

A plan is (33, 15): at each of the times t_i = 10 (i/32)^2 s it holds position, velocity and
acceleration (x, y, z each), the Euler angles and their rates (roll, pitch, yaw each), all in the
ego frame of now (x forward, y left, z up) and in SI units. Velocity is the time derivative of
position in that fixed frame, so its y component grows in a curve. All of it as
in openpilot, by the paper's authors.

Networks speak in normalised units, plan / `SCALE`, where every value is of order one. The module
does not know where plans come from (`teachers.py`) or how a network makes them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

STEP = 0.2  # seconds between two frames, and between two actions
NUM_POINTS = 33
NUM_VALUES = 15
POSITION, VELOCITY, ACCELERATION, EULER, EULER_RATE = (slice(i, i + 3) for i in range(0, 15, 3))
MIN_SPEED = 1.0  # m/s, below which curvature is computed as if at this speed

TIMES: Float[Tensor, "33"] = 10.0 * (torch.arange(NUM_POINTS, dtype=torch.float64) / 32) ** 2

Plan = Float[Tensor, "*batch 33 15"]


def typical_magnitude(time: Float[Tensor, "33"]) -> Float[Tensor, "33 15"]:
    """State what is ordinary at each time: 15 m/s forward, 1 m/s^2 either way, 0.1 rad/s of yaw.

    The constants are decided here, not published; they only condition the optimisation.
    """
    one = torch.ones_like(time)
    columns = [
        1.0 + 15.0 * time,
        0.2 + 0.7 * time + 0.4 * time**2,
        0.1 + 0.1 * time,
        15.0 * one,
        0.7 + 0.8 * time,
        0.5 * one,
        one,
        one,
        0.5 * one,
        0.05 * one,
        0.05 * one,
        0.03 + 0.1 * time,
        0.05 * one,
        0.05 * one,
        0.1 * one,
    ]
    return torch.stack(columns, dim=-1).float()


SCALE: Float[Tensor, "33 15"] = typical_magnitude(TIMES)

# Lower bounds of log b, without which a value that never varies drives it to minus infinity. On
# flat roads z, roll and pitch never do: with b = 1 their gradient is a twentieth of that at -3.
MIN_LOG_SCALE: Float[Tensor, "15"] = torch.tensor(
    [-3.0, -3.0, 0.0, -3.0, -3.0, 0.0, -3.0, -3.0, 0.0, 0.0, 0.0, -3.0, 0.0, 0.0, -3.0]
)


class Hypotheses(NamedTuple):
    """Several plans in normalised units: each value a Laplace density, each plan with a weight."""

    mean: Float[Tensor, "*batch hypothesis 33 15"]
    log_scale: Float[Tensor, "*batch hypothesis 33 15"]
    logit: Float[Tensor, "*batch hypothesis"]


def plan_of_unit_speed() -> Float[Tensor, "33 15"]:
    """Return the plan of a car that drives straight on at 1 m/s, in normalised units."""
    plan = plan_of_arc(torch.tensor(1.0), torch.tensor(0.0))
    return plan / SCALE.to(plan)  # which is on the meta device where a network is only outlined


def plan_of_arc(speed: Float[Tensor, "*batch"], yaw_rate: Float[Tensor, "*batch"]) -> Plan:
    """Return the plan of a car that keeps its speed, m/s, and its yaw rate, rad/s; SI units."""
    time = TIMES.to(speed)
    v, w = speed[..., None], yaw_rate[..., None]
    turn = w * time
    # v / w sin(turn) and v / w (1 - cos(turn)), which may be divided by a yaw rate of zero.
    chord = v * time * torch.sinc(turn / (2 * torch.pi))
    along, across = (turn / 2).cos(), (turn / 2).sin()
    tangent = torch.stack([turn.cos(), turn.sin()], dim=-1)
    normal = torch.stack([-turn.sin(), turn.cos()], dim=-1)
    return plan_from_motion(
        pose=torch.zeros_like(speed)[..., None].expand(*speed.shape, 3),
        position=torch.stack([chord * along, chord * across], dim=-1),
        velocity=v[..., None] * tangent,
        acceleration=(v * w)[..., None] * normal,
        yaw=turn,
        yaw_rate=w.expand_as(turn),
    )


def plan_to_pose(
    speed: Float[Tensor, "*batch"],
    pose: Float[Tensor, "*batch 3"],
    time: Float[Tensor, "*batch"],
    least_time: float,
) -> Plan:
    """Return the plan of a car that drives at `speed`, m/s, to be at a planar pose in `time` s.

    A cubic in time, as smooth as it can be (Hermite). It arrives in the direction of the pose, at
    the speed that makes the way's mean speed right, and goes straight on from there. A pose that is
    nearer in time than `least_time` s is moved ahead as far, so that nothing is done in haste.
    """
    times, time = TIMES.to(speed), time.clamp(min=STEP)
    x, y, yaw = pose.unbind(-1)
    # As long as an arc over the chord in its direction: what is off to the side is no way to go.
    # Beyond half a turn that says nothing any more.
    chord = (x * (yaw / 2).cos() + y * (yaw / 2).sin()).clamp(min=0)
    length = chord / torch.sinc(yaw / (2 * torch.pi)).clamp(min=0.3)
    arrival = (2 * length / time - speed).clamp(min=0)
    ahead = torch.stack([yaw.cos(), yaw.sin()], dim=-1)
    rest = (least_time - time).clamp(min=0)
    end = pose[..., :2] + (arrival * rest)[..., None] * ahead
    duration = (time + rest)[..., None, None]
    first = torch.stack([speed, torch.zeros_like(speed)], dim=-1)[..., None, :]
    last, end = (arrival[..., None] * ahead)[..., None, :], end[..., None, :]
    u = (times[:, None] / duration).clamp(max=1)
    is_under_way = u < 1
    late = (times[:, None] - duration).clamp(min=0)
    position = (
        (3 * u**2 - 2 * u**3) * end
        + ((u - 2 * u**2 + u**3) * first + (u**3 - u**2) * last) * duration
        + late * last
    )
    velocity = (
        6 * (u - u**2) / duration * end + (1 - 4 * u + 3 * u**2) * first + (3 * u**2 - 2 * u) * last
    )
    acceleration = is_under_way * (
        (6 - 12 * u) / duration**2 * end + ((6 * u - 4) * first + (6 * u - 2) * last) / duration
    )
    (vx, vy), (ax, ay) = velocity.unbind(-1), acceleration.unbind(-1)
    return plan_from_motion(
        pose=torch.zeros_like(pose),
        position=position,
        velocity=velocity,
        acceleration=acceleration,
        yaw=torch.atan2(vy, vx),
        yaw_rate=(vx * ay - vy * ax) / (vx**2 + vy**2).clamp(min=MIN_SPEED**2),
    )


def negative_log_likelihood(
    hypotheses: Hypotheses,
    target: Float[Tensor, "batch 33 15"],
    valid: Bool[Tensor, "batch 33"],
) -> Float[Tensor, " batch"]:
    """Score the best hypothesis as a Laplace density and teach the weights to pick it (MHP loss).

    `target` is in SI units. The density's part, |x - mu| / b + log 2b, is averaged over the values
    of the valid times (nats a value), so that a plan cut short by the end of a recording weighs as
    much as a whole one; with no valid time it is 0. log b is bounded below by `MIN_LOG_SCALE`.
    """
    normalized = torch.where(valid[..., None], target, 0.0) / SCALE.to(target)
    log_scale = hypotheses.log_scale.maximum(MIN_LOG_SCALE.to(hypotheses.log_scale))
    error = (hypotheses.mean - normalized[:, None]).abs()
    per_time = (error * (-log_scale).exp() + log_scale + torch.log(error.new_tensor(2.0))).mean(-1)
    weight = valid.to(per_time)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1.0)
    per_hypothesis = (per_time * weight[:, None]).sum(-1)
    best = per_hypothesis.detach().argmin(dim=1)
    regression = per_hypothesis.gather(1, best[:, None]).squeeze(1)
    choice = cross_entropy(hypotheses.logit, best, reduction="none")
    return regression + choice * valid.any(-1)


def best_plan(hypotheses: Hypotheses) -> Plan:
    """Return the mean of the likeliest hypothesis, in SI units."""
    best = hypotheses.logit.argmax(dim=-1)
    index = best[..., None, None, None].expand(*best.shape, 1, NUM_POINTS, NUM_VALUES)
    mean = hypotheses.mean.gather(-3, index).squeeze(-3)
    return mean * SCALE.to(mean)


def interpolate(
    values: Float[Tensor, "*batch 33"], time: float | Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Read what is given on the grid at a time in seconds, linearly between grid points."""
    grid = TIMES.to(values.device)
    time = torch.as_tensor(time).to(grid).expand(values.shape[:-1])
    right = torch.searchsorted(grid, time.contiguous()).clamp(1, NUM_POINTS - 1)
    before, after = grid[right - 1], grid[right]
    weight = ((time - before) / (after - before)).to(values)
    left_value, right_value = (
        values.gather(-1, index[..., None])[..., 0] for index in (right - 1, right)
    )
    return (1 - weight) * left_value + weight * right_value


def action_from_plan(
    plan: Plan, look_ahead: float | Float[Tensor, "*batch"] = STEP
) -> Float[Tensor, "*batch 2"]:
    """Turn a plan into (curvature 1/m, acceleration m/s^2), as they are `look_ahead` s from now.

    curvature = 2 yaw(t) / (v t) - yaw_rate / v and acceleration = 2 (v_t - v_0) / t - a_0
    (as in openpilot): twice the mean over [0, t] less the value now is the value at t, to first
    order. The yaw rate and the speed v in the curvature are those of now, v at least `MIN_SPEED`.
    """
    if (torch.as_tensor(look_ahead) <= 0).any():
        raise ValueError(f"look_ahead is {look_ahead} s, an action needs it to be positive")
    speeds = plan[..., VELOCITY].norm(dim=-1)
    speed_now, speed_ahead = speeds[..., 0], interpolate(speeds, look_ahead)
    yaw = interpolate(plan[..., EULER][..., 2], look_ahead)
    yaw_rate = plan[..., 0, EULER_RATE][..., 2]
    speed = speed_now.clamp(min=MIN_SPEED)
    curvature = 2 * yaw / (speed * look_ahead) - yaw_rate / speed
    acceleration = 2 * (speed_ahead - speed_now) / look_ahead - plan[..., 0, ACCELERATION][..., 0]
    return torch.stack([curvature, acceleration], dim=-1)


def plan_from_motion(
    pose: Float[Tensor, "*batch 3"],
    position: Float[Tensor, "*batch 33 2"],
    velocity: Float[Tensor, "*batch 33 2"],
    acceleration: Float[Tensor, "*batch 33 2"],
    yaw: Float[Tensor, "*batch 33"],
    yaw_rate: Float[Tensor, "*batch 33"],
) -> Plan:
    """Express a planar motion in the world as a plan in the ego frame of `pose` (x, y, yaw).

    Height, roll and pitch and their derivatives are zero: the recordings' roads are flat.
    """
    cos, sin = pose[..., 2].cos()[..., None], pose[..., 2].sin()[..., None]

    def rotated(vector: Tensor) -> tuple[Tensor, Tensor]:
        x, y = vector.unbind(-1)
        return cos * x + sin * y, cos * y - sin * x

    zero = torch.zeros_like(yaw)
    x, y = rotated(position - pose[..., None, :2])
    velocity_x, velocity_y = rotated(velocity)
    acceleration_x, acceleration_y = rotated(acceleration)
    turn = yaw - pose[..., 2:]
    turn = torch.atan2(turn.sin(), turn.cos())
    linear = [x, y, zero, velocity_x, velocity_y, zero, acceleration_x, acceleration_y, zero]
    return torch.stack([*linear, zero, zero, turn, zero, zero, yaw_rate], dim=-1)
