"""Pairs of pictures from one pose: warped from a recording nearby, and true. MetaDrive draws both.

How far the car is from the recorded pose, p' - p, is drawn apart from where it is in its lane: the
recorded pose lies where the two lead to, p = p' (p' - p)^-1. So the road alone says nothing of
p' - p: what a true picture tells of it is chance, and what a warped one tells are its artifacts.

Frames are recorded as `drive record` does, compressed, and warped by the world that policies are
trained in (`Reprojective`), once from the frame of the same time and once from one that is older,
as `world.max_age` has it. The true picture is drawn as fine as a recording, then shrunk as it is.
Roads are empty, and no recording and no scenario has them. A road's pairs are a file of their own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import radians
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from cluster.kept import digest, kept_arrays
from cluster.metadrive_scenes import steady_path
from drive_envs.camera import CAMERAS, recording_cameras
from drive_envs.centerline import Centerline
from drive_envs.frames import encode_depth, encode_image, shrink_depth
from drive_envs.geometry import compose, invert
from drive_envs.metadrive_rendering import Frame, MetaDriveRenderer
from drive_envs.path import NUM_PAST
from drive_envs.photometry import PhotometryConfig, develop, draw_looks, draw_places
from drive_envs.plan import STEP
from drive_envs.random_roads import RoadsConfig, random_road
from drive_envs.reprojective import Reprojective, ReprojectiveConfig
from drive_envs.resampling import seen_by
from drive_envs.roads import Road, lane_centerline
from drive_envs.scenes import Scene
from drive_envs.segment import Segment

KINDS = ("true", "warped", "aged")  # of pictures; warped from the frame of that time, or older ones
TARGETS = ("lateral", "heading", "lane")  # p' - p in m and rad, and m left of the lane's centre
SEED = 9_000_001  # of roads that neither recordings nor scenarios have
LENGTH = 400.0  # m of road
BEFORE, BEYOND = 50.0, 100.0  # m of it that nobody stands on
SPEEDS = (5.0, 25.0)  # m/s, of the recording: how far back an older frame is
CURVE_ACCELERATION = 2.5  # m/s^2, lateral, that speed is held to

Images = dict[str, UInt8[np.ndarray, "pair 3 height width"]]  # by camera


@dataclass(frozen=True, kw_only=True)
class LeakScenesConfig:
    """What is drawn; every range is uniform, +-, left positive.

    num_roads, pairs_per_road. width, height: of what is seen. scale, margin: of recordings, as
    `drive record` has them. lateral_offset (m), heading_offset_deg: p' - p. lane_offset (m from the
    lane's centre), lane_heading_deg: p'. max_age: rows that the source of an aged picture may be
    older than what is seen, 0 to this.
    """

    num_roads: int = 128
    pairs_per_road: int = 12
    width: int = 128
    height: int = 64
    scale: int = 2
    margin: int = 32
    lateral_offset: float = 1.3
    heading_offset_deg: float = 3.0
    lane_offset: float = 1.0
    lane_heading_deg: float = 2.0
    max_age: int = 2
    seed: int = SEED
    roads: RoadsConfig = field(default_factory=RoadsConfig)

    def __post_init__(self) -> None:
        for name in ("num_roads", "pairs_per_road"):
            if getattr(self, name) < 1:
                raise ValueError(f"pairs.{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("lateral_offset", "heading_offset_deg", "lane_offset", "lane_heading_deg"):
            if getattr(self, name) < 0:
                raise ValueError(f"pairs.{name} must not be negative, got {getattr(self, name)}")
        if self.max_age < 0:
            raise ValueError(f"pairs.max_age must not be negative, got {self.max_age}")

    @property
    def folder_name(self) -> str:
        """A name made of what a road's pairs depend on, which is not how many roads there are."""
        known = asdict(self)
        del known["num_roads"]
        return f"pairs-{digest(known)}"


