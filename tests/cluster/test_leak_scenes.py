"""The numbers of the pairs, and against MetaDrive itself: warped and true are of one pose."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.leak_scenes import (
    KINDS,
    LENGTH,
    LeakScenes,
    LeakScenesConfig,
    developed,
    leak_scenes,
    random_places,
)
from drive_envs.geometry import compose, invert
from drive_envs.image_metrics import psnr
from drive_envs.metadrive_assets import assets_missing
from drive_envs.photometry import PhotometryConfig
from drive_envs.scenarios import load_scenarios

CONFIG = LeakScenesConfig(num_roads=2, pairs_per_road=3)


@pytest.fixture(scope="module")
def many():
    return [random_places(replace(CONFIG, pairs_per_road=80), number) for number in range(6)]


def test_the_car_is_displaced_by_the_targets(many):
    for _, places in many:
        apart = compose(invert(torch.from_numpy(places.recorded)), torch.from_numpy(places.car))
        expected = np.pad(places.targets[:, :2], ((0, 0), (1, 0)))
        np.testing.assert_allclose(apart.numpy(), expected, atol=1e-9)
        assert np.abs(places.targets[:, 0]).max() <= 1.3
        assert np.degrees(np.abs(places.targets[:, 1])).max() <= 3.0


def test_the_place_in_the_lane_says_nothing_of_the_displacement(many):
    targets = np.concatenate([places.targets for _, places in many])
    correlation = np.corrcoef(targets.T) - np.eye(3)
    assert np.abs(correlation).max() < 4 / len(targets) ** 0.5
    assert targets[:, 0].std() == pytest.approx(1.3 / 3**0.5, rel=0.1)


def test_older_frames_are_from_behind(many):
    ages = np.concatenate([places.ages for _, places in many])
    assert set(ages) == {0, 1, 2}
    for _, places in many:
        back = compose(invert(torch.from_numpy(places.recorded)), torch.from_numpy(places.older))
        ahead, left, _ = back.T.numpy()
        np.testing.assert_allclose(back[places.ages == 0].numpy(), 0, atol=1e-6)
        metres = -ahead[places.ages > 0] / places.ages[places.ages > 0]
        assert metres.min() > 0.9
        assert metres.max() < 5.1
        assert np.abs(left).max() < 3.0


def test_roads_are_their_own_and_more_of_them_change_no_name(many):
    names = {road.fingerprint() for road, _ in many}
    assert len(names) == len(many)
    assert not names & {scenario.road.fingerprint() for scenario in load_scenarios()}
    assert all(road.length >= LENGTH for road, _ in many)
    assert replace(CONFIG, num_roads=99).folder_name == CONFIG.folder_name
    assert replace(CONFIG, max_age=0).folder_name != CONFIG.folder_name


def test_all_kinds_are_developed_by_the_same_camera():
    image = np.full((5, 3, 8, 16), 100, np.uint8)
    seen = {"narrow": image, "wide": image}
    scenes = LeakScenes(
        images=dict.fromkeys(KINDS, seen), targets=np.zeros((5, 3)), roads=np.arange(5)
    )
    config = PhotometryConfig(exposure=(0.5, 1.5), blur=(0.0, 0.6), noise=(1.0, 4.0))
    found = developed(scenes, config, seed=0)
    np.testing.assert_array_equal(found["warped"]["wide"], found["true"]["wide"])
    assert found["true"]["wide"].std(axis=(1, 2, 3)).min() > 0
    assert found["true"]["wide"].mean(axis=(1, 2, 3)).std() > 5
    neutral = developed(scenes, PhotometryConfig(), seed=0)
    np.testing.assert_array_equal(neutral["true"]["wide"], image)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_roads": 0}, "num_roads must be 1"),
        ({"lane_offset": -1.0}, "lane_offset must not be negative"),
        ({"max_age": -1}, "max_age must not be negative"),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        LeakScenesConfig(**changes)


@pytest.mark.slow
@pytest.mark.skipif(assets_missing(), reason="MetaDrive's assets: run cluster/setup.sh")
@pytest.mark.filterwarnings("ignore")
def test_warped_and_true_pictures_are_of_one_pose_and_drawn_once(tmp_path):
    scenes = leak_scenes(CONFIG, tmp_path)
    assert scenes.roads.tolist() == [0, 0, 0, 1, 1, 1]
    true = scenes.images["true"]
    for camera, least in (("narrow", 26.0), ("wide", 30.0)):
        assert true[camera].shape == (6, 3, 64, 128)
        assert true[camera].std() > 10
        for kind, slack in (("warped", 0.0), ("aged", 5.0)):
            pair = (torch.from_numpy(scenes.images[kind][camera]), torch.from_numpy(true[camera]))
            close = psnr(*pair)
            assert close.mean() > least - slack, (kind, camera, close)
            # The picture of another pose is much farther off.
            assert psnr(pair[0].roll(1, 0), pair[1]).mean() < close.mean() - 5
    files = sorted(tmp_path.rglob("*.npz"))
    written = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    again = leak_scenes(CONFIG, tmp_path)
    np.testing.assert_array_equal(again.images["warped"]["wide"], scenes.images["warped"]["wide"])
    assert files[0].stat().st_mtime_ns == written[0]
    assert not list(tmp_path.rglob("*.part"))
