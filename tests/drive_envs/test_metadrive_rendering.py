import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drive_envs.camera import cameras, project, unproject
from drive_envs.metadrive_assets import assets_missing
from drive_envs.roads import Block, Road, lane_centerline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(assets_missing(), reason="MetaDrive's assets: run cluster/setup.sh"),
    pytest.mark.filterwarnings("ignore"),
]

WIDTH, HEIGHT = 256, 128
ROAD = Road(
    blocks=(
        Block(kind="S", length=60.0),
        Block(kind="C", length=40.0, radius=90.0, angle_deg=80.0, turn="left"),
        Block(kind="C", length=40.0, radius=70.0, angle_deg=60.0, turn="right"),
    ),
    lane_count=2,
)


def test_missing_assets_are_named_before_anything_starts(tmp_path, monkeypatch):
    from drive_envs import metadrive_assets
    from drive_envs.metadrive_rendering import MetaDriveRenderer

    monkeypatch.setattr(metadrive_assets, "assets_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=f"missing at {tmp_path}: run cluster/setup.sh"):
        MetaDriveRenderer(cameras(WIDTH, HEIGHT))


@pytest.fixture(scope="module")
def renderer():
    from drive_envs.metadrive_rendering import MetaDriveRenderer

    made = MetaDriveRenderer(cameras(WIDTH, HEIGHT), supersampling=1)
    made.load(ROAD)
    yield made
    made.close()


def ground_points(camera, depth, pose):
    """Lift the pixels of a depth map into the world: x, y, z (H, W, 3)."""
    x, y, z = (
        (
            camera.ego_from_camera[:3, :3]
            @ unproject(camera, torch.from_numpy(depth).double())[..., None]
        )
        .squeeze(-1)
        .unbind(-1)
    )
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    return np.stack(
        [pose[0] + cos * x - sin * y, pose[1] + sin * x + cos * y, camera.mount_height + z], -1
    )


@pytest.mark.parametrize(("s", "offset", "turn"), [(40.0, 0.0, 0.0), (130.0, 1.0, 0.05)])
@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_depth_is_that_of_the_ground_plane(renderer, name, s, offset, turn):
    line = lane_centerline(ROAD, 1)
    pose = line.poses(np.array([s]), offset)[0] + [0, 0, turn]
    camera = renderer.cameras[name]
    depth = renderer.render(*pose)[name].depth
    v = np.arange(HEIGHT) + 0.5
    expected = camera.mount_height * camera.focal / (v - camera.center_v)
    points = ground_points(camera, depth, pose)
    _, left = line.locate(np.nan_to_num(points[..., :2], posinf=0, neginf=0).reshape(-1, 2))
    near = ((expected > 0) & (expected < 60.0))[:, None]
    lane = near & (np.abs(left) < 1.5).reshape(depth.shape)
    assert lane.sum() > 1000
    error = np.abs(depth / expected[:, None] - 1)[lane]
    assert error.max() < 0.01
    assert np.isinf(depth[v < camera.center_v - 4]).all()


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_the_yellow_line_is_where_it_projects_to(renderer, name):
    line = lane_centerline(ROAD, 0)
    pose = line.poses(np.array([45.0]), 0.4)[0] + [0, 0, 0.03]
    camera = renderer.cameras[name]
    red, _, blue = renderer.render(*pose)[name].image.astype(float)
    edge = line.poses(np.arange(50.0, 70.0, 0.1), ROAD.lane_width / 2)[:, :2] - pose[:2]
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    ahead, left = cos * edge[:, 0] + sin * edge[:, 1], cos * edge[:, 1] - sin * edge[:, 0]
    seen = np.stack([-left, np.full_like(left, camera.mount_height), ahead], -1)
    u, v = project(camera, torch.from_numpy(seen)).numpy().T
    rows = np.arange(int(v.min()) + 2, min(int(v.max()), HEIGHT)) + 0.5
    expected = np.interp(rows, v[::-1], u[::-1])
    rows, expected = rows[expected > 6], expected[expected > 6]
    assert len(rows) > 10
    errors = []
    for row, column in zip(rows.astype(int), expected, strict=True):
        window = np.arange(max(int(column) - 8, 0), int(column) + 9)
        yellow = np.clip((red - blue)[row, window] - 25, 0, None)
        centre = (yellow * (window + 0.5)).sum() / yellow.sum()
        errors.append((centre - column) * camera.mount_height / (row + 0.5 - camera.center_v))
    # In metres across the road: the line is 18 cm wide, drawn on a grid of 9 cm.
    assert np.abs(errors).max() < 0.15
    assert abs(np.mean(errors)) < 0.09


def test_the_world_is_right_handed_and_turns_left_for_a_growing_yaw(renderer):
    from metadrive.engine.engine_utils import get_engine

    engine: Any = get_engine()
    network = engine.current_map.road_network
    for start, ends in network.graph.items():
        for lanes in ends.values():
            for index, lane in enumerate(lanes):
                line = lane_centerline(ROAD, index, opposite=start.startswith("-"))
                for along in np.linspace(0.0, lane.length, 5):
                    s, offset = line.locate(np.array([lane.position(along, 1.0)]))
                    assert offset[0] == pytest.approx(-1.0, abs=1e-6)  # theirs is positive right
                    yaw = line.poses(s)[0, 2] - lane.heading_theta_at(along)
                    assert np.cos(yaw) == pytest.approx(1.0)


def test_cars_stand_where_they_are_put(renderer):
    line = lane_centerline(ROAD, 1)
    pose = line.poses(np.array([35.0]))[0]
    empty = renderer.render(*pose)["narrow"]
    renderer.place({"s": line.poses(np.array([50.0])), "m": line.poses(np.array([70.0]), 3.5)})
    full = renderer.render(*pose)["narrow"]
    rear = full.depth[50:60, WIDTH // 2 - 10 : WIDTH // 2 + 10]
    assert 12.0 < np.median(rear) < 14.9  # the car is 4 m long, its origin in its middle
    left = full.depth[:, : WIDTH // 2 - 20] < 0.98 * empty.depth[:, : WIDTH // 2 - 20]
    assert left.sum() > 50
    renderer.place({})
    np.testing.assert_array_equal(renderer.render(*pose)["narrow"].image, empty.image)


def test_supersampled_depth_agrees(renderer):
    from drive_envs.metadrive_rendering import MetaDriveRenderer

    pose = lane_centerline(ROAD, 1).poses(np.array([45.0]))[0]
    plain = renderer.render(*pose)["wide"]
    renderer.close()
    renderer.__init__(cameras(WIDTH, HEIGHT), supersampling=2)
    renderer.load(ROAD)
    finer = renderer.render(*pose)["wide"]
    near = plain.depth < 30.0
    assert np.median(np.abs(finer.depth[near] / plain.depth[near] - 1)) < 1e-3
    assert np.abs(finer.image.astype(float) - plain.image).mean() < 6.0
    with pytest.raises(ValueError, match="has a MetaDriveRenderer already"):
        MetaDriveRenderer(cameras(WIDTH, HEIGHT))


def test_a_road_too_large_is_refused(renderer):
    with pytest.raises(ValueError, match=r"the road is too large, .* for a region of 512 m"):
        renderer.load(Road(blocks=(Block(kind="S", length=600.0),)))


def test_the_world_shows_one_road_scene(renderer):
    from drive_envs.metadrive_world import MetaDrive, RoadScene, scenario_path
    from drive_envs.scenes import Scene

    renderer.close()
    world = MetaDrive(128, 64)
    try:
        path = scenario_path(ROAD, 1, 40.0, 10.0, 4.0)
        scene = Scene(path=path, start=9, num_steps=20, source=RoadScene(road=ROAD, lane=1))
        world.reset([scene])
        assert len(path) == 30
        assert torch.allclose(path.curvature[:5], torch.zeros(5, dtype=torch.float64))
        images = world.render(path.poses[9:10], 0, torch.tensor([True]))
        assert images["wide"].shape == (1, 3, 64, 128)
        assert images["wide"].std() > 10
        again = world.render(path.poses[9:10], 5, torch.tensor([True]))
        np.testing.assert_array_equal(images["narrow"], again["narrow"])
        assert not world.render(path.poses[9:10], 5, torch.tensor([False]))["narrow"].any()
        ahead = path.poses[9:].numpy() + np.array([15.0, 0, 0])
        source = RoadScene(road=ROAD, lane=1, cars=ahead[[0] * 9 + [*range(21)], None])
        world.reset([replace(scene, source=source)])
        near, far = (world.render(path.poses[9:10], i, torch.tensor([True])) for i in (0, 20))
        changed = [(now["narrow"] != images["narrow"]).mean() for now in (near, far)]
        assert 0.002 < 2 * changed[1] < changed[0]  # the car drives away from where we look
        world.reset([scene])
        again = world.render(path.poses[9:10], 0, torch.tensor([True]))
        np.testing.assert_array_equal(images["narrow"], again["narrow"])
        with pytest.raises(ValueError, match="one scene a process, got 2"):
            world.reset([scene, scene])
        with pytest.raises(ValueError, match="RoadScene as source, got a str"):
            world.reset([replace(scene, source="road")])
        with pytest.raises(ValueError, match=r"from -8.0 m to 30.0 m"):
            scenario_path(ROAD, 1, 10.0, 10.0, 2.0)
    finally:
        world.close()
        renderer.__init__(cameras(WIDTH, HEIGHT), supersampling=1)
        renderer.load(ROAD)


ALONE = """
from drive_envs.camera import cameras
from drive_envs.metadrive_rendering import MetaDriveRenderer
try:
    MetaDriveRenderer(cameras(128, 64))
except ValueError as error:
    print(type(error).__name__, error)
"""


def alone(**environment):
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_machine_without_opengl_says_so(tmp_path):
    (tmp_path / "libEGL.so.1").write_text("not a library")
    said = alone(LD_LIBRARY_PATH=str(tmp_path))
    assert said.startswith("GraphicsError no OpenGL on this machine")
    assert "cluster/setup.sh" in said


def test_the_roads_raster_is_the_one_that_metadrive_draws(renderer: Any):
    from drive_envs.metadrive_mesa import PIXELS_PER_METRE, draw_road

    road = renderer._env.engine.current_map
    theirs = road.get_semantic_map(
        (10.0, -3.0), 256, pixels_per_meter=PIXELS_PER_METRE, layer=["lane", "lane_line"]
    )
    assert not road.crosswalks  # which ours leaves out
    ours = draw_road(np.zeros(theirs.shape, np.uint8), road, (10.0, -3.0))
    assert set(np.unique(ours)) > {0, 51}  # lines, too
    np.testing.assert_array_equal(ours, np.round(255 * theirs))
