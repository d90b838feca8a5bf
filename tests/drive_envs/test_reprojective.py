from dataclasses import replace

import numpy as np
import pytest
import torch

from drive_envs.camera import cameras, recording_cameras
from drive_envs.frames import encode_depth, shrink_depth
from drive_envs.path import path_from_segment
from drive_envs.reprojective import (
    FrameCache,
    Reprojective,
    ReprojectiveConfig,
    resized_depth,
    working_sensor,
)
from drive_envs.scenes import Scene
from drive_envs.segment import SegmentError

ACTIVE = torch.ones(1, dtype=torch.bool)


def scene_of(segment, start=30):
    return Scene(path=path_from_segment(segment), start=start, num_steps=20, source=segment)


def pose_at(segment, row, lateral=0.0, turn=0.0):
    x, y, yaw = path_from_segment(segment).poses[row].unbind(-1)
    return torch.stack([x - lateral * yaw.sin(), y + lateral * yaw.cos(), yaw + turn])[None]


@pytest.mark.parametrize("step", [-9, 0, 5])
def test_recorded_pose_gives_the_recorded_frame(synthetic_segment, step):
    world = Reprojective()
    world.reset([scene_of(synthetic_segment)])
    images = world.render(pose_at(synthetic_segment, 30 + step), step, ACTIVE)
    for name in ("narrow", "wide"):
        recorded = synthetic_segment.image(name, 30 + step).astype(int)
        assert np.abs(images[name][0] - recorded).mean() < 1.0


def test_displaced_pose_shows_the_world_from_there(synthetic, synthetic_segment):
    """Against the analytic picture of the plane; the recorded frame itself is far worse."""
    world = Reprojective(ReprojectiveConfig(source_offsets=(0, -3, 3)))
    world.reset([scene_of(synthetic_segment)])
    pose = pose_at(synthetic_segment, 30, lateral=0.8, turn=0.03)
    images = world.render(pose, 0, ACTIVE)
    truth, depth = synthetic.view(cameras(128, 64)["wide"], pose[0])
    near = np.isfinite(depth) & (depth < 12)
    error = np.abs(images["wide"][0].astype(int) - truth)[:, near].mean()
    unmoved = np.abs(synthetic_segment.image("wide", 30).astype(int) - truth)[:, near].mean()
    assert error < 0.5 * unmoved


def test_old_frames_show_the_same_world(synthetic, synthetic_segment):
    """A scene keeps one age, scenes have different ones, and all see what is there."""
    world = Reprojective(ReprojectiveConfig(max_age=3))
    scenes = [scene_of(synthetic_segment, start) for start in range(30, 46)]
    world.reset(scenes)
    ages = [scene.start - start for scene, (_, start, _) in zip(scenes, world._scenes, strict=True)]
    assert set(ages) == {0, 1, 2, 3}
    world.reset(scenes)
    assert ages == [s.start - start for s, (_, start, _) in zip(scenes, world._scenes, strict=True)]
    oldest = scenes[ages.index(3)]
    world.reset([oldest])
    pose = pose_at(synthetic_segment, oldest.start, lateral=0.8)
    image = world.render(pose, 0, ACTIVE)["wide"][0].astype(int)
    truth, depth = synthetic.view(cameras(128, 64)["wide"], pose[0])
    near = np.isfinite(depth) & (depth < 12)
    unmoved = synthetic_segment.image("wide", oldest.start - 3).astype(int)
    assert np.abs(image - truth)[:, near].mean() < 0.7 * np.abs(unmoved - truth)[:, near].mean()


def test_batch_equals_alone_and_inactive_scenes_are_black(synthetic_segment):
    scenes = [scene_of(synthetic_segment, start) for start in (20, 30, 40)]
    poses = torch.cat([pose_at(synthetic_segment, s.start, lateral=0.5) for s in scenes])
    together = Reprojective()
    together.reset(scenes)
    images = together.render(poses, 0, torch.tensor([True, False, True]))
    assert images["wide"][1].max() == 0
    for index in (0, 2):
        alone = Reprojective()
        alone.reset([scenes[index]])
        expected = alone.render(poses[index : index + 1], 0, ACTIVE)
        for name in ("narrow", "wide"):
            assert (images[name][index] == expected[name][0]).all()
    assert together.render(poses, 0, torch.zeros(3, dtype=torch.bool))["wide"].max() == 0


