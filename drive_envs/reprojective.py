"""The world as it was recorded, seen from where the car is now, the paper's reprojective simulator.

Every image is warped from the frame that was recorded at the same time, which comes with a depth
map, and, where `source_offsets` says so, from neighbours in time that fill what it did not see. The
car's planar pose relative to the recorded one is applied to the recorded pose in space:
world_from_car = world_from_recorded @ delta, so that the recorded pitch and roll stay.

Other cars move as they did, whatever ours does. Nothing is known of places nobody looked at.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isclose
from time import perf_counter

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from drive_envs.camera import Camera, cameras
from drive_envs.frames import shrink_depth
from drive_envs.geometry import (
    compose,
    invert,
    matrix_from_planar,
    matrix_from_quaternion,
    planar_from_matrix,
)
from drive_envs.reprojection import reproject
from drive_envs.resampling import seen_by
from drive_envs.scenes import Scene
from drive_envs.segment import Segment

Frame = tuple[Tensor, Tensor]  # uint8 (3, H, W), float32 (h, w) metres
MAX_SCALE = 2.0  # times as fine as what is seen: more would cost, and not show
SLACK = 0.01  # of a factor
TOLERANCE = 1.0  # pixels of a border that a recording may lack


@dataclass(frozen=True, kw_only=True)
class ReprojectiveConfig:
    """How the recorded world is drawn.

    width, height: pixels of what is seen. Recordings may be finer and wider; those more than
        `MAX_SCALE` times as fine are shrunk first.
    source_offsets: rows relative to the time-aligned one, in order of preference; (0, -5, 5) fills
        what one frame did not see, at three times the cost.
    max_age: rows; each scene looks through frames up to so many rows older than `source_offsets`
        says, how many being drawn for the scene. A frame from behind is magnified and has margins,
        so that blur and drawn-out borders no longer tell how far off the recorded pose the car is.
        With 0 a policy learns to read just that, and does not drive where there is nothing to read.
    cache_mb: decoded frames to keep, the most recently used.
    device: of the warp; frames are decoded and kept on the CPU.
    """

    width: int = 128
    height: int = 64
    source_offsets: tuple[int, ...] = (0,)
    max_age: int = 0
    cache_mb: int = 512
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.source_offsets:
            raise ValueError("reprojective.source_offsets is empty: it needs one source, such as 0")
        if self.max_age < 0:
            raise ValueError(f"reprojective.max_age is {self.max_age}; it must not be negative")
        if self.cache_mb < 0:
            raise ValueError(f"reprojective.cache_mb is {self.cache_mb}; it must not be negative")


class Reprojective:
    """The World that recordings are; scenes come with a Segment as their source."""

    def __init__(self, config: ReprojectiveConfig | None = None) -> None:
        self.config = config or ReprojectiveConfig()
        self.cameras = cameras(self.config.width, self.config.height)
        self.seconds: dict[str, float] = {}
        self._frames = FrameCache(self.config.cache_mb * 2**20)
        self._scenes: list[tuple[Segment, int, Tensor]] = []

    def reset(self, scenes: Sequence[Scene]) -> None:
        """Begin with new scenes; ValueError when a source is no Segment or has other cameras."""
        self._scenes = []
        for scene in scenes:
            if not isinstance(scene.source, Segment):
                kind = type(scene.source).__name__
                raise ValueError(f"Reprojective needs a Segment as a scene's source, got a {kind}")
            check_cameras(scene.source, self.cameras)
            world_from_ego = matrix_from_quaternion(
                torch.tensor(scene.source.position), torch.tensor(scene.source.quaternion)
            )
            start = scene.first_row + scene.start - self._age(scene)
            self._scenes.append((scene.source, start, world_from_ego))

    def render(
        self, poses: Float[Tensor, "batch 3"], step: int, active: Bool[Tensor, " batch"]
    ) -> dict[str, np.ndarray]:
        """Return uint8 (batch, 3, H, W) images of each camera, black where not active.

        Raises SegmentError, which names file, segment and row, for a frame that is damaged or has
        no depth.
        """
        self.seconds = {"decode": 0.0}
        indices = active.nonzero()[:, 0].tolist()
        shape = (len(poses), 3, self.config.height, self.config.width)
        images = {name: np.zeros(shape, np.uint8) for name in self.cameras}
        if not indices:
            return images
        rows = [self._source_rows(index, step) for index in indices]
        car_from_source = torch.stack(
            [
                self._car_from_source(index, source_rows, poses[index])
                for index, source_rows in zip(indices, rows, strict=True)
            ]
        )
        for name, camera in self.cameras.items():
            camera_from_ego = torch.linalg.inv(camera.ego_from_camera)
            target_from_source = camera_from_ego @ car_from_source @ camera.ego_from_camera
            for sensor, members in self._by_sensor(name, indices).items():
                frames, depths = self._decode(
                    name, sensor, [indices[i] for i in members], [rows[i] for i in members]
                )
                seen = reproject(
                    frames.to(self.config.device),
                    depths.to(self.config.device),
                    target_from_source[members].float().to(self.config.device),
                    camera,
                    sensor.color,
                    is_sharp=True,
                )
                images[name][[indices[i] for i in members]] = seen.image.cpu().numpy()
        return images

    def _by_sensor(self, name: str, indices: list[int]) -> dict["Sensor", list[int]]:
        """Group the places in `indices` by what their scenes were recorded with."""
        groups: dict[Sensor, list[int]] = {}
        for place, index in enumerate(indices):
            recorded = self._scenes[index][0].cameras[name]
            groups.setdefault(working_sensor(recorded, self.cameras[name]), []).append(place)
        return groups

    def _age(self, scene: Scene) -> int:
        """Draw how old a scene's frames are; the same scene always gets the same."""
        identity = (scene.start, scene.num_steps, scene.lateral_offset, scene.heading_offset)
        rng = np.random.default_rng(abs(hash(identity)))
        return int(rng.integers(self.config.max_age + 1))

    def _source_rows(self, index: int, step: int) -> list[int]:
        """Return the rows of a scene's sources; beyond an end of the segment, its end."""
        segment, start, _ = self._scenes[index]
        last = len(segment) - 1
        return [min(max(start + step + offset, 0), last) for offset in self.config.source_offsets]

    def _car_from_source(self, index: int, rows: list[int], pose: Tensor) -> Tensor:
        """Return (source, 4, 4): the sources' ego frames seen from the car's."""
        world_from_ego = self._scenes[index][2]
        recorded = world_from_ego[rows[self._aligned]]
        delta = compose(invert(planar_from_matrix(recorded)), pose)
        return torch.linalg.inv(recorded @ matrix_from_planar(delta)) @ world_from_ego[rows]

    @property
    def _aligned(self) -> int:
        """Which source is nearest in time."""
        offsets = self.config.source_offsets
        return min(range(len(offsets)), key=lambda i: abs(offsets[i]))

    def _decode(
        self, camera: str, sensor: "Sensor", indices: list[int], rows: list[list[int]]
    ) -> Frame:
        """Stack sources: images (batch, source, 3, H, W) and depths (batch, source, h, w)."""
        begin = perf_counter()
        frames = [
            self._frames.get(self._scenes[index][0], sensor, camera, row)
            for index, source_rows in zip(indices, rows, strict=True)
            for row in source_rows
        ]
        images, depths = (torch.stack(part) for part in zip(*frames, strict=True))
        split = (len(indices), len(self.config.source_offsets))
        self.seconds["decode"] += perf_counter() - begin
        return images.unflatten(0, split), depths.unflatten(0, split)


