import numpy as np
import pytest

from drive_envs.comma2k19 import Comma2k19, comma_folders, comma_recording
from drive_envs.recording import RecordingError


@pytest.fixture
def minute(real, tmp_path):
    """The folder of a short minute."""
    return real.write_comma(tmp_path / "route" / "7", real.Drive(12))


def opened(folder):
    return comma_recording(Comma2k19(folder=folder), folder)


def test_a_minute_is_read(real, minute):
    recording = opened(minute)
    truth = real.Drive(12)
    assert comma_folders(minute.parent.parent) == [minute]
    assert (recording.name, len(recording)) == ("route-7", 12)
    relative = np.linalg.inv(recording.world_from_camera[0]) @ recording.world_from_camera
    wanted = np.linalg.inv(truth.camera[0]) @ truth.camera
    np.testing.assert_allclose(relative, wanted, atol=1e-6)
    # East, north, up: the road of the test is level, and up is up.
    np.testing.assert_allclose(
        recording.world_from_camera[:, 2, :3], truth.camera[:, 2, :3], atol=1e-6
    )
    assert recording.car_speed == pytest.approx(np.full(12, real.SPEED))


def test_a_pose_that_is_not_there_is_unknown(real, minute):
    path = minute / "global_pose" / "frame_positions"
    position = np.load(path)
    position[4] = 0.0
    position[5] = np.nan
    real.save(path, position)
    known = np.isfinite(opened(minute).world_from_camera).all(axis=(1, 2))
    assert np.flatnonzero(~known).tolist() == [4, 5]


def test_what_cannot_be_read_is_named(real, minute):
    poses = minute / "global_pose"
    real.save(poses / "frame_orientations", np.zeros((11, 4)))
    with pytest.raises(RecordingError, match=r"frame_orientations: damaged file .*\(11, 4\)"):
        opened(minute)
    (poses / "frame_times").write_bytes(b"\x93NUMPY")
    with pytest.raises(RecordingError, match="frame_times: damaged file"):
        opened(minute)
    (poses / "frame_times").unlink()
    with pytest.raises(RecordingError, match="frame_times: missing file"):
        opened(minute)
