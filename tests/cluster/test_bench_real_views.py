import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster.bench_real_views import bench_real_views
from drive_envs.recording import RecordingError

KITTI = Path(__file__).parents[3] / "shared" / "data" / "kitti" / "drive_0005"


@pytest.mark.slow
@pytest.mark.skipif(not KITTI.is_dir(), reason=f"no real drive at {KITTI}")
@pytest.mark.timeout(400)
def test_the_warp_is_nearer_to_the_truth_than_no_warp(tmp_path):
    figures = bench_real_views(KITTI, tmp_path, None, 50, 1.65)
    for name in ("left_right", "t+1", "t+5"):
        task = figures[name]
        assert task["frames"] >= 3  # one alone may have little to gain
        assert task["psnr"] > task["no warp"]["psnr"] + 3
        assert task["valid"] > task["one source"]["valid"] > 0.8
        assert task["psnr"] > task["lidar"]["psnr"]
        assert task["flat road, motion"]["psnr"] > task["flat road"]["psnr"] + 1
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "depth_1.65").iterdir()}
    assert bench_real_views(KITTI, tmp_path, None, 50, 1.65) == figures
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "depth_1.65").iterdir()}


@pytest.fixture
def folder(tmp_path):
    """A drive of two frames, whole but too short."""
    for name in ("image_02", "image_03", "depth_02"):
        (tmp_path / name).mkdir()
        for row in range(2):
            depth = name.startswith("depth")
            pixels = (
                np.full((12, 40), 2560, np.uint16) if depth else np.zeros((12, 40, 3), np.uint8)
            )
            cv2.imwrite(str(tmp_path / name / f"{row:04d}.png"), pixels)
    matrix = [[20.0, 0, 20, 0], [0, 20, 6, 0], [0, 0, 1, 0]]
    known = {"fx": 20.0, "fy": 20.0, "cx": 20.0, "cy": 6.0, "image_size": [40, 12]}
    known |= {"P_rect_02_scaled": matrix, "P_rect_03_scaled": matrix}
    known["frames"] = [{"T_world_cam0rect": np.eye(4).tolist()}] * 2
    (tmp_path / "poses.json").write_text(json.dumps(known))
    return tmp_path


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: None, "2 frames, which are too few"),
        (lambda folder: (folder / "poses.json").unlink(), "poses.json: missing file"),
        (lambda folder: (folder / "poses.json").write_text("[]"), "not a stereo drive's"),
        (lambda folder: (folder / "image_03" / "0001.png").unlink(), "1 pictures for 2 poses"),
    ],
)
def test_what_is_no_stereo_drive_is_named(folder, break_it, words):
    break_it(folder)
    with pytest.raises(RecordingError, match=words):
        bench_real_views(folder, folder / "out", None, 1, 1.65)
