import pytest

from drive_envs.kitti_raw import KittiRaw, kitti_folders, kitti_recording
from drive_envs.recording import Fault, RecordingError


@pytest.fixture
def drive(real, tmp_path):
    """The folder of a short KITTI drive."""
    real.write_kitti(tmp_path, real.Drive(4, rate=10.0, height=1.65))
    (folder,) = kitti_folders(tmp_path)
    return folder


def opened(folder):
    return kitti_recording(KittiRaw(folder=folder), folder)


def test_missing_and_damaged_files_of_a_frame_are_named(drive):
    (drive / "oxts" / "data" / "0000000002.txt").unlink()
    (drive / "image_02" / "data" / "0000000001.png").unlink()
    (drive / "velodyne_points" / "data" / "0000000003.bin").write_bytes(b"123")
    (drive / "velodyne_points" / "data" / "0000000002.bin").unlink()
    recording = opened(drive)
    assert recording.world_from_camera[2, 0, 0] != recording.world_from_camera[2, 0, 0]
    found = [f for f in recording.images([0, 1]) if isinstance(f, Fault)]
    missing = drive / "image_02" / "data" / "0000000001.png"
    assert [str(f) for f in found] == [f"{missing}: frame 1: missing image"]
    assert recording.depth is not None
    for frame, said in ((2, "missing scan"), (3, "damaged scan")):
        scan = recording.depth(frame)
        assert isinstance(scan, Fault)
        path = drive / "velodyne_points" / "data" / f"{frame:010d}.bin"
        assert str(scan) == f"{path}: frame {frame}: {said}"


def test_the_first_picture_may_be_damaged(real, drive):
    (drive / "image_02" / "data" / "0000000000.png").unlink()
    (drive / "image_02" / "data" / "0000000001.png").write_bytes(b"no picture")
    recording = opened(drive)
    assert (recording.optics.width, recording.optics.height) == (real.WIDTH, real.HEIGHT)
    found = [f.cause if isinstance(f, Fault) else None for f in recording.images(range(4))]
    assert found == ["missing image", "damaged image", None, None]
    for path in (drive / "image_02" / "data").iterdir():
        path.unlink()
    with pytest.raises(RecordingError, match="data: no images"):
        opened(drive)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("image_02/timestamps.txt", "yesterday\n", "timestamps.txt: damaged file .line 1"),
        ("oxts/data/0000000001.txt", "1 2 3", "0000000001.txt: damaged packet .3 values, not 30"),
        ("../calib_velo_to_cam.txt", "R: 1 2\n", "damaged calibration .calib_velo_to_cam.txt R"),
        ("../calib_cam_to_cam.txt", None, "calib_cam_to_cam.txt: missing calibration"),
    ],
)
def test_what_cannot_be_read_is_named(drive, name, text, said):
    if text is None:
        (drive / name).unlink()
    else:
        (drive / name).write_text(text)
    with pytest.raises(RecordingError, match=said):
        opened(drive)
