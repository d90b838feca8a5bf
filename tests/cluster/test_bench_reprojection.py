import json
import subprocess
import sys

import cv2
import pytest
import torch

from cluster.bench_reprojection import (
    ReprojectionBench,
    Views,
    best_time,
    camera_quality,
    speed,
    warp,
    write_picture,
)
from drive_envs.camera import wide
from drive_envs.metadrive_assets import assets_missing

CAMERA = wide(32, 16)


def views(num, count):
    """Random textures on a wall that fills the view, all from the same pose."""
    generator = torch.Generator().manual_seed(0)
    return Views(
        camera=CAMERA,
        image=torch.randint(
            0, 256, (num, count, 3, 16, 32), generator=generator, dtype=torch.uint8
        ),
        depth=torch.full((num, count, 16, 32), 10.0),
        world_from_camera=CAMERA.ego_from_camera.expand(num, count, 4, 4),
    )


def test_an_unmoved_view_is_perfect(tmp_path):
    sources = views(3, 2)
    truth = Views(
        camera=CAMERA,
        image=sources.image[:, :1],
        depth=sources.depth[:, :1],
        world_from_camera=sources.world_from_camera[:, :1],
    )
    quality = camera_quality(CAMERA, sources, {"0 m": truth}, None, tmp_path / "wide")
    for name in ("no warp", "1 source", "2 sources"):
        figures = quality["0 m"][name]
        assert figures == {
            "psnr": float("inf"),
            "psnr_seen": float("inf"),
            "lpips": None,
            "valid": 1,
        }
    assert (tmp_path / "wide" / "0_m.png").is_file()


def test_each_truth_is_warped_from_its_own_place():
    sources = views(3, 1)
    truth = Views(
        camera=CAMERA,
        image=sources.image.expand(3, 2, 3, 16, 32),
        depth=sources.depth.expand(3, 2, 16, 32),
        world_from_camera=sources.world_from_camera.expand(3, 2, 4, 4),
    )
    assert warp(CAMERA, sources, truth, 1).image.equal(truth.image.flatten(0, 1))


def test_pictures_are_rgb_below_each_other(tmp_path):
    rows = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    rows[1, 0] = 255
    write_picture(tmp_path / "rows.png", rows)
    picture = cv2.imread(str(tmp_path / "rows.png"))
    assert picture is not None
    assert picture.shape == (16, 12, 3)
    assert (picture[:8] == 0).all()
    assert (picture[8:] == [0, 0, 255]).all(), "red, in OpenCV's order"


def test_speed_is_never_below_its_bound():
    figures = speed(CAMERA, views(2, 2), 2, bandwidth=1e11)
    assert figures["ms_2"] > figures["bound_ms_2"] > 0
    assert best_time(lambda: sum(range(10_000)), num_runs=2) > 0


def test_neighbours_off_the_road_are_refused():
    with pytest.raises(ValueError, match=r"90\.0 m back.*lower neighbours or speed"):
        ReprojectionBench(neighbours=(9.0,), speed=10.0)


@pytest.mark.slow
@pytest.mark.skipif(assets_missing(), reason="MetaDrive's assets: run cluster/setup.sh")
def test_the_warp_is_near_what_metadrive_draws(tmp_path):
    # In a process of its own: MetaDrive allows one engine a process.
    code = (
        "import json, sys; from pathlib import Path; "
        "from cluster.bench_reprojection import ReprojectionBench, draw, camera_quality; "
        "from drive_envs.camera import cameras; "
        "config = ReprojectionBench(width=128, height=64, lateral=(1.0,), yaw_deg=(3.0,)); "
        "optics = cameras(128, 64); sources, truths = draw(config); "
        "quality = {name: camera_quality(camera, sources[name], truths[name], None, "
        "Path(sys.argv[1]) / name) for name, camera in optics.items()}; "
        "print(json.dumps(quality))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    quality = json.loads(done.stdout.splitlines()[-1])
    for camera, least in (("narrow", 30.0), ("wide", 32.0)):
        for title in ("1 m", "3 deg"):
            figures = quality[camera][title]
            assert figures["1 source"]["psnr_seen"] > least
            assert figures["1 source"]["psnr"] > figures["no warp"]["psnr"] + 6
            assert figures["3 sources"]["psnr"] > figures["1 source"]["psnr"] - 0.5
            assert figures["3 sources"]["valid"] > 0.95
        assert (tmp_path / camera / "1_m.png").is_file()
