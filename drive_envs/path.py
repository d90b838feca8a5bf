"""The recorded path: where a person drove, how fast, and what it is relative to it to be elsewhere.

`RecordedPath` is one whole recording, a row every `STEP`. `Paths` holds, for a batch of scenes, the
rows around each scene as equally long tensors, and continues a recording that ends too soon on an
arc of constant curvature and speed (`valid` says where).

Relative to a path, a pose has a station s (arc length, m), a lateral offset e (m, positive left)
and
a heading error (rad, counter-clockwise): x = p(s) + e n(s), yaw = psi(s) + heading.
The path knows no lanes and no cars.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.interpolate import CubicSpline
from torch import Tensor

from drive_envs.geometry import matrix_from_quaternion, planar_from_matrix, wrap
from drive_envs.plan import MIN_SPEED, STEP
from drive_envs.segment import Segment
from drive_envs.vehicle import actions_from_poses

SLIP_SPEED = 2.0  # m/s, above which the direction of travel is read from the positions
NUM_PAST = 9  # rows that `Paths` holds before a scene's start
NUM_BEYOND = 56  # rows after its end: a plan of 10 s and a car with 1 s of latency
NUM_DESIRES = 3  # none, left, right
DESIRE_TIME = 6.0  # s that a driver is told of a lane change: as long as people take for one
NEVER = -1_000_000  # a row long ago
MIN_METRIC = 0.2  # least 1 - kappa e: closer to the centre of a curve, stations make no sense


@dataclass(frozen=True, kw_only=True)
class RecordedPath:
    """One drive in the plane, a row every `STEP`.

    time (N,) s; poses (N, 3) world x, y, yaw, yaw being the direction of travel, continuous through
    turns; speed (N,) m/s; all float64. desire (N,) int64: 0 none, 1 lane change left, 2 right, on
    the row where it begins.
    """

    time: Float[Tensor, " num_rows"]
    poses: Float[Tensor, "num_rows 3"]
    speed: Float[Tensor, " num_rows"]
    desire: Int[Tensor, " num_rows"]

    def __post_init__(self) -> None:
        if len(self.time) < 2:
            raise ValueError(f"a path needs at least two rows, this one has {len(self.time)}")

    def __len__(self) -> int:
        return len(self.time)

    @cached_property
    def told(self) -> Float[Tensor, "num_rows 3"]:
        """What a driver is told of `desire`: of nothing, of a change to the left, to the right.

        1 on the row of a pulse, and falling to 0 within `DESIRE_TIME`: an indicator that stays on.
        A driver who remembers two seconds could not tell the rest of a change from an offset to be
        corrected. The three add up to 1.
        """
        rows = torch.arange(len(self))
        latest = torch.where(self.desire > 0, rows, NEVER).cummax(0).values
        strength = (1 - (rows - latest) * STEP / DESIRE_TIME).clamp(min=0.0)
        which = torch.eye(NUM_DESIRES, dtype=torch.float64)[self.desire[latest.clamp(min=0)]]
        told = which * strength[:, None]
        told[:, 0] = 1 - told[:, 1:].sum(dim=1)
        return told

    @cached_property
    def curvature(self) -> Float[Tensor, " num_rows"]:
        """Curvature in 1/m at each row: the mean of the steps that lead to it and away from it.

        Where the car all but stands it is that of the last step before.
        """
        step = actions_from_poses(self.poses, self.speed)[:, 0]
        is_moving = self.poses[:, :2].diff(dim=0).norm(dim=-1) >= MIN_SPEED * STEP
        latest = torch.where(is_moving, torch.arange(len(step)), -1).cummax(0).values
        step = torch.where(latest >= 0, step[latest.clamp(min=0)], step)
        return torch.cat([step[:1], (step[:-1] + step[1:]) / 2, step[-1:]])

    @cached_property
    def acceleration(self) -> Float[Tensor, " num_rows"]:
        """Longitudinal acceleration in m/s^2 over the step that leads away from each row."""
        step = self.speed.diff() / STEP
        return torch.cat([step, step[-1:]])

    @cached_property
    def station(self) -> Float[Tensor, " num_rows"]:
        """Arc length in metres from the first row."""
        chord = self.poses[:, :2].diff(dim=0).norm(dim=-1)
        arc = chord / torch.sinc(self.poses[:, 2].diff() / (2 * torch.pi))
        return torch.cat([arc.new_zeros(1), arc.cumsum(0)])


def path_from_segment(segment: Segment, rows: slice = slice(None)) -> RecordedPath:
    """Flatten a recording, or some consecutive rows of it, to the ground.

    The recorded yaw is where the body points, and a body may travel at a small angle to it; the
    path's yaw is the direction of travel (of a cubic spline through the positions), as the
    simulated car, which has no side slip, must point to follow it. At less than 2 m/s it is the
    recorded yaw.
    """
    # Arrays read from disk may be read-only: copy them.
    position, time = torch.tensor(segment.position[rows]), segment.time[rows]
    matrix = matrix_from_quaternion(position, torch.tensor(segment.quaternion[rows]))
    poses = planar_from_matrix(matrix)
    velocity = torch.tensor(segment.velocity[rows, :2])
    yaw = poses[:, 2]
    speed = (velocity[:, 0] * yaw.cos() + velocity[:, 1] * yaw.sin()).clamp(min=0.0)
    if len(time) > 3:
        travel = CubicSpline(time, position[:, :2].numpy()).derivative()(time)
        slip = wrap(torch.from_numpy(np.arctan2(travel[:, 1], travel[:, 0])) - yaw)
        yaw = yaw + torch.where(speed > SLIP_SPEED, slip, 0.0)
    yaw = torch.from_numpy(np.unwrap(yaw.numpy()))
    return RecordedPath(
        time=torch.tensor(time),
        poses=torch.cat([poses[:, :2], yaw[:, None]], dim=-1),
        speed=speed,
        desire=torch.from_numpy(segment.desire[rows].astype(np.int64)),
    )


class PathPoint(NamedTuple):
    """The path's geometry at some stations; `curvature_slope` is d kappa / d s."""

    position: Float[Tensor, "batch num_points 2"]
    yaw: Float[Tensor, "batch num_points"]
    curvature: Float[Tensor, "batch num_points"]
    curvature_slope: Float[Tensor, "batch num_points"]