@dataclass(frozen=True)
class Sensor:
    """Sizes at which recorded frames are kept: one camera, its colour and its depth."""

    color: Camera
    depth: Camera


@lru_cache(maxsize=64)
def working_sensor(recorded: Camera, seen: Camera) -> Sensor:
    """Say at which sizes frames of a recorded camera are worth keeping for one that is seen.

    Colour at most `MAX_SCALE` times as fine as seen, depth as fine as seen, as far as whole factors
    allow.
    """
    color = shrunk(recorded, recorded.focal / seen.focal / MAX_SCALE)
    return Sensor(color=color, depth=shrunk(color, color.focal / seen.focal))


def shrunk(camera: Camera, most: float) -> Camera:
    """Make a camera smaller by the largest whole factor up to `most` that its size allows."""
    for factor in range(int(most + SLACK), 1, -1):
        if not (camera.width % factor or camera.height % factor):
            return camera.scaled(camera.width // factor, camera.height // factor)
    return camera


class FrameCache:
    """Decoded frames, the least recently used of which go when there are more than `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._frames: OrderedDict[tuple[object, str, str, int], Frame] = OrderedDict()

    def get(self, segment: Segment, sensor: Sensor, camera: str, row: int) -> Frame:
        """Decode a frame at the sizes of `sensor`, or find it."""
        key = (segment.file or id(segment), segment.name, camera, row)
        frame = self._frames.get(key)
        if frame is not None:
            self._frames.move_to_end(key)
            return frame
        image = resized(segment.image(camera, row), sensor.color)
        depth = resized_depth(segment.depth(camera, row), sensor.depth)
        frame = torch.from_numpy(image), torch.from_numpy(depth)
        self._frames[key] = frame
        self.num_bytes += image.nbytes + depth.nbytes
        while self.num_bytes > self.max_bytes and len(self._frames) > 1:
            _, (old_image, old_depth) = self._frames.popitem(last=False)
            self.num_bytes -= old_image.nbytes + old_depth.nbytes
        return frame


def recorded_images(
    segment: Segment, rows: Iterable[int], views: Mapping[str, Camera]
) -> dict[str, np.ndarray]:
    """Decode what a driver's cameras saw when rows were recorded, uint8 (rows, 3, height, width).

    Raises SegmentError for a frame that is damaged.
    """
    rows = list(rows)
    images = {}
    for name, view in views.items():
        sensor = working_sensor(segment.cameras[name], view).color
        frames = [resized(segment.image(name, row), sensor) for row in rows]
        images[name] = seen_by(view, torch.from_numpy(np.stack(frames)), sensor).numpy()
    return images


def resized(image: np.ndarray, camera: Camera) -> np.ndarray:
    """Resize an image (3, H, W) to the size of a camera."""
    size = camera.width, camera.height
    if image.shape[1:] == size[::-1]:
        return image
    kind = cv2.INTER_AREA if camera.width < image.shape[2] else cv2.INTER_LINEAR
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    return np.ascontiguousarray(cv2.resize(pixels, size, interpolation=kind).transpose(2, 0, 1))


def resized_depth(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Resize depth (H, W) in metres to the size of a camera.

    By a whole factor the nearest surface of a cell is taken. Otherwise inverse depth is averaged,
    as it is linear on a plane; a pixel with an unknown part is unknown.
    """
    size = camera.width, camera.height
    if depth.shape == size[::-1]:
        return depth
    factor = depth.shape[1] // camera.width
    if depth.shape == (factor * camera.height, factor * camera.width):
        return shrink_depth(depth, factor)
    kind = cv2.INTER_AREA if camera.width < depth.shape[1] else cv2.INTER_LINEAR
    with np.errstate(divide="ignore"):
        return 1 / cv2.resize(1 / depth, size, interpolation=kind)


def check_cameras(segment: Segment, wanted: dict[str, Camera]) -> None:
    """Raise SegmentError unless the segment's cameras show what the wanted ones see.

    They must be mounted alike, and see as far to every side; how fine they are is their own affair.
    """
    for name, camera in wanted.items():
        if name not in segment.cameras:
            raise segment.error(f"it has no camera '{name}', only {', '.join(segment.cameras)}")
        given = segment.cameras[name]
        for part in ("mount_height", "pitch"):
            here, there = getattr(given, part), getattr(camera, part)
            if not isclose(here, there, rel_tol=1e-3, abs_tol=1e-3):
                raise segment.error(
                    f"camera '{name}' has a {part} of {here:g}, the driver's has {there:g}: "
                    "record or import it with the cameras of drive_envs.camera"
                )
        lacking = [
            side
            for side, reach in sides(camera).items()
            if sides(given)[side] < reach - TOLERANCE / camera.focal
        ]
        if lacking:
            raise segment.error(
                f"camera '{name}' does not see as far as the driver's to the "
                f"{' and '.join(lacking)}: record or import it with drive_envs.camera's "
                "recording_cameras, or wider"
            )


def sides(camera: Camera) -> dict[str, float]:
    """Return how far a camera sees to each side, as tangents."""
    return {
        "left": camera.center_u / camera.focal,
        "right": (camera.width - camera.center_u) / camera.focal,
        "top": camera.center_v / camera.focal,
        "bottom": (camera.height - camera.center_v) / camera.focal,
    }