def test_cache_changes_nothing_and_stays_small(synthetic_segment):
    scenes = [scene_of(synthetic_segment)]
    cached, uncached = Reprojective(), Reprojective(ReprojectiveConfig(cache_mb=0))
    for world in (cached, uncached):
        world.reset(scenes)
    for step in (0, 1, 0):
        pose = pose_at(synthetic_segment, 30 + step, lateral=0.3)
        one, two = (world.render(pose, step, ACTIVE) for world in (cached, uncached))
        assert all((one[name] == two[name]).all() for name in one)
    cache = FrameCache(max_bytes=200_000)
    for row in range(20):
        optics = cameras(128, 64)["wide"]
        cache.get(synthetic_segment, working_sensor(optics, optics), "wide", row)
    assert cache.num_bytes <= 200_000


def test_recordings_of_another_size_are_resized(synthetic):
    large = synthetic.segment_from_path(synthetic.arc_path(num_rows=45), width=256, height=128)
    world = Reprojective()
    world.reset([scene_of(large, start=20)])
    images = world.render(pose_at(large, 20), 0, ACTIVE)
    small, _ = synthetic.view(cameras(128, 64)["wide"], pose_at(large, 20)[0])
    assert images["wide"].shape == (1, 3, 64, 128)
    assert np.abs(images["wide"][0].astype(int) - small).mean() < 12