class PathMotion(NamedTuple):
    """How the recorded car moved along its path; not valid past the recording's end."""

    station: Float[Tensor, "batch num_points"]
    speed: Float[Tensor, "batch num_points"]
    acceleration: Float[Tensor, "batch num_points"]
    valid: Bool[Tensor, "batch num_points"]


class PathOffset(NamedTuple):
    """A pose relative to the path."""

    station: Float[Tensor, " batch"]
    lateral: Float[Tensor, " batch"]
    heading: Float[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The rows around the start of each scene of a batch; row `NUM_PAST` is where the scene starts.

    poses (batch, rows, 3), yaw continuous; station, speed, curvature (batch, rows); valid (batch,
    rows) False where a row continues the recording; told (batch, rows, 3), `RecordedPath.told`.
    """

    poses: Float[Tensor, "batch num_rows 3"]
    station: Float[Tensor, "batch num_rows"]
    speed: Float[Tensor, "batch num_rows"]
    curvature: Float[Tensor, "batch num_rows"]
    valid: Bool[Tensor, "batch num_rows"]
    told: Float[Tensor, "batch num_rows 3"]

    @cached_property
    def _steps(self) -> Float[Tensor, "batch num_steps 12"]:
        """What `at_station` reads: x, y, yaw, cos, sin, kappa of the two rows of every step."""
        yaw = self.poses[..., 2:]
        rows = torch.cat([self.poses, yaw.cos(), yaw.sin(), self.curvature[..., None]], dim=-1)
        return torch.cat([rows[:, :-1], rows[:, 1:]], dim=-1)

    def at_station(self, station: Float[Tensor, "batch num_points"]) -> PathPoint:
        """Look the path up by arc length: cubic (Hermite) positions, all else linear in a step.

        Before its first and beyond its last row the path is straight.
        """
        last = self.station.shape[1] - 2
        index = (torch.searchsorted(self.station, station.contiguous(), right=True) - 1).clamp(
            0, last
        )
        begin, end = self.station.gather(1, index), self.station.gather(1, index + 1)
        length = (end - begin).clamp(min=1e-6)
        u = ((station - begin) / length).clamp(0, 1)[..., None]
        beyond = station[..., None] - begin[..., None] - u * length[..., None]
        values = self._steps.gather(1, index[..., None].expand(-1, -1, self._steps.shape[-1]))
        position, tangent = values[..., 0:2], length[..., None] * values[..., 3:5]
        position_end, tangent_end = values[..., 6:8], length[..., None] * values[..., 9:11]
        chord = position_end - position
        bend, twist = 3 * chord - 2 * tangent - tangent_end, tangent + tangent_end - 2 * chord
        slope = (values[..., 11] - values[..., 5]) / length
        straight = torch.lerp(values[..., 3:5], values[..., 9:11], u)
        return PathPoint(
            position=position + u * (tangent + u * (bend + u * twist)) + beyond * straight,
            yaw=torch.lerp(values[..., 2], values[..., 8], u[..., 0]),
            curvature=torch.lerp(values[..., 5], values[..., 11], u[..., 0]),
            curvature_slope=slope,
        )

    def at_time(self, time: Float[Tensor, "batch num_points"]) -> PathMotion:
        """Look the recorded motion up by seconds since the scene's start.

        Between rows the acceleration is constant, so that station, speed and acceleration agree.
        """
        row = time / STEP + NUM_PAST
        index = row.floor().long().clamp(0, self.station.shape[1] - 2)
        begin, end = self.speed.gather(1, index), self.speed.gather(1, index + 1)
        elapsed = (row - index) * STEP
        acceleration = (end - begin) / STEP
        return PathMotion(
            station=self.station.gather(1, index)
            + elapsed * (begin + 0.5 * acceleration * elapsed),
            speed=begin + acceleration * elapsed,
            acceleration=acceleration,
            valid=self.valid.gather(
                1, (row - 1e-6).ceil().long().clamp(0, self.valid.shape[1] - 1)
            ),
        )

    def project(self, pose: Float[Tensor, "batch 3"], guess: Float[Tensor, " batch"]) -> PathOffset:
        """Find the foot of each pose on its path, starting from a station near it (m).

        Newton's method on the tangential distance, not a search for the nearest point, so that it
        can never jump to another part of a path that crosses itself. A guess within a few metres
        ends within a millimetre.
        """
        station = guess
        for _ in range(2):
            along, lateral, _, curvature = self._relative(pose, station)
            station = station + along / (1 - curvature * lateral).clamp(min=MIN_METRIC)
        _, lateral, heading, _ = self._relative(pose, station)
        return PathOffset(station=station, lateral=lateral, heading=wrap(heading))

    def _relative(self, pose: Tensor, station: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a pose as (forward, left, turn) in the path's frame at a station, and kappa."""
        point = self.at_station(station[:, None])
        dx, dy = (pose[:, :2] - point.position[:, 0]).unbind(-1)
        yaw = point.yaw[:, 0]
        cos, sin = yaw.cos(), yaw.sin()
        turn = pose[:, 2] - yaw
        return cos * dx + sin * dy, cos * dy - sin * dx, turn, point.curvature[:, 0]

    def stretch(self, offset: PathOffset) -> Float[Tensor, " batch"]:
        """Return how far a car at an offset travels for each metre of station.

        Outside of a curve and at an angle it is more than one: (1 - kappa e) / cos(heading).
        """
        curvature = self.at_station(offset.station[:, None]).curvature[:, 0]
        metric = (1 - curvature * offset.lateral).clamp(min=MIN_METRIC)
        return metric / offset.heading.cos().clamp(min=MIN_METRIC)

    def displaced(
        self, row: int, lateral: Float[Tensor, " batch"], heading: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch 3"]:
        """Return the poses of a row, moved sideways (m, left) and turned (rad)."""
        x, y, yaw = self.poses[:, row].unbind(-1)
        return torch.stack(
            [x - lateral * yaw.sin(), y + lateral * yaw.cos(), yaw + heading], dim=-1
        )


def gather_paths(paths: Sequence[RecordedPath], starts: Sequence[int], num_steps: int) -> Paths:
    """Cut out the rows from `NUM_PAST` before each start to `NUM_BEYOND` after its scene's end.

    Raises ValueError when a start has fewer than `NUM_PAST` rows before it or is not in its path.
    """
    num_rows = NUM_PAST + num_steps + NUM_BEYOND
    rows = [_cut(path, start, num_rows) for path, start in zip(paths, starts, strict=True)]
    poses, station, speed, curvature, valid, told = map(torch.stack, zip(*rows, strict=True))
    return Paths(
        poses=poses, station=station, speed=speed, curvature=curvature, valid=valid, told=told
    )


def _cut(path: RecordedPath, start: int, num_rows: int) -> tuple[Tensor, ...]:
    if not NUM_PAST <= start < len(path):
        raise ValueError(
            f"a scene starts at row {start} of a path of {len(path)} rows; "
            f"it must lie in {NUM_PAST}..{len(path) - 1} to have its context"
        )
    wanted = torch.arange(start - NUM_PAST, start - NUM_PAST + num_rows)
    row, beyond = wanted.clamp(max=len(path) - 1), (wanted - len(path) + 1).clamp(min=0)
    pose, speed, curvature = path.poses[row], path.speed[row], path.curvature[row]
    distance = beyond * STEP * speed
    turn = distance * curvature
    chord = distance * torch.sinc(turn / (2 * torch.pi))
    heading = pose[:, 2] + turn / 2
    ahead = torch.stack([chord * heading.cos(), chord * heading.sin(), turn], dim=-1)
    return (
        pose + ahead,
        path.station[row] + distance,
        speed,
        curvature,
        beyond == 0,
        path.told[row],
    )
