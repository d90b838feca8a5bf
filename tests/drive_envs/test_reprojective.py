from dataclasses import replace

import numpy as np
import pytest
import torch

from drive_envs.camera import cameras
from drive_envs.path import path_from_segment
from drive_envs.reprojective import FrameCache, Reprojective, ReprojectiveConfig, resized
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
        cache.get(synthetic_segment, cameras(128, 64)["wide"], "wide", row)
    assert cache.num_bytes <= 200_000


def test_recordings_of_another_size_are_resized(synthetic):
    large = synthetic.segment_from_path(synthetic.arc_path(num_rows=45), width=256, height=128)
    world = Reprojective()
    world.reset([scene_of(large, start=20)])
    images = world.render(pose_at(large, 20), 0, ACTIVE)
    small, _ = synthetic.view(cameras(128, 64)["wide"], pose_at(large, 20)[0])
    assert images["wide"].shape == (1, 3, 64, 128)
    assert np.abs(images["wide"][0].astype(int) - small).mean() < 12


def test_resized_depth_of_a_plane_is_the_depth_of_the_smaller_camera(synthetic):
    image, depth = synthetic.view(cameras(256, 128)["wide"], (0.0, 0.0, 0.0))
    depth = depth.astype(np.float32)
    depth[100, 100] = np.nan
    _, found = resized(image, depth, 128, 64)
    _, expected = synthetic.view(cameras(128, 64)["wide"], (0.0, 0.0, 0.0))
    assert np.isnan(found[50, 50])
    near = expected < 100
    near[50, 50] = False
    assert found[near] == pytest.approx(expected[near], rel=1e-3)
    assert np.isinf(found[:30]).all()


def test_segment_without_depth_is_named(synthetic, tmp_path):
    blind = synthetic.segment_from_path(synthetic.arc_path(num_rows=45), name="blind", depth=False)
    blind = replace(blind, file=tmp_path / "drive.parquet")
    world = Reprojective()
    world.reset([scene_of(blind, start=20)])
    message = r"drive\.parquet: segment 'blind' row 20: has no depth of camera 'narrow'"
    with pytest.raises(SegmentError, match=message):
        world.render(pose_at(blind, 20), 0, ACTIVE)


def test_other_aspect_ratio_is_refused(synthetic_segment):
    square = {name: replace(c, width=64) for name, c in synthetic_segment.cameras.items()}
    with pytest.raises(SegmentError, match="'synthetic': camera 'narrow' does not fit"):
        Reprojective().reset([scene_of(replace(synthetic_segment, cameras=square))])


def test_other_lens_is_refused(synthetic_segment):
    other = {name: replace(c, focal=200.0) for name, c in synthetic_segment.cameras.items()}
    with pytest.raises(SegmentError, match="camera 'narrow' differs from the driver's in focal"):
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
