from math import radians

import numpy as np
import pytest
import torch

from drive_envs.camera import cameras, unproject
from drive_envs.conditions import AIR, CLEAR, GAMMA, Conditions, road_pattern
from drive_envs.vehicle import VehicleConfig, preset

CAMERA = cameras(128, 64)["wide"]
HERE = np.array([10.0, -3.0, 0.4])


def flat_road():
    """A grey picture of a flat road under the sky, and its depth."""
    rows = np.arange(64) + 0.5 - CAMERA.center_v
    depth = np.where(rows > 0, CAMERA.focal * CAMERA.mount_height / rows.clip(1e-6), np.inf)
    return np.full((3, 64, 128), 128, np.uint8), np.repeat(depth[:, None], 128, 1)


def seen(camera=CAMERA, pose=HERE, step=0, **conditions):
    image, depth = flat_road()
    return Conditions(**conditions).seen(image, depth, camera, pose, step)


def light(picture):
    return (picture / 255) ** GAMMA


def test_a_clear_day_changes_nothing():
    image, depth = flat_road()
    assert CLEAR.seen(image, depth, CAMERA, HERE, 0) is image
    assert CLEAR.mounted(CAMERA) == CAMERA
    assert CLEAR.vehicle(preset("realistic")) == preset("realistic")


def test_light_is_a_factor_and_at_night_the_headlights_light_what_is_near():
    half = light(seen(light=0.5)) / light(flat_road()[0])
    np.testing.assert_allclose(half, 0.5, atol=0.02)
    night = light(seen(light=0.02))[0].mean(axis=1) / light(128)
    assert night[-1] > 0.7
    assert night[:20].max() < 0.05
    assert (np.diff(night[36:]) > -1e-3).all()


def test_fog_hides_by_distance():
    fog = light(seen(fog=0.05))[0]
    _, depth = flat_road()
    straight = depth[:, 64]
    clear = np.exp(-0.05 * straight * np.hypot(1, (np.arange(64) + 0.5 - CAMERA.center_v) / 57))
    wanted = light(128) * clear + AIR * (1 - clear)
    near = straight < 60
    np.testing.assert_allclose(fog[near, 64], wanted[near], atol=0.03)
    np.testing.assert_allclose(fog[:30], AIR, atol=0.01)


def test_rain_falls_and_is_another_on_every_step():
    first, again, later = (seen(rain=1.0, step=step).astype(int) for step in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - later).mean() > 1
    sky = first[0, :30]
    along = np.corrcoef(sky[1:].ravel(), sky[:-1].ravel())[0, 1]
    across = np.corrcoef(sky[:, 1:].ravel(), sky[:, :-1].ravel())[0, 1]
    assert along > 0.6
    assert abs(across) < 0.1


def test_a_road_pattern_lies_still_in_the_world():
    _, depth = flat_road()
    picture = seen(texture=0.3)
    assert picture[:, 45:].std() > 5
    assert (picture[:, :30] == 128).all()
    points = unproject(CAMERA, torch.from_numpy(depth)).numpy()
    places = [HERE + np.array([50.0 * i, 30, i]) for i in range(40)]
    spread = np.std([road_pattern(points, CAMERA, place) for place in places], axis=(0, 2))
    assert 0.8 < spread[62] < 1.2
    assert spread[39] < 0.3  # 30 m away, where a pixel is 9 m long
    ahead = HERE + np.array([np.cos(0.4), np.sin(0.4), 0])
    moved = points.copy()
    moved[..., 2] += 1.0  # the same places, seen from a metre before
    there = road_pattern(points, CAMERA, ahead)[45:]
    same, other = (road_pattern(seen, CAMERA, HERE)[45:] for seen in (moved, points))
    assert np.corrcoef(same.ravel(), there.ravel())[0, 1] > 0.98
    assert np.corrcoef(other.ravel(), there.ravel())[0, 1] < 0.9


def test_the_camera_and_the_car_are_otherwise():
    mounted = Conditions(camera_height=0.2, camera_pitch=1.0, focal=1.1).mounted(CAMERA)
    assert mounted.mount_height == pytest.approx(CAMERA.mount_height + 0.2)
    assert mounted.pitch == pytest.approx(radians(1))
    assert mounted.focal == pytest.approx(1.1 * CAMERA.focal)
    car = Conditions(latency=0.3, gain=0.8, wind=-0.3).vehicle(VehicleConfig(lag=(0.2, 0.2)))
    assert car == VehicleConfig(
        delay=(0.3, 0.3), lag=(0.2, 0.2), gain=(0.8, 0.8), wind=(-0.3, -0.3)
    )


@pytest.mark.parametrize(
    ("strength", "words"),
    [
        ({"light": 0.0}, "light must be positive"),
        ({"fog": -0.1}, "fog must be 0 or more"),
        ({"focal": -1.0}, "focal must be positive"),
    ],
)
def test_what_cannot_be_is_refused(strength, words):
    with pytest.raises(ValueError, match=words):
        Conditions(**strength)
