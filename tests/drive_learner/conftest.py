import numpy as np
import pytest
import torch

from drive_actors.policy import Policy, PolicyConfig
from drive_envs.camera import cameras
from drive_envs.frames import encode_image
from drive_envs.protocol import NUM_CONTEXT, Rollout
from drive_envs.segment import Segment
from drive_envs.segments import open_dataset, write_segments
from drive_learner.local_cluster import local_cluster

WIDTH, HEIGHT = 32, 16

TINY = PolicyConfig(
    width=WIDTH,
    height=HEIGHT,
    channels=(4, 8, 8),
    num_features=16,
    bottleneck_bits=20.0,
    model_dim=16,
    num_layers=1,
    num_heads=2,
    num_hypotheses=2,
)


def random_rollout(num_steps=12, lengths=(12, 7, 3), seed=0, version=0, actor=0):
    """Random arrays that fit together: scene b is over after `lengths[b]` steps."""
    generator = np.random.default_rng(seed)
    frames, scenes = NUM_CONTEXT + num_steps + 1, len(lengths)
    active = np.arange(num_steps)[:, None] < np.array(lengths)
    ends = active & ~np.roll(active, -1, axis=0)
    ends[-1] = active[-1]
    is_terminated = generator.random(scenes) < 0.5

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    def image():
        return generator.integers(0, 256, (frames, scenes, 3, HEIGHT, WIDTH), dtype=np.uint8)

    return Rollout(
        observation={
            "narrow": image(),
            "wide": image(),
            "speed": 10 + normal(frames, scenes, 1),
            "desire": np.eye(3, dtype=np.float32)[generator.integers(0, 3, (frames, scenes))],
            "last_action": 0.01 * normal(frames, scenes, 2),
        },
        action=0.01 * normal(num_steps, scenes, 2),
        action_normalized=normal(num_steps, scenes, 2),
        log_probs=normal(num_steps, scenes, 2),
        reward=normal(num_steps, scenes) * active,
        terminated=ends & is_terminated,
        truncated=ends & ~is_terminated,
        active=active,
        teacher_plan=normal(num_steps, scenes, 33, 15),
        teacher_plan_valid=generator.random((num_steps, scenes, 33)) < 0.8,
        teacher_action=0.01 * normal(num_steps, scenes, 2),
        lateral_error=normal(num_steps, scenes),
        recording=np.arange(scenes) + 10 * seed,
        noise_seed=seed,
        policy_version=version,
        actor=actor,
        seconds={"total": 1.0, "env": 0.5},
    )


@pytest.fixture(name="random_rollout")
def random_rollout_fixture():
    return random_rollout


@pytest.fixture
def tiny_policy():
    torch.manual_seed(0)
    return Policy(TINY)


def arc_segment(name="arc", num_frames=40, radius=50.0, speed=10.0, seed=0):
    """A drive at constant speed on a circle to the left, its images noise."""
    generator = np.random.default_rng(seed)
    time = 0.2 * np.arange(num_frames)
    yaw = speed * time / radius
    zero = np.zeros_like(yaw)
    views = cameras(WIDTH, HEIGHT)
    return Segment(
        name=name,
        split="held_out",
        cameras=views,
        time=time,
        position=radius * np.stack([np.sin(yaw), 1 - np.cos(yaw), zero], -1),
        quaternion=np.stack([zero, zero, np.sin(yaw / 2), np.cos(yaw / 2)], -1),
        velocity=speed * np.stack([np.cos(yaw), np.sin(yaw), zero], -1),
        desire=np.zeros(num_frames, np.int8),
        valid=np.ones(num_frames, bool),
        images={
            camera: [
                encode_image(generator.integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8))
                for _ in range(num_frames)
            ]
            for camera in views
        },
        depths={camera: [None] * num_frames for camera in views},
    )


@pytest.fixture(name="arc_segment")
def arc_segment_fixture():
    return arc_segment


@pytest.fixture
def dataset_of(tmp_path):
    def write(*segments):
        write_segments(tmp_path / "drives.parquet", segments)
        return open_dataset(tmp_path / "drives.parquet")

    return write


@pytest.fixture(scope="module")
def local_ray():
    with local_cluster(num_cpus=2, object_store_mb=200):
        yield
