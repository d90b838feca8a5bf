"""Small recordings of a flat, striped world, seen from a straight drive along x."""

import numpy as np
import pytest

from drive_envs.camera import cameras
from drive_envs.frames import encode_depth, encode_image
from drive_envs.plan import STEP
from drive_envs.segments import Segment, write_segments

WIDTH, HEIGHT, SPEED = 32, 16, 10.0

# What makes a training run or a bench tiny: images as above, a small network, few scenes.
TINY = (
    "policy={width: 32, height: 16, channels: [4, 8, 8], num_features: 32, bottleneck_bits: 40,"
    " model_dim: 16, num_heads: 2, num_hypotheses: 2}",
    "env={width: 32, height: 16}",
    "world={width: 32, height: 16, cache_mb: 16}",
    "num_scenes=2",
    "rollout_steps=6",
    "sampler.num_steps=[3, 6]",
    "queue.num_sequences=2",
    "queue.sequence_length=3",
    "queue.min_minibatches=1",
)


def flat_segment(name, split="train", num_frames=40, has_depth=True):
    """Drive over a plane with stripes across the road, whose depth is known."""
    views = cameras(WIDTH, HEIGHT)
    x = SPEED * STEP * np.arange(num_frames)
    images, depths = {}, {}
    for camera, optics in views.items():
        rows = np.arange(HEIGHT) + 0.5 - optics.center_v
        ground = optics.focal * optics.mount_height / rows.clip(1e-6)
        depth = np.where(rows > 0, ground, np.inf)
        depth_map = np.repeat(depth[:, None], WIDTH, axis=1).astype(np.float32)
        images[camera], depths[camera] = [], []
        for ego in x:
            stripes = np.where(rows > 0, np.sin(0.3 * (ground + ego)), 0.0)
            grey = np.repeat((128 + 100 * stripes)[:, None], WIDTH, axis=1).astype(np.uint8)
            images[camera].append(encode_image(np.stack([grey] * 3)))
            depths[camera].append(encode_depth(depth_map) if has_depth else None)
    return Segment(
        name=name,
        split=split,
        cameras=views,
        time=STEP * np.arange(num_frames),
        position=np.stack([x, 0 * x, 0 * x], axis=-1),
        quaternion=np.tile([0.0, 0.0, 0.0, 1.0], (num_frames, 1)),
        velocity=np.tile([SPEED, 0.0, 0.0], (num_frames, 1)),
        desire=np.zeros(num_frames, np.int8),
        valid=np.ones(num_frames, bool),
        images=images,
        depths=depths,
    )


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Return a Parquet file of two segments to learn from and one held out."""
    path = tmp_path_factory.mktemp("recordings") / "flat.parquet"
    segments = [flat_segment("a"), flat_segment("b"), flat_segment("c", "held_out", 120)]
    write_segments(path, segments)
    return path


@pytest.fixture(scope="session")
def tiny():
    """Return the overrides that make a training run tiny."""
    return TINY
