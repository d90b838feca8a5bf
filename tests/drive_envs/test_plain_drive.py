import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drive_envs.plain_drive import Plain, plain_folders, plain_recording
from drive_envs.recording import RecordingError


@pytest.fixture
def drive(real, tmp_path):
    """A plain drive of six frames."""
    return real.write_plain(tmp_path / "mine", real.Drive(6))


def opened(folder, **changes):
    return plain_recording(Plain(folder=folder, **changes), folder)


def test_a_frame_column_says_whose_a_pose_is(real, drive):
    truth = real.Drive(6)
    frames = np.array([5, 0, 3])
    real.write_poses(drive / "poses.csv", truth.time[frames], truth.camera[frames], frame=frames)
    recording = opened(drive)
    assert np.flatnonzero(np.isfinite(recording.time)).tolist() == [0, 3, 5]
    np.testing.assert_allclose(recording.world_from_camera[frames], truth.camera[frames], atol=1e-9)


def test_poses_of_another_body_are_carried_over(real, drive):
    truth = real.Drive(6)
    camera = json.loads((drive / "camera.json").read_text())
    offset = np.eye(4)
    offset[:3, 3] = [0.5, 0.0, 1.0]
    camera["body_from_camera"] = offset.tolist()
    (drive / "camera.json").write_text(json.dumps(camera))
    found = opened(drive, offset=(0.0, 0.25, 0.0)).world_from_camera
    offset[1, 3] = 0.25
    np.testing.assert_allclose(found, truth.camera @ offset, atol=1e-9)


def test_a_world_with_y_down_is_turned_up(real, drive):
    truth = real.Drive(6)
    turn = np.eye(4)
    turn[:3, :3] = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # right, down, forward of x y z
    real.write_poses(drive / "poses.csv", truth.time, turn @ truth.camera)
    found = opened(drive, up="-y").world_from_camera
    np.testing.assert_allclose(found, truth.camera, atol=1e-9)


def test_folders_are_drives_or_hold_them(drive):
    assert plain_folders(Plain(folder=drive)) == [drive]
    assert plain_folders(Plain(folder=drive.parent)) == [drive]
    assert plain_folders(Plain(folder=drive / "images")) == []


def spoil_csv(drive):
    (drive / "poses.csv").write_text("time,x\n0,1\n1,2,3\n")


def spoil_columns(drive):
    pq.write_table(pa.table({"time": [0.0] * 6, "x": [0.0] * 6}), drive / "poses.csv")
    (drive / "poses.csv").write_text("time,x\n" + "0,1\n" * 6)


def spoil_count(drive):
    (drive / "images" / "0005.png").unlink()


def spoil_camera(drive):
    (drive / "camera.json").write_text("{")


def spoil_height(drive):
    camera = json.loads((drive / "camera.json").read_text())
    (drive / "camera.json").write_text(json.dumps({**camera, "height": 12.0}))


def spoil_distortion(drive):
    camera = json.loads((drive / "camera.json").read_text())
    (drive / "camera.json").write_text(json.dumps({**camera, "distortion": [0.1, 0.0]}))


def spoil_size(drive):
    camera = json.loads((drive / "camera.json").read_text())
    (drive / "camera.json").write_text(json.dumps({**camera, "image_size": [640, 480]}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_csv, r"poses.csv: damaged poses \(CSV parse error"),
        (spoil_columns, r"poses.csv: no column y, z \(it has time, x\)"),
        (spoil_count, r"poses and frames differ in number \(6 poses, 5 frames"),
        (spoil_camera, r"camera.json: damaged JSON"),
        (spoil_height, r"impossible camera \(a camera's height is 12.0 m"),
        (spoil_distortion, r"the images are distorted \(undistort them before\)"),
        (spoil_size, r"of another size \(of \[640, 480\] pixels, the images are \[194, 146\]\)"),
    ],
)
def test_what_is_wrong_is_named(drive, spoil, said):
    spoil(drive)
    with pytest.raises(RecordingError, match=said):
        opened(drive)


def test_a_json_names_what_it_lacks(real, drive):
    truth = real.Drive(6)
    real.write_poses(drive / "poses.json", truth.time, truth.camera)
    with pytest.raises(
        RecordingError, match=r"frame 0 has no 'time' \(it has t, pose; source.time"
    ):
        opened(drive, poses="poses.json")
    (drive / "poses.json").write_text('{"frames": [{"t": 0, "pose": [[1, 2]]}]}')
    with pytest.raises(RecordingError, match="frame 0 is damaged"):
        opened(drive, poses="poses.json", time="t", matrix="pose")
