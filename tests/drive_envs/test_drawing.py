import io

import numpy as np
import pytest
import torch
from PIL import Image

from drive_envs.camera import cameras
from drive_envs.drawing import BLUE, GREEN, draw_views, moving_image, road_pixels, write_video
from drive_envs.plan import TIMES


def straight_plan(lateral=0.0, speed=10.0):
    plan = np.zeros((33, 15), np.float32)
    plan[:, 0] = speed * TIMES.numpy()
    plan[:, 1] = lateral
    return plan


def is_colour(picture, colour):
    return (np.abs(picture.astype(int) - colour) < 40).all(-1)


def test_road_points_land_where_the_pinhole_says():
    camera = cameras(512, 256)["wide"]
    (u, v), behind = road_pixels(
        camera, torch.tensor([[10.0, 2.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64)
    )
    assert u == pytest.approx(camera.center_u - camera.focal * 2 / 10)
    assert v == pytest.approx(camera.center_v + camera.focal * 1.22 / 10)
    assert behind.isnan().all()


@pytest.mark.parametrize("lateral", [-1.0, 1.0])
def test_plan_and_teacher_are_drawn_on_their_side_of_the_road(lateral):
    grey = np.full((3, 64, 128), 90, np.uint8)
    picture = draw_views(
        {"narrow": grey, "wide": grey},
        plan=straight_plan(lateral),
        teacher=straight_plan(-lateral),
        teacher_valid=np.ones(33, bool),
    )
    assert picture.shape == (256, 1024, 3)
    narrow = picture[:, :512]
    mean_column = [np.nonzero(is_colour(narrow, colour))[1].mean() for colour in (GREEN, BLUE)]
    assert (mean_column[0] < mean_column[1]) == (lateral > 0)


def test_what_is_not_valid_or_not_finite_is_not_drawn():
    grey = {name: np.full((3, 64, 128), 90, np.uint8) for name in ("narrow", "wide")}
    blank = draw_views(grey)
    nothing = draw_views(grey, teacher=straight_plan(), teacher_valid=np.zeros(33, bool))
    np.testing.assert_array_equal(blank, nothing)
    np.testing.assert_array_equal(blank, draw_views(grey, plan=straight_plan() * np.nan))


def test_impossible_videos_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(ValueError, match="even"):
        write_video(tmp_path / "a.mp4", [np.zeros((3, 4, 3), np.uint8)])


def test_a_moving_image_holds_every_picture():
    pictures = [np.full((8, 16, 3), 60 * i, np.uint8) for i in range(4)]
    (value,) = moving_image("tag", pictures).value
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as image:
        assert getattr(image, "n_frames", 1) == 4
        assert image.info["duration"] == 200
        for i in range(4):
            image.seek(i)
            found = np.asarray(image.convert("RGB"), np.int16)
            assert np.abs(found - 60 * i).max() <= 3
    assert (value.tag, value.image.width, value.image.height) == ("tag", 16, 8)
