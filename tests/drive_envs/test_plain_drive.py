import json

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drive_envs.image_files import picture_files
from drive_envs.plain_drive import Plain, plain_folders, plain_recording
from drive_envs.recording import Fault, RecordingError


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


def test_pictures_are_in_the_order_of_their_numbers(tmp_path):
    names = ["a1.png", "a01.png", "a2.jpg", "a10.png", "b.png", "b1-2.PNG", "b1-10.png"]
    for name in [*sorted(names), "notes.txt"]:
        (tmp_path / name).touch()
    assert [path.name for path in picture_files(tmp_path)] == [
        *("a01.png", "a1.png", "a2.jpg", "a10.png"),
        *("b1-2.PNG", "b1-10.png", "b.png"),
    ]


def as_jpegs(drive):
    """Put JPEGs in the place of a drive's pictures; return them."""
    for path in picture_files(drive / "images"):
        pixels = cv2.imread(str(path))
        assert pixels is not None
        cv2.imwrite(str(path.with_suffix(".jpg")), pixels)
        path.unlink()
    return picture_files(drive / "images")


@pytest.mark.parametrize("frame", [0, 3])
@pytest.mark.parametrize("kept", [0.03, 0.5, 0.99])
def test_a_jpeg_that_ends_too_soon_is_damaged(drive, frame, kept):
    files = as_jpegs(drive)
    whole = files[frame].read_bytes()
    files[frame].write_bytes(whole[: int(kept * len(whole))])
    recording = opened(drive)
    assert (recording.optics.width, recording.optics.height) == (194, 146)
    found = list(recording.images(range(6)))
    assert [str(item) for item in found if isinstance(item, Fault)] == [
        f"{files[frame]}: frame {frame}: damaged image"
    ]
    # What cameras leave behind a picture is no damage.
    files[frame].write_bytes(whole + bytes(100))
    assert not any(isinstance(item, Fault) for item in opened(drive).images(range(6)))


def test_a_drive_without_any_whole_picture_is_named(drive):
    for path in as_jpegs(drive):
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        RecordingError, match=r"0000.jpg: damaged image \(and no other one of 6 decodes\)"
    ):
        opened(drive)


def as_json(drive, times, matrices, **columns):
    """Write poses as JSON and read them back."""
    rows = zip(times, matrices, *columns.values(), strict=True)
    keys = ("time", "world_from_camera", *columns)
    frames = [dict(zip(keys, row, strict=True)) for row in rows]
    (drive / "poses.json").write_text(json.dumps({"frames": frames}))
    return opened(drive, poses="poses.json")


@pytest.mark.parametrize("shape", [(4, 4), (3, 4), (16,), (12,)])
def test_matrices_may_be_flat_and_lack_their_last_row(real, drive, shape):
    truth = real.Drive(6)
    numbers = truth.camera.reshape(6, 16)[:, : np.prod(shape)].reshape(6, *shape)
    found = as_json(drive, truth.time.tolist(), numbers.tolist())
    np.testing.assert_allclose(found.world_from_camera, truth.camera)
    camera = json.loads((drive / "camera.json").read_text())
    offset = np.eye(4)
    offset[:3, 3] = [0.5, 0.0, 1.0]
    camera["body_from_camera"] = offset.ravel()[: np.prod(shape)].reshape(shape).tolist()
    (drive / "camera.json").write_text(json.dumps(camera))
    found = opened(drive, poses="poses.json")
    np.testing.assert_allclose(found.world_from_camera, truth.camera @ offset)


def test_matrices_that_are_none_are_named(real, drive):
    truth = real.Drive(6)
    columns = truth.camera.transpose(0, 2, 1).reshape(6, 16)
    with pytest.raises(RecordingError, match=r"frame 0 is damaged \(the matrix ends with .*row"):
        as_json(drive, truth.time.tolist(), columns.tolist())
    with pytest.raises(RecordingError, match=r"a matrix of 9 numbers, not 4 x 4, 3 x 4, 16 or 12"):
        as_json(drive, truth.time.tolist(), columns[:, :9].tolist())
    with pytest.raises(RecordingError, match=r"a matrix of one numbers"):
        as_json(drive, truth.time.tolist(), [1.0] * 6)


def test_times_may_be_dates(real, drive):
    truth = real.Drive(6)
    dates = [f"2024-05-01T10:00:0{second:.2f}" for second in truth.time]
    found = as_json(drive, dates, truth.camera.tolist())
    np.testing.assert_allclose(found.time - found.time[0], truth.time, atol=1e-6)
    zoned = as_json(drive, [f"{date}+02:00" for date in dates], truth.camera.tolist())
    np.testing.assert_allclose(found.time - zoned.time, 7200.0)
    for zone in ("", "Z"):
        times = pa.array([f"{date}{zone}" for date in dates])
        real.write_poses(drive / "poses.csv", times, truth.camera)
        np.testing.assert_allclose(opened(drive).time, found.time, atol=1e-6)


def test_times_that_are_none_are_named(real, drive):
    truth = real.Drive(6)
    real.write_poses(drive / "poses.csv", pa.array(["10:00:00"] * 6), truth.camera)
    with pytest.raises(RecordingError, match=r"column 'time' holds no numbers \(time32\[s\]: "):
        opened(drive)
    with pytest.raises(RecordingError, match=r"frame 0 is damaged \(Invalid isoformat string"):
        as_json(drive, ["noon"] * 6, truth.camera.tolist())


def test_frame_numbers_are_whole_and_known(real, drive):
    truth = real.Drive(6)
    frames = [5.0, 0.0, 3.0, 1.0, 2.0, 4.0]
    found = as_json(drive, truth.time.tolist(), truth.camera.tolist(), frame=frames)
    np.testing.assert_allclose(found.time[np.array(frames, int)], truth.time)
    for frame, said in [
        (None, "empty in row 5"),
        (1.5, "1.5 in row 5; it counts 0 to 5, each once"),
        (6, "6 in row 5; it counts 0 to 5, each once"),
        (2, "2 is there more than once"),
    ]:
        wrong = pa.array([*frames[:5], frame], pa.float64())
        real.write_poses(drive / "poses.csv", truth.time, truth.camera, frame=wrong)
        with pytest.raises(RecordingError, match=rf"poses.csv: column 'frame' is wrong .*{said}"):
            opened(drive)
        with pytest.raises(RecordingError, match=rf"poses.json: column 'frame' is wrong .*{said}"):
            as_json(drive, truth.time.tolist(), truth.camera.tolist(), frame=[*frames[:5], frame])
    with pytest.raises(RecordingError, match=r"a 'frame' is no number .*'first'"):
        as_json(drive, truth.time.tolist(), truth.camera.tolist(), frame=["first"] * 6)


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