class Places(NamedTuple):
    """Where the cars of one road are, and where they were recorded; poses in the world.

    car, recorded, older: (pair, 3), the last `ages` rows earlier. targets (pair, 3): see `TARGETS`.
    """

    car: Float[np.ndarray, "pair 3"]
    recorded: Float[np.ndarray, "pair 3"]
    older: Float[np.ndarray, "pair 3"]
    ages: Int[np.ndarray, " pair"]
    targets: Float[np.ndarray, "pair 3"]


@dataclass(frozen=True, kw_only=True)
class LeakScenes:
    """N pairs: `images` by kind of picture, `targets` (N, 3) as in `TARGETS`, `roads` (N,)."""

    images: dict[str, Images]
    targets: Float[np.ndarray, "pair 3"]
    roads: Int[np.ndarray, " pair"]


def leak_scenes(config: LeakScenesConfig, folder: Path) -> LeakScenes:
    """Read the pairs that are in `folder` already, after drawing those that are missing there.

    Raises ValueError (AssetsError, GraphicsError) when the machine cannot draw.
    """
    parts = folder / config.folder_name
    files = [parts / f"road_{number:04d}.npz" for number in range(config.num_roads)]
    loaded = kept_arrays(files, "drawing roads in MetaDrive", lambda: drawing(config))
    return LeakScenes(
        images={
            kind: {
                camera: np.concatenate([part[f"{kind}_{camera}"] for part in loaded])
                for camera in CAMERAS
            }
            for kind in KINDS
        },
        targets=np.concatenate([part["targets"] for part in loaded]),
        roads=np.repeat(np.arange(config.num_roads), config.pairs_per_road),
    )


@contextmanager
def drawing(config: LeakScenesConfig) -> Iterator[Callable[[int], dict[str, np.ndarray]]]:
    """Yield what draws the pairs of a road by its number."""
    sensors = recording_cameras(
        config.width, config.height, scale=config.scale, margin=config.margin
    )
    renderer = MetaDriveRenderer(
        sensors, region=config.roads.region, supersampling=2 if config.scale == 1 else 1
    )
    try:
        yield lambda number: pairs_of_road(renderer, config, number)
    finally:
        renderer.close()


def pairs_of_road(
    renderer: MetaDriveRenderer, config: LeakScenesConfig, number: int
) -> dict[str, np.ndarray]:
    """Draw the pairs of one road: `targets`, and the images as KIND_CAMERA (pair, 3, H, W)."""
    road, places = random_places(config, number)
    renderer.load(road)
    world = Reprojective(ReprojectiveConfig(width=config.width, height=config.height, cache_mb=8))
    true = [renderer.render(*pose) for pose in places.car.tolist()]
    found = {
        "true": {
            name: torch.cat(
                [
                    seen_by(camera, torch.from_numpy(frame[name].image)[None], sensor)
                    for frame in true
                ]
            ).numpy()
            for name, camera, sensor in (
                (name, world.cameras[name], renderer.cameras[name]) for name in CAMERAS
            )
        },
        "warped": warped(world, recording(renderer, config, places.recorded), places.car),
        "aged": warped(world, recording(renderer, config, places.older), places.car),
    }
    images = {
        f"{kind}_{camera}": image for kind, seen in found.items() for camera, image in seen.items()
    }
    return {"targets": places.targets, **images}


def random_places(config: LeakScenesConfig, number: int) -> tuple[Road, Places]:
    """Draw the road of this number and who stands where on it: pure numbers."""
    rng = np.random.default_rng([config.seed, number])
    road = random_road(config.roads, rng, LENGTH)
    rows = [random_place(config, road, rng) for _ in range(config.pairs_per_road)]
    return road, Places(*(np.array(column) for column in zip(*rows, strict=True)))


