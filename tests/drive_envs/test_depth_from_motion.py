"""A road between two walls, driven through: what a flat world gets wrong, the next frames tell."""

import cv2
import numpy as np
import pytest
import torch

from drive_envs.camera import wide
from drive_envs.depth_from_motion import Neighbours, drawn_apart, improved
from drive_envs.virtual_view import ground_depth

CAMERA = wide(128, 64)
LEFT, RIGHT, ROOF = 5.0, 7.0, 6.0  # m: where the walls are, and how high


def colour(p, q):
    """A texture that is nowhere like elsewhere."""
    waves = [(1.3, 0.7, 0), (2.9, -1.1, 1), (0.41, 3.7, 2), (-1.7, 2.2, 4)]
    channels = [
        sum(30 * np.sin(a * p + b * q + c + 2 * channel) for a, b, c in waves)
        for channel in range(3)
    ]
    return np.stack(channels, -1) + 128


def seen_from(along):
    """Return image and depth of the world from `along` metres down the road."""
    v, u = np.mgrid[: CAMERA.height, : CAMERA.width] + 0.5
    x, y = (u - CAMERA.center_u) / CAMERA.focal, (v - CAMERA.center_v) / CAMERA.focal
    with np.errstate(divide="ignore"):
        road = np.where(y > 0, CAMERA.mount_height / y, np.inf)
        wall = np.where(x < 0, -LEFT / x, RIGHT / x)
    wall[CAMERA.mount_height - y * wall > ROOF] = np.inf
    depth = np.minimum(road, wall)
    is_sky = ~np.isfinite(depth)
    z = np.where(is_sky, 0, depth)
    on_road = colour(z + along, x * z)
    on_wall = colour(z + along, 3 * y * z + 40 * np.sign(x))
    image = np.where((road < wall)[..., None], on_road, on_wall)
    image[is_sky] = (150, 190, 230)
    return image.clip(0, 255).astype(np.uint8), depth


def neighbours(steps):
    moved = torch.eye(4).repeat(len(steps), 1, 1)
    moved[:, 2, 3] = torch.tensor(steps)
    images = np.stack([seen_from(step)[0] for step in steps]).transpose(0, 3, 1, 2)
    return Neighbours(images=torch.from_numpy(np.ascontiguousarray(images)), this_from_other=moved)


def relative_error(found, true, where):
    return np.abs(found[where] - true[where]) / true[where]


def test_walls_stand_up_from_a_flat_road():
    image, true = seen_from(0.0)
    flat = ground_depth(CAMERA, far=80.0)
    around = neighbours([-2.4, -1.2, 1.2, 2.4])
    found = improved(flat, image, around, CAMERA, road=ground_depth(CAMERA))
    road = np.isclose(true, flat) & (true < 30)
    wall = ~road & (true < 15)
    assert wall.mean() > 0.2
    assert np.median(relative_error(np.minimum(flat, 80), true, wall)) > 0.3
    assert np.median(relative_error(found, true, wall)) < 0.05
    assert np.median(relative_error(found, true, road)) < 0.01
    assert (relative_error(found, true, road) > 0.1).mean() < 0.05
    # Beside a wall the sky shares its windows, and is drawn to it.
    sky = cv2.erode((~np.isfinite(true)).astype(np.uint8), np.ones((9, 9))) > 0
    assert sky.sum() > 400
    assert np.isinf(found[sky]).mean() > 0.99


def test_who_stands_learns_nothing():
    image, _ = seen_from(0.0)
    flat = ground_depth(CAMERA, far=80.0)
    assert improved(flat, image, neighbours([0.0, 0.05]), CAMERA) is flat


def test_measured_and_unknown_depth_stay():
    image, true = seen_from(0.0)
    wrong = np.full_like(true, 25.0)
    wrong[:, :20] = np.nan
    measured = np.zeros(true.shape, bool)
    measured[:, 100:] = True
    around = neighbours([-2.4, -1.2, 1.2, 2.4])
    found = improved(wrong, image, around, CAMERA, measured=measured)
    assert np.isnan(found[:, :20]).all()
    np.testing.assert_allclose(
        found[:, 103:], 25.0, rtol=1e-6
    )  # but for the rim, where outliers are taken out
    middle = (slice(None), slice(20, 100))
    near = np.isfinite(true[middle]) & (true[middle] < 15)
    assert np.median(np.abs(found[middle][near] / true[middle][near] - 1)) < 0.05


@pytest.mark.parametrize("steps", [[1.2], [-1.2]])
def test_one_neighbour_does(steps):
    image, true = seen_from(0.0)
    flat = ground_depth(CAMERA, far=80.0)
    found = improved(flat, image, neighbours(steps), CAMERA, road=ground_depth(CAMERA))
    wall = ~np.isclose(true, flat) & (true < 15)
    wall[:, :12] = wall[:, -12:] = False  # what leaves the view
    assert np.median(relative_error(found, true, wall)) < 0.08


def test_edges_are_drawn_apart_and_slopes_are_not():
    step = np.full((9, 12), 0.02, np.float32)
    step[:, 5], step[:, 6:] = 0.05, 0.1
    np.testing.assert_array_equal(np.unique(drawn_apart(step)), np.array([0.02, 0.1], np.float32))
    road = np.repeat(np.arange(1, 13, dtype=np.float32)[:, None] * 0.01, 9, axis=1)
    np.testing.assert_allclose(drawn_apart(road)[1:-1], road[1:-1], rtol=1e-6)
    lone = np.full((9, 9), 0.02, np.float32)
    lone[4, 4] = 0.3
    assert (drawn_apart(lone) == np.float32(0.02)).all()
