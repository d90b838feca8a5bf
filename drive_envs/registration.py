"""The environments by name: importing this module makes `gymnasium.make` know them.

    import drive_envs.registration
    env = gymnasium.make("drive/Reprojective-v0")    # the recorded sample, or segments=PATH
    env = gymnasium.make("drive/MetaDrive-v0")       # roads drawn at random; one a process

or, without the import, `gymnasium.make("drive_envs.registration:drive/Reprojective-v0")`.
`gymnasium.make_vec` gives the batched environment of the first. Nothing heavy is loaded before an
environment is made.
"""

from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import gymnasium

if TYPE_CHECKING:
    import numpy as np

    from drive_envs.environment import DrivingEnv, DrivingVectorEnv, EnvConfig
    from drive_envs.scenes import SamplerConfig, Scene

RenderMode = Literal["rgb_array"] | None
ROAD_STEPS = 50


def make_reprojective(
    segments: str | Path | None = None,
    split: Literal["train", "held_out"] | None = None,
    config: "EnvConfig | None" = None,
    sampler: "SamplerConfig | None" = None,
    render_mode: RenderMode = None,
) -> "DrivingEnv":
    """Drive recordings: a Parquet file or a folder of them, the shipped sample by default."""
    from drive_envs.environment import DrivingEnv

    batch = make_reprojective_vector(1, segments, split, config, sampler)
    return DrivingEnv(batch.world, batch.sampler, batch.config, render_mode)


def make_reprojective_vector(
    num_envs: int = 1,
    segments: str | Path | None = None,
    split: Literal["train", "held_out"] | None = None,
    config: "EnvConfig | None" = None,
    sampler: "SamplerConfig | None" = None,
) -> "DrivingVectorEnv":
    """Drive a batch of scenes from recordings; see `make_reprojective`."""
    from drive_envs.environment import DrivingVectorEnv, EnvConfig
    from drive_envs.reprojective import Reprojective, ReprojectiveConfig
    from drive_envs.scenes import SceneSampler
    from drive_envs.segments import open_dataset, sample_path

    config = config or EnvConfig()
    dataset = open_dataset(Path(segments) if segments else sample_path(), split)
    world = Reprojective(ReprojectiveConfig(width=config.width, height=config.height))
    return DrivingVectorEnv(world, SceneSampler(dataset, sampler), config, num_envs)


def make_metadrive(
    config: "EnvConfig | None" = None, render_mode: RenderMode = None
) -> "DrivingEnv":
    """Drive in MetaDrive, on a curve between two straights, another one after every reset."""
    from drive_envs.environment import DrivingEnv, EnvConfig
    from drive_envs.metadrive_world import MetaDrive

    config = config or EnvConfig()
    world = MetaDrive(config.width, config.height)
    return DrivingEnv(world, draw_road_scene, config, render_mode)


def draw_road_scene(rng: "np.random.Generator") -> "Scene":
    """Draw a curve of 60 to 300 m radius, either way, and a drive of 10 s into and through it."""
    from drive_envs.metadrive_world import RoadScene, scenario_path
    from drive_envs.path import NUM_PAST
    from drive_envs.plan import STEP
    from drive_envs.roads import Block, Road
    from drive_envs.scenes import Scene

    radius = float(rng.uniform(60, 300))
    speed = min(sqrt(1.5 * radius), 18.0)
    curve = Block(
        kind="C",
        length=100.0,
        radius=radius,
        angle_deg=float(rng.uniform(30, 60)),
        turn="left" if rng.random() < 0.5 else "right",
    )
    road = Road(blocks=(Block(kind="S", length=80.0), curve, Block(kind="S", length=100.0)))
    lane = int(rng.integers(road.lane_count))
    path = scenario_path(road, lane, 50.0, speed, ROAD_STEPS * STEP)
    return Scene(
        path=path,
        start=NUM_PAST,
        num_steps=ROAD_STEPS,
        source=RoadScene(road=road, lane=lane),
        lateral_offset=float(rng.uniform(-1, 1)),
        heading_offset=float(rng.uniform(-0.05, 0.05)),
    )


gymnasium.register(
    id="drive/Reprojective-v0",
    entry_point="drive_envs.registration:make_reprojective",
    vector_entry_point="drive_envs.registration:make_reprojective_vector",
)
gymnasium.register(id="drive/MetaDrive-v0", entry_point="drive_envs.registration:make_metadrive")
