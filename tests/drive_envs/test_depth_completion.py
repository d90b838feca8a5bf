from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.interpolate import NearestNDInterpolator

from drive_envs.depth_completion import Completion, completed, sky_of, without_hidden

KITTI = Path("/work/shared/data/kitti/drive_0005")
SHAPE = (40, 60)


def scene():
    """Return true depth and image of a road, a wall and a box in front of it."""
    v, u = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    depth = np.where(v > 20, 100 / np.maximum(v - 18, 1), 50.0)
    image = np.full((*SHAPE, 3), 90, np.uint8)
    image[21:] = 60
    box = (np.abs(u - 30) < 8) & (v > 12) & (v < 30)
    depth[box], image[box] = 8.0, (200, 40, 40)
    return depth, image


def thinned(depth, rng, share=0.15):
    return np.where(rng.random(depth.shape) < share, depth, np.nan)


def test_planes_and_edges_are_found_again():
    depth, image = scene()
    sparse = thinned(depth, np.random.default_rng(0))
    found = completed(sparse, image, 18.0, Completion(sky_level=256))
    error = np.abs(found - depth) / depth
    assert np.isfinite(found).all()
    assert np.median(error) < 0.01
    assert (error > 0.1).mean() < 0.08
    # The image says where the box ends: without its edges more pixels are wrong.
    blind = completed(sparse, np.full_like(image, 90), 18.0, Completion(sky_level=256))
    assert (np.abs(blind - depth) / depth > 0.1).mean() > 1.3 * (error > 0.1).mean()


def test_points_seen_past_an_obstacle_are_left_out():
    sparse = np.full((9, 9), np.nan)
    sparse[4, [2, 3, 5, 6]] = 10.0
    sparse[4, 4] = 40.0
    sparse[8, 8] = 40.0
    left = without_hidden(sparse)
    assert np.isnan(left[4, 4])
    assert left[8, 8] == 40.0
    assert np.isfinite(left).sum() == 5


def test_sky_is_bright_and_reaches_the_top_away_from_points():
    image = np.full((*SHAPE, 3), 60, np.uint8)
    image[:12, :20] = (180, 200, 240)
    image[:12, 40:] = (180, 200, 240)
    image[5:9, 28:32] = 250  # a bright window
    known = np.zeros(SHAPE, bool)
    known[:12:3, 40:] = True  # a bright wall that the lidar sees
    sky = sky_of(image, known, 18.0, 200)
    assert sky[:12, :20].all()
    assert not sky[:, 20:].any()


def test_without_a_point_nothing_is_known():
    nothing = np.full(SHAPE, np.nan)
    image = np.zeros((*SHAPE, 3), np.uint8)
    assert np.isnan(completed(nothing, image, 18.0, Completion())).all()
    with pytest.raises(ValueError, match=r"depth.edge must be positive, got 0"):
        Completion(edge=0.0)


@pytest.mark.slow
@pytest.mark.skipif(not KITTI.exists(), reason=f"real lidar: {KITTI} is not there")
def test_held_out_points_of_a_real_lidar_are_foretold_better_than_by_the_nearest_point():
    """Whole rows are held out: a lidar leaves rows, not pixels, between its points."""
    errors = {"nearest": [], "completed": []}
    for frame in (0, 80, 150):
        image = cv2.imread(str(KITTI / "image_02" / f"{frame:04d}.webp"))
        code = cv2.imread(str(KITTI / "depth_02" / f"{frame:04d}.png"), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert code is not None
        image = np.ascontiguousarray(image[30:, 100:300, ::-1])
        code = code[30:, 100:300]
        sparse = without_hidden(np.where(code > 0, code / 256, np.nan))
        held = np.isfinite(sparse) & (np.arange(len(sparse)) % 4 == 0)[:, None]
        given = np.where(held, np.nan, sparse)
        known = np.nonzero(np.isfinite(given))
        nearest = NearestNDInterpolator(np.stack(known, -1), given[known])
        found = completed(given, image, 25.0, Completion())
        for name, value in (
            ("nearest", nearest(np.stack(np.nonzero(held), -1))),
            ("completed", found[held]),
        ):
            relative = np.abs(value - sparse[held]) / sparse[held]
            errors[name].append(np.minimum(relative, 1).mean())
    assert np.mean(errors["completed"]) < 0.8 * np.mean(errors["nearest"])
    assert np.mean(errors["completed"]) < 0.05
