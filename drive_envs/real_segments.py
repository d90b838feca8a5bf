"""A real recording into segments: rows 0.2 s apart, seen by the driver's two cameras, with depth.

The driver's cameras are virtual (`virtual_view`): both are cut out of the one that filmed, as if
it had hung where the driver's do. Desires are 0, since a recording does not say when a driver chose
to change lanes.

Frames t_k of a recording are rarely exactly `STEP` apart, and cannot be moved there: a picture is
of its own moment. What reads segments counts on `STEP`, so that a drive is told as if it had been:

    time_k = k STEP,    velocity' = velocity dt / dtime

Positions and pictures are as they were; a drive at 5.2 Hz is told 4 % slower than it was,
and agrees with itself. `source` keeps the true `interval`.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from drive_envs.camera import Camera, recording_cameras
from drive_envs.depth_from_motion import Neighbours
from drive_envs.depth_sources import DepthError, DepthMaker, Map
from drive_envs.frames import JPEG_QUALITY, encode_depth, encode_image
from drive_envs.geometry import quaternion_from_matrix
from drive_envs.mounting import ego_poses, found_mount
from drive_envs.path import NUM_PAST
from drive_envs.plan import STEP
from drive_envs.real_rows import Frames, Plausible, rows_of, usable_frames
from drive_envs.recording import Fault, Mount, Pixels, Recording, RecordingError
from drive_envs.segment import Segment
from drive_envs.virtual_view import View, lowered, taller

SAME_HEIGHT = 0.01  # m: less is not worth a warp
REACH = 2  # rows before and after that a row's depth is corrected by


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How segments are cut out of a recording.

    width, height: pixels of what a driver sees; scale, margin: how much finer and wider it is kept
    (`drive_envs.camera.recording_cameras`); depth is kept as fine as the driver sees. quality: of
    the JPEGs. seconds, min_seconds: the longest and the shortest segment.
    """

    width: int = 128
    height: int = 64
    scale: int = 1
    margin: int = 32
    quality: int = JPEG_QUALITY
    seconds: float = 16.0
    min_seconds: float = 6.0
    plausible: Plausible = field(default_factory=Plausible)

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {self.quality}")
        least = (NUM_PAST + 2) * STEP
        if not least <= self.min_seconds <= self.seconds <= 60:
            raise ValueError(
                f"segments of {self.min_seconds} to {self.seconds} s: it takes "
                f"{least:g} <= min_seconds <= seconds <= 60"
            )
        assert self.cameras

    @property
    def cameras(self) -> dict[str, Camera]:
        """What segments are kept with."""
        return recording_cameras(self.width, self.height, scale=self.scale, margin=self.margin)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One frame as it goes into a segment; `unseen` is the share that was not filmed, a camera."""

    frame: int
    images: dict[str, bytes]
    depths: dict[str, bytes | None]
    unseen: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A frame as it was filmed, and, for depth from motion, as the driver's cameras see it."""

    frame: int
    filmed: Pixels
    views: dict[str, UInt8[np.ndarray, "_rows _columns 3"]]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A segment to be: its rows, or None for frames that are left out for `fault`.

    unseen: share of each camera's view that was not filmed. interval: s between its rows in truth.
    """

    segment: Segment | None = None
    unseen: dict[str, float] = field(default_factory=dict)
    interval: float = STEP
    fault: Fault | None = None


class Cutter:
    """Cuts recordings into segments. `depth` None makes segments without depth."""

    def __init__(self, config: Cut, depth: DepthMaker | None) -> None:
        self.config, self.depth = config, depth

    def pieces(self, recording: Recording) -> Iterator[Piece]:
        """Yield the segments of a recording, and what is left out of it, as they are met.

        RecordingError when nothing of it can be used.
        """
        if self.depth and self.depth.needs_measured and recording.depth is None:
            raise RecordingError(recording.file, "no measured depth", "choose another depth.kind")
        usable, faults = usable_frames(recording)
        runs, more = rows_of(recording, usable, self.config.plausible)
        yield from (Piece(fault=fault) for fault in (*recording.faults, *faults, *more))
        sound = np.zeros(len(recording), bool)
        for run in runs:
            sound[run[0] : run[-1] + 1] = usable[run[0] : run[-1] + 1]
        mount = found_mount(recording, sound)
        if not self.depth and abs(mount.height - self._height) > SAME_HEIGHT:
            raise RecordingError(
                recording.file,
                "the camera hangs higher or lower than the driver's, and there is no depth",
                f"{mount.height:g} m, not {self._height:g} m; give depth.kind",
            )
        film = Film(recording, mount, self.config, self.depth)
        number = 0
        for rows in self._runs_of_rows(film, runs):
            if isinstance(rows, Fault):
                yield Piece(fault=rows)
                continue
            segment = segment_of(recording, mount, rows, self.config, number)
            interval = json.loads(segment.source)["interval"]
            number += 1
            unseen = {
                name: float(np.mean([row.unseen[name] for row in rows])) for name in rows[0].unseen
            }
            yield Piece(segment=segment, unseen=unseen, interval=interval)

    @property
    def _height(self) -> float:
        return next(iter(self.config.cameras.values())).mount_height

    def _runs_of_rows(self, film: "Film", runs: list[Frames]) -> Iterator[list[Row] | Fault]:
        """Yield rows that belong together, long enough and no longer than a segment; or a fault."""
        least = round(self.config.min_seconds / STEP)
        most = round(self.config.seconds / STEP)
        held: list[Row] = []
        ends = {int(run[-1]) for run in runs}
        long_enough = [run for run in runs if len(run) >= least]
        for run in runs:
            if len(run) < least:
                yield self._too_short(film, [int(frame) for frame in run])
        wanted = [int(frame) for run in long_enough for frame in run]
        for frame, row in zip(wanted, film.rows(wanted), strict=True):
            if isinstance(row, Fault):
                yield row
            else:
                held.append(row)
            if isinstance(row, Fault) or frame in ends or len(held) == most:
                if len(held) >= least:
                    yield held
                elif held:
                    yield self._too_short(film, [row.frame for row in held])
                held = []

    def _too_short(self, film: "Film", frames: list[int]) -> Fault:
        seconds = f"{len(frames) * STEP:.1f} s, at least {self.config.min_seconds:g}"
        file = film.recording.file
        return Fault(
            cause="too short a piece", file=file, first=frames[0], last=frames[-1], detail=seconds
        )


class Film:
    """A recording as the driver's cameras would have seen it."""

    def __init__(
        self, recording: Recording, mount: Mount, config: Cut, depth: DepthMaker | None
    ) -> None:
        self.recording, self.config, self._depth = recording, config, depth
        self._fine = {name: self._view(camera, mount) for name, camera in config.cameras.items()}
        self._coarse = {
            name: self._view(_shrunk(camera, config.scale), mount)
            for name, camera in config.cameras.items()
        }
        self._uses_motion = depth is not None and depth.uses_motion
        # What lies out of view is the same in every frame, but for the warp to another height.
        self._seen = {name: view.pixels()[2] for name, view in self._coarse.items()}

    def _view(self, camera: Camera, mount: Mount) -> View:
        height = mount.height
        if abs(height - camera.mount_height) <= SAME_HEIGHT:
            height = camera.mount_height
        return View(camera=taller(camera, height), optics=self.recording.optics, mount=mount)

    def rows(self, frames: list[int]) -> Iterator[Row | Fault]:
        """Make the rows of these frames, which rise."""
        read = zip(frames, self.recording.images(frames), strict=True)
        ahead = REACH if self._uses_motion else 0
        shots: deque[Shot | Fault] = deque(self._shots(islice(read, ahead)))
        before: deque[Shot | Fault] = deque(maxlen=ahead)
        for _ in frames:
            shots.extend(self._shots(islice(read, 1)))
            shot = shots.popleft()
            around = [other for other in (*before, *shots) if isinstance(other, Shot)]
            yield shot if isinstance(shot, Fault) else self._row(shot, around)
            before.append(shot)

    def _shots(self, read: Iterable[tuple[int, Pixels | Fault]]) -> Iterator[Shot | Fault]:
        for frame, image in read:
            if isinstance(image, Fault):
                yield image
            else:
                looked_at = self._coarse if self._uses_motion else {}
                views = {name: view.image(image) for name, view in looked_at.items()}
                yield Shot(frame=frame, filmed=image, views=views)

    def _neighbours(self, name: str, shot: Shot, around: list[Shot]) -> Neighbours | None:
        """Return the frames around one, as far as they are near in time; None where none is."""
        time, camera = self.recording.time, self.recording.world_from_camera
        soon = (REACH + 0.5) * STEP
        around = [other for other in around if abs(time[other.frame] - time[shot.frame]) <= soon]
        if not around:
            return None
        turned = np.eye(4)
        turned[:3, :3] = self._coarse[name].recorded_from_camera
        here = np.linalg.inv(camera[shot.frame] @ turned)
        images = np.stack([other.views[name] for other in around]).transpose(0, 3, 1, 2)
        moved = np.stack([here @ camera[other.frame] @ turned for other in around])
        return Neighbours(
            images=torch.from_numpy(np.ascontiguousarray(images)),
            this_from_other=torch.from_numpy(moved).float(),
        )

    def _row(self, shot: Shot, around: list[Shot]) -> Row | Fault:
        if self._depth is None:
            images = {name: view.image(shot.filmed) for name, view in self._fine.items()}
            unseen = {name: 1 - float(seen.mean()) for name, seen in self._seen.items()}
            return self._encoded(shot.frame, images, dict.fromkeys(images), unseen)
        try:
            depths = self._depths(self._depth, shot, around)
        except DepthError as error:
            file, frame = self.recording.file, shot.frame
            return Fault(cause=error.cause, file=file, first=frame, last=frame, detail=error.detail)
        images, seen = {}, {}
        for name, depth in depths.items():
            known = np.where(self._seen[name], depth, np.nan)
            images[name], seen[name] = self._lowered(name, shot.filmed, known)
        unseen = {name: float(np.isnan(depth).mean()) for name, depth in seen.items()}
        return self._encoded(shot.frame, images, seen, unseen)

    def _depths(self, maker: DepthMaker, shot: Shot, around: list[Shot]) -> dict[str, Map]:
        """Return the depth of each view, corrected by the frames around it."""
        measured = self.recording.depth(shot.frame) if self.recording.depth else None
        depths = maker.depths(self._coarse, shot.filmed, measured)
        if not self._uses_motion:
            return depths
        return {
            name: maker.improved(
                self._coarse[name],
                depth,
                shot.views[name],
                self._neighbours(name, shot, around),
                measured,
            )
            for name, depth in depths.items()
        }

    def _lowered(
        self, name: str, image: Pixels, depth: Map
    ) -> tuple[UInt8[np.ndarray, "_rows _columns 3"], Map]:
        """Return image and depth at the driver's height."""
        fine, coarse = self._fine[name], self._coarse[name]
        target = self.config.cameras[name]
        if coarse.camera.mount_height == target.mount_height:
            return fine.image(image), depth
        depth, shown = lowered(depth, coarse.camera, _shrunk(target, self.config.scale))
        size = (target.width, target.height)
        rows = cv2.resize(shown, size, interpolation=cv2.INTER_LINEAR) * self.config.scale
        return replace(fine, camera=target).image(image, rows), depth

    def _encoded(
        self,
        frame: int,
        images: dict[str, UInt8[np.ndarray, "_rows _columns 3"]],
        depths: dict[str, Map] | dict[str, None],
        unseen: dict[str, float],
    ) -> Row:
        return Row(
            frame=frame,
            images={
                name: encode_image(image.transpose(2, 0, 1), quality=self.config.quality)
                for name, image in images.items()
            },
            depths={
                name: None if depth is None else encode_depth(depth)
                for name, depth in depths.items()
            },
            unseen=unseen,
        )


