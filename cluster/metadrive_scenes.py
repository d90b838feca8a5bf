"""Scenes to evaluate a world model on in which every picture is true: MetaDrive draws them all.

On roads that no recording has, at a steady speed along a lane's centre, and beside it. There is no
traffic: a car that nobody recorded cannot be foretold.
"""

import numpy as np
import torch

from cluster.progress import track
from drive_envs.camera import cameras, recording_cameras
from drive_envs.metadrive_rendering import MetaDriveRenderer
from drive_envs.path import RecordedPath
from drive_envs.plan import STEP
from drive_envs.random_roads import RoadsConfig, random_road
from drive_envs.resampling import seen_by
from drive_envs.roads import lane_centerline
from world_model.dit import WorldModelConfig
from world_model.encoding import Images
from world_model.evaluation import EvaluationConfig, Scene, make_scene, other_drives
from world_model.tokenizer import Tokenizer

SEED = 7_000_001  # of roads that neither recordings nor scenarios have
SCALE = 2  # as recordings are: drawn at twice the size, and averaged
START = 30.0  # m from the road's beginning
SPEEDS = (8.0, 20.0)  # m/s, from the tightest curves on to the widest
RADII = (40.0, 300.0)  # m


def metadrive_scenes(
    num: int, tokenizer: Tokenizer, config: EvaluationConfig, model: WorldModelConfig
) -> list[Scene]:
    """Drive and draw `num` scenes, each on a road of its own; speed grows with its curves.

    Raises ValueError (AssetsError, GraphicsError) when the machine cannot draw.
    """
    num_context = model.num_history + 1
    num_rows = num_context + config.num_frames + model.num_anchors
    sensors = recording_cameras(model.width, model.height, scale=SCALE)
    renderer = MetaDriveRenderer(sensors, region=1024, supersampling=1)
    scenes = []
    try:
        for number in track(range(num), "drawing scenes in MetaDrive"):
            share = number / max(1, num - 1)
            speed = SPEEDS[0] + share * (SPEEDS[1] - SPEEDS[0])
            radius = RADII[0] * (RADII[1] / RADII[0]) ** share
            roads = RoadsConfig(radius=(radius, 1.5 * radius))
            rng = np.random.default_rng([SEED, number])
            road = random_road(roads, rng, START + speed * STEP * num_rows + 80.0)
            renderer.load(road)
            line = lane_centerline(road, int(rng.integers(road.lane_count)))
            path = steady_path(line.poses(START + speed * STEP * np.arange(num_rows)), speed)
            drives = other_drives(path, config, num_context)
            poses = [path.poses, *(drive.poses for drive in drives)]
            images = [drawn(renderer, variant, model) for variant in poses]
            scenes.append(
                make_scene(f"metadrive-{number}", path, drives, images, tokenizer, num_context)
            )
    finally:
        renderer.close()
    return scenes


def steady_path(poses: np.ndarray, speed: float) -> RecordedPath:
    """Return the path through some poses at a steady speed."""
    num = len(poses)
    unwrapped = np.concatenate([poses[:, :2], np.unwrap(poses[:, 2])[:, None]], axis=1)
    return RecordedPath(
        time=STEP * torch.arange(num, dtype=torch.float64),
        poses=torch.from_numpy(unwrapped),
        speed=torch.full((num,), speed, dtype=torch.float64),
        desire=torch.zeros(num, dtype=torch.int64),
    )


def drawn(renderer: MetaDriveRenderer, poses: torch.Tensor, model: WorldModelConfig) -> Images:
    """Draw what a driver's cameras see from some poses, one frame a pose."""
    views = cameras(model.width, model.height)
    frames = []
    for x, y, yaw in poses.tolist():
        images = []
        for name, frame in renderer.render(x, y, yaw).items():
            pixels = torch.from_numpy(frame.image)[None]
            images.append(seen_by(views[name], pixels, renderer.cameras[name])[0])
        frames.append(torch.stack(images))
    return torch.stack(frames)
