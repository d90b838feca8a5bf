"""A tiny real world to drive in: a straight road, drawn as stripes that stay where they are."""

import numpy as np
import pytest
import torch

from drive_actors.policy import Policy, PolicyConfig
from drive_envs.camera import cameras
from drive_envs.environment import DrivingVectorEnv, EnvConfig
from drive_envs.path import RecordedPath
from drive_envs.plan import STEP
from drive_envs.scenes import Scene
from drive_envs.vehicle import preset

WIDTH, HEIGHT = 32, 16

TINY = PolicyConfig(
    width=WIDTH,
    height=HEIGHT,
    channels=(4, 8, 8),
    num_features=32,
    bottleneck_bits=40.0,
    model_dim=16,
    num_heads=2,
    num_hypotheses=2,
)


class Stripes:
    """Shows how far left of the road's middle a pose is, and which way it looks."""

    def __init__(self):
        self.cameras = cameras(WIDTH, HEIGHT)

    def reset(self, scenes):
        pass

    def render(self, poses, step, active):
        columns = torch.arange(WIDTH) / WIDTH
        phase = poses[:, 1, None] + 5 * poses[:, 2, None] + columns
        row = (128 + 100 * (6 * phase).sin()).to(torch.uint8).numpy()
        image = np.repeat(row[:, None, None], 3, axis=1).repeat(HEIGHT, axis=2)
        return {"narrow": image, "wide": image[..., ::-1].copy()}


def straight_scene(rng):
    """Draw a drive along x at 10 m/s, 3 to 6 steps long, beginning up to 1 m off."""
    time = torch.arange(120, dtype=torch.float64) * STEP
    poses = torch.stack([10 * time, 0 * time, 0 * time], dim=-1)
    none = torch.zeros(len(time), dtype=torch.int64)
    path = RecordedPath(time=time, poses=poses, speed=torch.full_like(time, 10.0), desire=none)
    return Scene(
        path=path,
        start=20,
        num_steps=int(rng.integers(3, 7)),
        source=None,
        lateral_offset=float(rng.uniform(-1, 1)),
    )


def stripes_env(num_envs=4, max_lateral_error=4.0):
    config = EnvConfig(
        width=WIDTH,
        height=HEIGHT,
        vehicle=preset("plain"),
        max_lateral_error=max_lateral_error,
    )
    return DrivingVectorEnv(Stripes(), straight_scene, config, num_envs)


@pytest.fixture(name="stripes_env")
def stripes_env_fixture():
    return stripes_env


@pytest.fixture
def tiny_policy():
    torch.manual_seed(0)
    return Policy(TINY).eval()
