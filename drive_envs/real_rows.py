"""Which frames of a real recording become rows, 0.2 s apart, and which do not, each with a cause.

A drive is cut where frames are missing, where time runs backwards and where the poses cannot be
those of a car; what is left are runs of frames that belong together. Nothing is mended: a row is
a frame that was recorded, with the pose that it was recorded with. Rows are as close to 0.2 s apart
as there are frames, within `MAX_JITTER` of a step; `real_segments` makes up for the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from drive_envs.plan import STEP
from drive_envs.recording import Fault, Recording, faults_of
from drive_envs.scenes import MAX_JITTER

Frames = Int[np.ndarray, "_"]  # as many as each place has


@dataclass(frozen=True, kw_only=True)
class Plausible:
    """What a car can do; poses that say more are not used.

    max_speed: m/s. max_acceleration: m/s^2, in any direction. max_turn: rad/s, about any axis.
    max_disagreement: m/s between the speed of the poses and the one that the car measured.
    """

    max_speed: float = 70.0
    max_acceleration: float = 15.0
    max_turn: float = 1.5
    max_disagreement: float = 4.0

    def __post_init__(self) -> None:
        for name in ("max_speed", "max_acceleration", "max_turn", "max_disagreement"):
            if not getattr(self, name) > 0:
                raise ValueError(f"plausible.{name} must be positive, got {getattr(self, name)}")


def usable_frames(recording: Recording) -> tuple[Bool[np.ndarray, " frames"], list[Fault]]:
    """Tell which frames have a time and a pose, and name those that do not."""
    pose = recording.world_from_camera.reshape(len(recording), -1)
    known = np.asarray(np.isfinite(pose).all(axis=1))
    timed = np.isfinite(recording.time)
    rotation = recording.world_from_camera[:, :3, :3]
    square = np.einsum("nij,nkj->nik", rotation, rotation)
    rigid = np.isclose(square, np.eye(3), atol=1e-3).all(axis=(1, 2))
    turned = np.where(np.isfinite(rotation), rotation, np.eye(3))
    bent = known & ~(rigid & (np.linalg.det(turned) > 0))
    file = recording.pose_file
    faults = faults_of(~known, "missing pose", file)
    faults += faults_of(bent, "pose is no rotation", file)
    faults += faults_of(~timed & known, "missing time", file)
    return known & timed & ~bent, faults


def rows_of(
    recording: Recording, usable: Bool[np.ndarray, " frames"], limits: Plausible
) -> tuple[list[Frames], list[Fault]]:
    """Return the runs of frames, `STEP` apart, that belong together, and what was left out."""
    runs, faults = [], []
    for frames in unbroken(recording, usable, faults):
        for row in spaced(recording, frames, faults):
            runs += plausible(recording, row, limits, faults)
    return runs, faults


def unbroken(
    recording: Recording, usable: Bool[np.ndarray, " frames"], faults: list[Fault]
) -> Iterator[Frames]:
    """Cut where time does not go on."""
    frames = np.flatnonzero(usable)
    back = np.flatnonzero(np.diff(recording.time[frames]) <= 0) + 1
    for cut in back.tolist():
        before, after = recording.time[frames[cut - 1]], recording.time[frames[cut]]
        faults.append(
            Fault(
                cause="time runs backwards",
                file=recording.pose_file,
                first=int(frames[cut]),
                last=int(frames[cut]),
                detail=f"from {before:.3f} to {after:.3f} s",
            )
        )
    # The frame at which it happens has no time to be trusted.
    keep = np.ones(len(frames), bool)
    keep[back] = False
    part = np.cumsum(~keep)
    yield from (frames[(part == number) & keep] for number in range(len(back) + 1))


def spaced(recording: Recording, frames: Frames, faults: list[Fault]) -> Iterator[Frames]:
    """Take frames `STEP` apart, and begin anew where there is none at the right time."""
    time, at = recording.time[frames], 0
    chosen: list[int] = []
    while at < len(frames):
        chosen.append(int(frames[at]))
        after = int(np.searchsorted(time, time[at] + STEP))
        near = [i for i in (after - 1, after) if at < i < len(frames)]
        best = min(near, key=lambda i: abs(time[i] - time[at] - STEP), default=len(frames))
        if best < len(frames) and abs(time[best] - time[at] - STEP) > MAX_JITTER:
            if after == len(frames):
                break  # the end of the recording
            gap = float(time[best] - time[at])
            here = int(frames[at])
            detail = f"none within {MAX_JITTER:g} s of {STEP:g} s later; the next is {gap:.3f} s"
            cause = "no frame 0.2 s later"
            faults.append(
                Fault(cause=cause, file=recording.pose_file, first=here, last=here, detail=detail)
            )
            yield np.array(chosen)
            chosen = []
            best = max(after, at + 1)
        at = best
    if chosen:
        yield np.array(chosen)


def plausible(
    recording: Recording, frames: Frames, limits: Plausible, faults: list[Fault]
) -> list[Frames]:
    """Drop the frames at which the poses do what no car does, and cut there."""
    if len(frames) < 2:
        return [frames]
    bad = np.zeros(len(frames), bool)
    for cause, values, limit, unit in motion(recording, frames):
        most = getattr(limits, limit)
        over = ~bad & (values > most)
        bad |= over
        for row in np.flatnonzero(over).tolist():
            frame, detail = int(frames[row]), f"{values[row]:.3g} {unit}, at most {most:g}"
            file = recording.pose_file
            faults.append(Fault(cause=cause, file=file, first=frame, last=frame, detail=detail))
    edges = np.flatnonzero(bad)
    return [
        part
        for part in np.split(frames, np.unique([*edges, *(edges + 1)]))
        if _is_good(part, frames[bad])
    ]


def _is_good(part: Frames, bad: Frames) -> bool:
    return len(part) > 0 and part[0] not in bad


def motion(
    recording: Recording, frames: Frames
) -> Iterator[tuple[str, Float[np.ndarray, " rows"], str, str]]:
    """Yield, for each thing that is looked at, its cause, value per row, limit and unit."""
    time, pose = recording.time[frames], recording.world_from_camera[frames]
    elapsed = np.diff(time)
    step = np.diff(pose[:, :3, 3], axis=0) / elapsed[:, None]
    speed = np.concatenate([[0.0], np.linalg.norm(step, axis=1)])
    yield "implausible speed", speed, "max_speed", "m/s"
    change = np.linalg.norm(np.diff(step, axis=0), axis=1) / ((elapsed[1:] + elapsed[:-1]) / 2)
    acceleration = np.concatenate([[0.0], change, [0.0]])
    yield "implausible acceleration", acceleration, "max_acceleration", "m/s^2"
    turned = np.einsum("nji,njk->nik", pose[:-1, :3, :3], pose[1:, :3, :3])
    angle = np.arccos(np.clip((np.trace(turned, axis1=1, axis2=2) - 1) / 2, -1, 1))
    yield "implausible turn", np.concatenate([[0.0], angle / elapsed]), "max_turn", "rad/s"
    if recording.car_speed is not None:
        middle = np.concatenate([speed[1:2], speed[1:]])
        apart = np.abs(middle - recording.car_speed[frames])
        yield (
            "poses and the car's own speed disagree",
            np.nan_to_num(apart),
            "max_disagreement",
            "m/s",
        )