@pytest.mark.parametrize(("width", "tolerance"), [(256, 0.01), (192, 0.05)])
def test_resized_depth_of_a_plane_is_the_depth_of_the_smaller_camera(synthetic, width, tolerance):
    """By a whole factor, and by any other."""
    wide = cameras(width, width // 2)["wide"]
    _, depth = synthetic.view(wide, (0.0, 0.0, 0.0))
    depth = depth.astype(np.float32)
    depth[width * 50 // 128, width * 50 // 128] = np.nan
    found = resized_depth(depth, cameras(128, 64)["wide"])
    _, expected = synthetic.view(cameras(128, 64)["wide"], (0.0, 0.0, 0.0))
    assert np.isnan(found[50, 50])
    near = expected < 30
    near[49:52, 49:52] = False
    assert found[near] == pytest.approx(expected[near], rel=tolerance)
    assert np.isinf(found[:30]).all()


def test_a_finer_and_wider_recording_is_nearer_to_the_truth(synthetic):
    """At twice the size and with margins nothing is cut off, and little is softened."""
    sensors = recording_cameras(128, 64, scale=2, margin=32)
    path = synthetic.arc_path(num_rows=45)
    fine = coarse_depth(synthetic.segment_from_path(path, sensors=sensors))
    plain = synthetic.segment_from_path(path)
    pose = pose_at(plain, 20, lateral=0.7, turn=0.03)
    errors = {}
    for name, segment in (("fine", fine), ("plain", plain)):
        world = Reprojective()
        world.reset([scene_of(segment, start=20)])
        image = world.render(pose, 0, ACTIVE)["wide"][0].astype(int)
        truth, depth = synthetic.view(recording_cameras(128, 64, scale=2)["wide"], pose[0])
        truth = truth.reshape(3, 64, 2, 128, 2).mean((2, 4))
        near = depth.reshape(64, 2, 128, 2).max((1, 3)) < 12
        errors[name] = np.abs(image - truth)[:, near].mean()
    assert errors["fine"] < 0.6 * errors["plain"]


def coarse_depth(segment):
    """Keep depth at half the size of the images, as `drive record` does."""
    depths = {
        name: [
            encode_depth(shrink_depth(segment.depth(name, row), 2)) for row in range(len(segment))
        ]
        for name in segment.cameras
    }
    return replace(segment, depths=depths)


def test_recordings_of_several_cameras_share_a_batch(synthetic):
    path = synthetic.arc_path(num_rows=45)
    sensors = recording_cameras(128, 64, scale=2, margin=8)
    segments = [
        synthetic.segment_from_path(path),
        synthetic.segment_from_path(path, sensors=sensors),
        synthetic.segment_from_path(path),
    ]
    scenes = [scene_of(segment, start=20) for segment in segments]
    poses = torch.cat([pose_at(segments[0], 20, lateral=d) for d in (0.1, 0.2, 0.3)])
    together = Reprojective()
    together.reset(scenes)
    images = together.render(poses, 0, torch.ones(3, dtype=torch.bool))
    for index in range(3):
        alone = Reprojective()
        alone.reset([scenes[index]])
        expected = alone.render(poses[index : index + 1], 0, ACTIVE)
        for name in ("narrow", "wide"):
            assert (images[name][index] == expected[name][0]).all()


def test_what_is_kept_of_a_recording():
    seen = cameras(128, 64)["narrow"]
    for scale, margin, color, depth in (
        (1, 0, (128, 64), (128, 64)),
        (2, 32, (384, 128), (192, 64)),
        (8, 0, (256, 128), (128, 64)),
        (3, 0, (384, 192), (128, 64)),
    ):
        sensor = working_sensor(
            recording_cameras(128, 64, scale=scale, margin=margin)["narrow"], seen
        )
        assert (sensor.color.width, sensor.color.height) == color
        assert (sensor.depth.width, sensor.depth.height) == depth


def test_segment_without_depth_is_named(synthetic, tmp_path):
    blind = synthetic.segment_from_path(synthetic.arc_path(num_rows=45), name="blind", depth=False)
    blind = replace(blind, file=tmp_path / "drive.parquet")
    world = Reprojective()
    world.reset([scene_of(blind, start=20)])
    message = r"drive\.parquet: segment 'blind' row 20: has no depth of camera 'narrow'"
    with pytest.raises(SegmentError, match=message):
        world.render(pose_at(blind, 20), 0, ACTIVE)


def test_a_camera_that_sees_less_is_refused(synthetic_segment):
    square = {name: replace(c, width=64) for name, c in synthetic_segment.cameras.items()}
    message = "'synthetic': camera 'narrow' does not see as far as the driver's to the right"
    with pytest.raises(SegmentError, match=message):
        Reprojective().reset([scene_of(replace(synthetic_segment, cameras=square))])


def test_a_longer_lens_is_refused(synthetic_segment):
    other = {name: replace(c, focal=240.0) for name, c in synthetic_segment.cameras.items()}
    with pytest.raises(SegmentError, match=r"'narrow' does not see as far .* left and right"):
        Reprojective().reset([scene_of(replace(synthetic_segment, cameras=other))])


def test_another_mount_is_refused(synthetic_segment):
    other = {name: replace(c, mount_height=1.5) for name, c in synthetic_segment.cameras.items()}
    with pytest.raises(SegmentError, match=r"'narrow' has a mount_height of 1\.5, .* has 1\.22"):
        Reprojective().reset([scene_of(replace(synthetic_segment, cameras=other))])


def test_missing_camera_is_named(synthetic_segment):
    one = replace(
        synthetic_segment,
        cameras={"wide": synthetic_segment.cameras["wide"]},
        images={"wide": synthetic_segment.images["wide"]},
        depths={"wide": synthetic_segment.depths["wide"]},
    )
    with pytest.raises(SegmentError, match="it has no camera 'narrow', only wide"):
        Reprojective().reset([scene_of(one)])


def test_other_sources_are_refused(synthetic):
    scene = Scene(path=synthetic.arc_path(), start=20, num_steps=20, source="a road")
    with pytest.raises(ValueError, match="needs a Segment as a scene's source, got a str"):
        Reprojective().reset([scene])


def test_config_is_checked():
    with pytest.raises(ValueError, match="source_offsets is empty"):
        ReprojectiveConfig(source_offsets=())
    with pytest.raises(ValueError, match="cache_mb is -1"):
        ReprojectiveConfig(cache_mb=-1)


def test_a_mirrored_drive_is_the_mirror_image_of_the_drive(synthetic_segment):
    """The warp, the path and the pictures of the mirrored segment are those of the mirror."""
    mirrored = synthetic_segment.mirrored()
    path, reflected = path_from_segment(synthetic_segment), path_from_segment(mirrored)
    assert torch.allclose(reflected.poses, path.poses * torch.tensor([1.0, -1.0, -1.0]))
    assert torch.allclose(reflected.curvature, -path.curvature)
    images = []
    for segment, side in ((synthetic_segment, 1.0), (mirrored, -1.0)):
        world = Reprojective()
        world.reset([scene_of(segment)])
        pose = pose_at(segment, 30, lateral=0.6 * side, turn=0.02 * side)
        images.append(world.render(pose, 0, ACTIVE))
    for name in ("narrow", "wide"):
        difference = images[0][name][..., ::-1].astype(int) - images[1][name]
        assert np.abs(difference).mean() < 0.1
    again = mirrored.mirrored()
    assert (again.image("wide", 3) == synthetic_segment.image("wide", 3)).all()
    assert (again.quaternion == synthetic_segment.quaternion).all()


def test_mirroring_exchanges_the_lane_changes(synthetic_segment):
    desire = np.zeros(len(synthetic_segment), np.int8)
    desire[[10, 20]] = 1, 2
    mirrored = replace(synthetic_segment, desire=desire).mirrored()
    assert mirrored.desire[[10, 20]].tolist() == [2, 1]
    assert mirrored.desire.sum() == 3
