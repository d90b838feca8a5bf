"""The numbers of the pictures, and against MetaDrive itself: cars are where they are said to be."""

import numpy as np
import pytest
import torch

from cluster.traffic_scenes import (
    CarPicturesConfig,
    can_be_seen,
    car_samples,
    relative,
    traffic_scenes,
)
from drive_envs.branches import MANOEUVRES, BranchesConfig
from drive_envs.camera import cameras
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModelConfig
from world_model.tokenizer import Tokenizer

MODEL = WorldModelConfig(width=64, height=32, latent_channels=4, num_history=2)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    config = AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)
    return Tokenizer(config).eval()


def test_places_are_seen_from_the_car():
    pose = np.array([10.0, 0.0, np.pi / 2])
    places = np.array([[9.0, 20.0, 0.0], [np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(relative(pose, places), [[20, 1], [np.nan, np.nan]], atol=1e-9)


def test_who_is_beside_behind_or_far_away_is_not_made_out():
    places = np.array([[20.0, 1.0], [2.0, 3.0], [-20.0, 0.0], [80.0, 0.0], [np.nan, np.nan]])
    assert can_be_seen(places).tolist() == [True, False, False, False, False]


@pytest.mark.slow
def test_cars_are_drawn_where_they_are_and_drawn_once(tokenizer, tmp_path):
    config = CarPicturesConfig(num_roads=3, frames_per_road=10)
    branches = BranchesConfig()
    train, held_out = car_samples(config, branches, MODEL, tokenizer, tmp_path)
    assert len(train.places) == 20
    assert len(held_out.places) == 10
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert len(files) == 3
    again, _ = car_samples(config, branches, MODEL, tokenizer, tmp_path)
    torch.testing.assert_close(again.images, train.images)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    # Where a car is said to be, pixels are unlike those of the road beside it.
    camera = cameras(MODEL.width, MODEL.height)["narrow"]
    loaded = [dict(np.load(path)) for path in sorted(files)]
    images = np.concatenate([part["images"] for part in loaded])[:, 0].astype(float)
    places = np.concatenate([part["places"] for part in loaded])[:, 0]
    differences, elsewhere = [], []
    for image, (x, y) in zip(images, places, strict=True):
        if not (x < 40 and abs(y / x) < 0.2):
            continue
        column = camera.center_u - camera.focal * y / x
        half = max(1.0, camera.focal * 0.7 / x)
        row = camera.center_v + camera.focal * 0.5 / x  # half a metre below our eyes
        there, left = (image[:, int(row), int(c)] for c in (column, column - 3.5 * half))
        differences.append(np.abs(there - left).max())
        elsewhere.append(np.abs(image[:, int(row), int(column - 4 * half)] - left).max())
    assert len(differences) >= 5
    assert np.median(differences) > 2 * np.median(elsewhere)
    assert np.isnan(places).any()


@pytest.mark.slow
def test_scenes_part_after_the_moment(tokenizer):
    (scene,) = traffic_scenes(1, 8, BranchesConfig(), MODEL, tokenizer)
    assert scene.first == 3
    assert scene.drive.latents.shape[:2] == (len(MANOEUVRES), 3 + 8)
    hold, brake, swerve = scene.images
    torch.testing.assert_close(brake[:4], hold[:4])
    assert (swerve[-1].float() - hold[-1].float()).abs().mean() > 2
    np.testing.assert_allclose(scene.drive.poses[:, :4], scene.drive.poses[:1, :4].repeat(3, 0))
    assert scene.places.shape == (len(MANOEUVRES), 11, 2, 3)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"pictures\.num_roads is 1"):
        CarPicturesConfig(num_roads=1)