def _shrunk(camera: Camera, scale: int) -> Camera:
    return camera.scaled(camera.width // scale, camera.height // scale)


def segment_of(
    recording: Recording, mount: Mount, rows: list[Row], config: Cut, number: int
) -> Segment:
    """Put rows into a segment, with the car's poses and velocities, as if `STEP` apart."""
    frames = np.array([row.frame for row in rows])
    pose = ego_poses(recording.world_from_camera[frames], mount)
    time = recording.time[frames]
    if recording.velocity is None or not np.isfinite(recording.velocity[frames]).all():
        velocity = np.gradient(pose[:, :3, 3], STEP, axis=0)
    else:
        velocity = recording.velocity[frames] * np.gradient(time, STEP)[:, None]
    source = {
        "recording": recording.name,
        "from": recording.source,
        "first_frame": int(frames[0]),
        "last_frame": int(frames[-1]),
        "begins": float(time[0]),
        "interval": float(np.diff(time).mean()),
        "mount": {
            "height": mount.height,
            "roll": mount.roll,
            "pitch": mount.pitch,
            "yaw": mount.yaw,
        },
    }
    matrix = torch.from_numpy(pose)
    return Segment(
        name=f"{recording.name}-{number:03d}",
        split="train",
        cameras=config.cameras,
        time=STEP * np.arange(len(rows)),
        position=pose[:, :3, 3],
        quaternion=quaternion_from_matrix(matrix).numpy(),
        velocity=velocity,
        desire=np.zeros(len(rows), np.int8),
        valid=np.ones(len(rows), bool),
        images={name: [row.images[name] for row in rows] for name in config.cameras},
        depths={name: [row.depths[name] for row in rows] for name in config.cameras},
        source=json.dumps(source),
    )
