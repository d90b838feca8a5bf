"""Drives in each layout, written by the test, become what the driver's cameras would have seen."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from drive_envs.comma2k19 import Comma2k19
from drive_envs.depth_completion import Completion
from drive_envs.depth_sources import DepthMaker, GroundPlane, Recorded
from drive_envs.geometry import matrix_from_quaternion
from drive_envs.kitti_raw import KittiRaw
from drive_envs.plain_drive import Plain
from drive_envs.real_rows import Plausible
from drive_envs.real_segments import Cut, Cutter
from drive_envs.real_sources import folders_of, recording_of
from drive_envs.recording import Fault, RecordingError
from drive_envs.virtual_view import ground_depth

CUT = Cut(width=64, height=32, margin=8, seconds=5.0, min_seconds=2.2)


def pieces_of(source, depth, cut=CUT, change=None):
    """Cut the only drive of a source; return its segments and its faults."""
    (folder,) = folders_of(source)
    recording = recording_of(source, folder)
    recording = change(recording) if change else recording
    pieces = list(Cutter(cut, DepthMaker(depth) if depth else None).pieces(recording))
    return [p.segment for p in pieces if p.segment], [p.fault for p in pieces if p.fault]


def poses(segment):
    return matrix_from_quaternion(
        torch.tensor(segment.position), torch.tensor(segment.quaternion)
    ).numpy()


def check_true(real, drive, segment, step, psnr=24.0, depth=0.03):
    """Compare poses, velocities, images and depth with what really happened."""
    source = json.loads(segment.source)
    frames = source["first_frame"] + step * np.arange(len(segment))
    true = drive.ego[frames]
    found = poses(segment)
    relative = np.linalg.inv(found[0]) @ found
    wanted = np.linalg.inv(true[0]) @ true
    np.testing.assert_allclose(relative[:, :3, 3], wanted[:, :3, 3], atol=0.12)
    np.testing.assert_allclose(relative[:, :3, :3], wanted[:, :3, :3], atol=0.01)
    speed = np.linalg.norm(segment.velocity, axis=1)
    np.testing.assert_allclose(speed, np.linalg.norm(drive.velocity[frames], axis=1), atol=0.3)
    for row in (1, len(segment) - 2):
        x, y = true[row, :2, 3]
        pose = (x, y, np.arctan2(true[row, 1, 0], true[row, 0, 0]))
        for name, camera in segment.cameras.items():
            image, metres = real.synthetic.view(camera, pose)
            got = segment.depth(name, row)
            seen = np.isfinite(got) & np.isfinite(metres) & (metres < 40)
            assert seen.mean() > 0.2
            error = np.abs(got[seen] - metres[seen]) / metres[seen]
            assert np.median(error) < depth
            difference = segment.image(name, row)[:, seen].astype(float) - image[:, seen]
            assert 10 * np.log10(255**2 / np.mean(difference**2)) > psnr, name


def test_comma2k19(real, tmp_path):
    drive = real.Drive(110)
    real.write_comma(tmp_path / "route" / "40", drive)
    segments, faults = pieces_of(Comma2k19(folder=tmp_path), GroundPlane())
    assert [len(s) for s in segments] == [25]
    assert [f.cause for f in faults] == ["too short a piece"]
    check_true(real, drive, segments[0], 4)
    mount = json.loads(segments[0].source)["mount"]
    assert (mount["pitch"], mount["yaw"]) == pytest.approx((0.03, -0.02), abs=0.004)


class TooNear(DepthMaker):
    """Takes the road to be at 0.6 of its distance, and stands for any source that errs."""

    def depths(self, views, image, measured):
        return {name: 0.6 * depth for name, depth in super().depths(views, image, measured).items()}


@pytest.mark.parametrize("uses_motion", [False, True])
def test_frames_before_and_after_correct_a_wrong_depth(real, tmp_path, uses_motion):
    drive = real.Drive(110)
    real.write_comma(tmp_path / "route" / "40", drive)
    source = Comma2k19(folder=tmp_path)
    (folder,) = folders_of(source)
    maker = TooNear(GroundPlane(), uses_motion=uses_motion)
    pieces = Cutter(replace(CUT, width=128, height=64, margin=16), maker).pieces(
        recording_of(source, folder)
    )
    (segment,) = (piece.segment for piece in pieces if piece.segment)
    camera, found = segment.cameras["wide"], segment.depth("wide", 10)
    true = ground_depth(camera)
    near = np.isfinite(found) & (true < 15)
    error = np.abs(found[near] / true[near] - 1)
    assert near.mean() > 0.1
    assert (np.median(error) < 0.1) == uses_motion, np.median(error)


def test_kitti_raw_with_its_lidar(real, tmp_path):
    # Its camera hangs 0.43 m above the driver's, so that the views are warped by their depth.
    drive = real.Drive(32, rate=10.0, height=1.65, pitch=0.01, yaw=0.015)
    real.write_kitti(tmp_path, drive)
    source = KittiRaw(folder=tmp_path)
    segments, _ = pieces_of(source, Completion(), replace(CUT, seconds=3.0))
    assert [len(s) for s in segments] == [15]
    # A point may lie anywhere in its pixel, whose row is a twentieth of the distance or more.
    check_true(real, drive, segments[0], 2, psnr=20.0, depth=0.05)
    assert segments[0].cameras["wide"].mount_height == 1.22
    recording = recording_of(source, folders_of(source)[0])
    assert recording.depth is not None
    sparse = recording.depth(3)
    assert not isinstance(sparse, Fault)
    known = np.isfinite(sparse)
    assert 0.02 < known.mean() < 0.2
    np.testing.assert_allclose(sparse[known], drive.depth(3)[known], rtol=0.06)


@pytest.mark.parametrize(
    ("options", "source"),
    [
        ({"video": True}, {"images": "video.mp4"}),
        ({"poses": "poses.parquet", "depth": True}, {"poses": "poses.parquet", "depth": "depth"}),
        ({"poses": "poses.json"}, {"poses": "poses.json", "time": "t", "matrix": "pose"}),
    ],
)
def test_plain_drives(real, tmp_path, options, source):
    drive = real.Drive(60)
    real.write_plain(tmp_path / "mine", drive, **options)
    depth = Recorded() if "depth" in options else GroundPlane()
    plain = Plain(folder=tmp_path, depth_scale=100.0, **source)
    segments, _ = pieces_of(plain, depth, replace(CUT, seconds=3.0))
    assert segments
    check_true(real, drive, segments[0], 4)


def test_what_the_camera_did_not_see_has_no_depth(real, tmp_path):
    drive = real.Drive(60)
    real.write_plain(tmp_path / "mine", drive)
    # Its picture, 194 x 146, shows less to either side than twice the driver's view.
    wider = replace(CUT, margin=64)
    segments, _ = pieces_of(Plain(folder=tmp_path), GroundPlane(), wider)
    wide, narrow = (segments[0].depth(name, 5) for name in ("wide", "narrow"))
    assert np.isnan(wide[:, :10]).all()
    assert np.isnan(wide[:, -10:]).all()
    assert np.isfinite(narrow[-5:, 60:130]).all()
    # The colour is drawn out from the border, so that nothing black frames the picture.
    edge = segments[0].image("wide", 5)[:, :, :3].astype(int)
    assert np.abs(np.diff(edge, axis=2)).max() < 12


def test_without_depth(real, tmp_path):
    real.write_plain(tmp_path / "low", real.Drive(60))
    segments, _ = pieces_of(Plain(folder=tmp_path / "low"), None)
    assert segments[0].depths["wide"][0] is None
    real.write_plain(tmp_path / "high", real.Drive(60, height=1.6))
    with pytest.raises(RecordingError, match=r"hangs higher or lower .*1.6 m, not 1.22 m"):
        pieces_of(Plain(folder=tmp_path / "high"), None)
    with pytest.raises(RecordingError, match=r"images: no measured depth"):
        pieces_of(Plain(folder=tmp_path / "low"), Completion())


@pytest.fixture(scope="module")
def written(real, tmp_path_factory):
    """A plain drive of 8 s on the disk, and its recording."""
    drive = real.Drive(160)
    folder = real.write_plain(tmp_path_factory.mktemp("plain") / "mine", drive)
    return recording_of(Plain(folder=folder), folder)


def causes(recording, cut=CUT):
    pieces = list(Cutter(cut, None).pieces(recording))
    rows = [p.segment for p in pieces if p.segment]
    return rows, [(p.fault.cause, p.fault.first, p.fault.last) for p in pieces if p.fault]


def used(segments):
    """Return every frame number that is in a segment."""
    frames = set()
    for segment in segments:
        source = json.loads(segment.source)
        frames |= set(range(source["first_frame"], source["last_frame"] + 1, 4))
    return frames


def test_missing_poses_cut_the_drive(written):
    pose = written.world_from_camera.copy()
    pose[71:90] = np.nan
    segments, faults = causes(replace(written, world_from_camera=pose))
    assert ("missing pose", 71, 89) in faults
    assert [cause for cause, *_ in faults].count("no frame 0.2 s later") == 1
    assert len(segments) == 2
    assert used(segments).isdisjoint(range(71, 90))


def test_time_that_runs_backwards_cuts_the_drive(written):
    time = written.time.copy()
    time[80:] -= 3.0
    segments, faults = causes(replace(written, time=time))
    assert ("time runs backwards", 80, 80) in faults
    assert len(segments) == 2
    assert 80 not in used(segments)


def test_a_jump_of_the_poses_is_never_inside_a_segment(written):
    pose = written.world_from_camera.copy()
    pose[80:, 0, 3] += 5.0
    segments, faults = causes(replace(written, world_from_camera=pose))
    assert {"implausible acceleration"} <= {cause for cause, *_ in faults}
    assert len(segments) == 2
    for segment in segments:
        step = np.linalg.norm(np.diff(segment.position, axis=0), axis=1)
        assert step.max() < 2.2
    turned = written.world_from_camera.copy()
    turned[80:, :3, :3] = turned[80:, :3, :3] @ np.diag([-1.0, 1, -1])
    segments, faults = causes(replace(written, world_from_camera=turned))
    assert "implausible turn" in {cause for cause, *_ in faults}


def test_poses_and_the_cars_own_speed_must_agree(written):
    speed = np.full(len(written), 10.0)
    speed[60:70] = 30.0
    segments, faults = causes(replace(written, car_speed=speed))
    assert "poses and the car's own speed disagree" in {cause for cause, *_ in faults}
    assert used(segments).isdisjoint(range(60, 70))


def test_a_damaged_picture_cuts_the_drive(real, tmp_path):
    folder = real.write_plain(tmp_path / "mine", real.Drive(120))
    (folder / "images" / "0060.png").write_bytes(b"no picture")
    segments, faults = pieces_of(Plain(folder=folder), GroundPlane())
    assert [str(f) for f in faults if f.cause == "damaged image"] == [
        f"{folder / 'images' / '0060.png'}: frame 60: damaged image"
    ]
    assert len(segments) == 2
    assert 60 not in used(segments)


@pytest.mark.parametrize("rate", [5.2 * 4, 4.7 * 4, 20.0])
@pytest.mark.parametrize("is_measured", [False, True])
def test_drives_at_nearly_five_hertz_agree_with_themselves(real, written, rate, is_measured):
    """Rows are read as if 0.2 s apart: time and velocity are those of a drive that is."""
    truth = real.Drive(len(written), rate=rate)
    wobble = 0.002 * np.sin(np.arange(len(written)))
    velocity = truth.velocity if is_measured else None
    segments, _ = causes(
        replace(
            written,
            time=truth.time + wobble,
            world_from_camera=truth.camera,
            velocity=velocity,
        )
    )
    assert segments
    for segment in segments:
        np.testing.assert_allclose(np.diff(segment.time), 0.2)
        travelled = np.gradient(segment.position, segment.time, axis=0)
        np.testing.assert_allclose(segment.velocity[1:-1], travelled[1:-1], atol=0.25)
        speed = np.linalg.norm(segment.velocity, axis=1).mean()
        assert speed == pytest.approx(10.0 * 20.0 / rate, rel=0.005)
        assert json.loads(segment.source)["interval"] == pytest.approx(4 / rate, abs=2e-4)


def test_frames_at_an_odd_rate_are_refused(written):
    segments, faults = causes(replace(written, time=np.arange(len(written)) / 7.0))
    assert not segments
    assert {cause for cause, *_ in faults} == {"no frame 0.2 s later", "too short a piece"}


def test_a_car_that_stands_does_not_tell_how_its_camera_is_mounted(written):
    still = np.repeat(written.world_from_camera[:1], len(written), axis=0)
    with pytest.raises(RecordingError, match=r"too few moving frames .* give pitch and yaw"):
        causes(replace(written, world_from_camera=still))
    mount = replace(written.mount, pitch=0.0, yaw=0.0)
    segments, _ = causes(replace(written, world_from_camera=still, mount=mount))
    assert [len(segment) for segment in segments] == [25, 15]


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="min_seconds <= seconds"):
        Cut(min_seconds=20.0)
    with pytest.raises(ValueError, match=r"plausible.max_turn must be positive, got 0.0"):
        Plausible(max_turn=0.0)
