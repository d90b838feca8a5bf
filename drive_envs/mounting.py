"""How a camera sits on its car, found from how it moves; and the car's poses from the camera's.

The car's axes are x forward, y left, z up, its origin lies on the road below the camera. With
a camera L metres ahead of the rear axle, which does not slip, the direction of travel of the camera
turns against the car's axis by

    tan(angle) = L r / v      r: yaw rate, rad/s; v: speed, m/s

so that yaw and L are the offset and the slope of a straight line, and pitch is the mean over all
frames. This assumes that the car, on average, points along the road that it is on.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from drive_envs.recording import Mount, Recording, RecordingError

AXES = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # car from a camera that looks ahead
MIN_SPEED = 3.0  # m/s, below which the direction of travel is noise
MIN_FRAMES = 20  # that tell it
SPAN = 0.2  # s between the positions that a direction is taken from


def ego_from_camera(mount: Mount) -> Float[np.ndarray, "4 4"]:
    """Return the mount as a matrix; pitch and yaw must be known."""
    assert mount.pitch is not None
    assert mount.yaw is not None
    matrix = np.eye(4)
    turn = Rotation.from_euler("ZYX", [mount.yaw, mount.pitch, mount.roll])
    matrix[:3, :3] = turn.as_matrix() @ AXES
    matrix[2, 3] = mount.height
    return matrix


def ego_poses(
    world_from_camera: Float[np.ndarray, "frames 4 4"], mount: Mount
) -> Float[np.ndarray, "frames 4 4"]:
    """Return world_from_ego of a car whose camera has these poses."""
    return world_from_camera @ np.linalg.inv(ego_from_camera(mount))


def found_mount(recording: Recording, usable: Bool[np.ndarray, " frames"]) -> Mount:
    """Return the recording's mount with pitch and yaw found where they are not given.

    RecordingError when too few usable frames move fast enough to tell.
    """
    mount = recording.mount
    if mount.pitch is not None and mount.yaw is not None:
        return mount
    travel, turn = directions(recording, usable, mount.roll)
    if len(travel) < MIN_FRAMES:
        cause = "too few moving frames to find how the camera is mounted"
        raise RecordingError(
            recording.pose_file, cause, f"{len(travel)}; give pitch and yaw of the camera"
        )
    ahead = travel[:, 0]
    left, down = travel[:, 1] / ahead, -travel[:, 2] / ahead
    # Medians of a line and a level would do as well; the frames are many, and outliers cut before.
    slope = np.stack([np.ones(len(turn)), turn], axis=1)
    line, *_ = np.linalg.lstsq(slope, left, rcond=None)
    # The direction of travel, seen from the camera, is where the car's x axis points.
    return replace(
        mount,
        yaw=mount.yaw if mount.yaw is not None else -float(np.arctan(line[0])),
        pitch=mount.pitch if mount.pitch is not None else -float(np.arctan(np.median(down))),
    )


def directions(
    recording: Recording, usable: Bool[np.ndarray, " frames"], roll: float
) -> tuple[Float[np.ndarray, "moving 3"], Float[np.ndarray, " moving"]]:
    """Return directions of travel as the rolled camera has them (ahead, left, up), and r / v."""
    frames = np.flatnonzero(usable)
    time, pose = recording.time[frames], recording.world_from_camera[frames]
    after = np.searchsorted(time, time + SPAN)
    near = after < len(time)
    first, last = np.flatnonzero(near), after[near]
    elapsed = time[last] - time[first]
    moved = pose[last, :3, 3] - pose[first, :3, 3]
    speed = np.linalg.norm(moved, axis=1) / elapsed
    moving = (elapsed < 2 * SPAN) & (speed > MIN_SPEED)
    first, last, moved = first[moving], last[moving], moved[moving]
    level = Rotation.from_euler("x", roll).as_matrix() @ AXES
    here, there = pose[first, :3, :3], pose[last, :3, :3]
    middle = Rotation.from_matrix(here) * Rotation.from_rotvec(
        Rotation.from_matrix(here.transpose(0, 2, 1) @ there).as_rotvec() / 2
    )
    turned = Rotation.from_matrix(here.transpose(0, 2, 1) @ there).as_rotvec()
    travel = middle.inv().apply(moved / np.linalg.norm(moved, axis=1, keepdims=True)) @ level.T
    # A turn to the left is one about the camera's upward axis, which is its negative y.
    return travel, -turned[:, 1] / np.linalg.norm(moved, axis=1)