def random_place(
    config: LeakScenesConfig, road: Road, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray]:
    """Draw one row of `Places`."""
    line = lane_centerline(road, int(rng.integers(road.lane_count)), opposite=rng.random() < 0.5)
    s = rng.uniform(BEFORE, line.length - BEYOND)
    left = rng.uniform(-config.lane_offset, config.lane_offset)
    turned = radians(rng.uniform(-config.lane_heading_deg, config.lane_heading_deg))
    lateral = rng.uniform(-config.lateral_offset, config.lateral_offset)
    heading = radians(rng.uniform(-config.heading_offset_deg, config.heading_offset_deg))
    curvature = abs(line.curvature(np.array([s]))[0])
    fastest = min(SPEEDS[1], (CURVE_ACCELERATION / max(curvature, 1e-6)) ** 0.5)
    speed = rng.uniform(SPEEDS[0], max(SPEEDS[0], fastest))
    age = int(rng.integers(config.max_age + 1))

    car = line.poses(np.array([s]), left)[0] + [0, 0, turned]
    delta = torch.tensor([0.0, lateral, heading], dtype=torch.float64)
    recorded = compose(torch.from_numpy(car), invert(delta)).numpy()
    older = earlier(line, recorded, speed * STEP * age)
    return car, recorded, older, age, np.array([lateral, heading, left])


def earlier(line: Centerline, pose: np.ndarray, metres: float) -> np.ndarray:
    """Return where a car was that has kept its place in the lane for so many metres."""
    s, left = line.locate(pose[None, :2])
    turned = pose[2] - line.poses(s)[0, 2]
    return line.poses(s - metres, left)[0] + [0, 0, turned]


def recording(renderer: MetaDriveRenderer, config: LeakScenesConfig, poses: np.ndarray) -> Segment:
    """Film from some poses as `drive record` does; they need not be those of one drive."""
    frames = [renderer.render(*pose) for pose in poses.tolist()]
    x, y, yaw = poses.T
    zero = np.zeros(len(poses))

    def encoded(name: str) -> tuple[list[bytes], list[bytes | None]]:
        seen: Iterable[Frame] = (frame[name] for frame in frames)
        both = [
            (encode_image(frame.image), encode_depth(shrink_depth(frame.depth, config.scale)))
            for frame in seen
        ]
        return [image for image, _ in both], [depth for _, depth in both]

    files = {name: encoded(name) for name in CAMERAS}
    return Segment(
        name="leak",
        split="held_out",
        cameras=renderer.cameras,
        time=STEP * np.arange(len(poses)),
        position=np.stack([x, y, zero], axis=-1),
        quaternion=np.stack([zero, zero, np.sin(yaw / 2), np.cos(yaw / 2)], axis=-1),
        velocity=np.zeros((len(poses), 3)),
        desire=np.zeros(len(poses), np.int8),
        valid=np.ones(len(poses), bool),
        images={name: images for name, (images, _) in files.items()},
        depths={name: depths for name, (_, depths) in files.items()},
    )


def warped(world: Reprojective, segment: Segment, cars: np.ndarray) -> Mapping[str, np.ndarray]:
    """Draw what each car sees of the frame of its own row: a scene of its own for every row.

    A world looks at the scene's row of the recording, and never at the scene's path.
    """
    standing = steady_path(np.zeros((NUM_PAST + 2, 3)), speed=1.0)
    scenes = [
        Scene(path=standing, start=NUM_PAST, num_steps=1, source=segment, first_row=row - NUM_PAST)
        for row in range(len(cars))
    ]
    world.reset(scenes)
    return world.render(torch.from_numpy(cars), 0, torch.ones(len(cars), dtype=torch.bool))


def developed(scenes: LeakScenes, photometry: PhotometryConfig, seed: int) -> dict[str, Images]:
    """Return all images as cameras show them; all kinds of one pair, by the same camera."""
    num = len(scenes.roads)
    rng = np.random.default_rng(seed)
    looks = draw_looks(photometry, [rng] * num)
    grain = {camera: draw_places(rng, num) for camera in CAMERAS}
    return {
        kind: {
            camera: np.concatenate(
                [
                    develop(image[rows], looks.pick(rows), grain[camera][rows])
                    for rows in np.array_split(np.arange(num), -(-num // 256))
                ]
            )
            for camera, image in seen.items()
        }
        for kind, seen in scenes.images.items()
    }
