import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from drive_envs.geometry import matrix_from_planar, quaternion_from_matrix
from drive_envs.path import NUM_PAST, gather_paths, path_from_segment
from drive_envs.plan import STEP


@pytest.mark.parametrize("curvature", [-0.04, 0.0, 0.01])
def test_arc_by_definition(synthetic, curvature):
    path = synthetic.arc_path(speed=10.0, curvature=curvature)
    torch.testing.assert_close(
        path.curvature, torch.full((130,), curvature).double(), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(path.station, 10.0 * path.time, atol=1e-6, rtol=0)
    assert path.acceleration.abs().max() == 0


def test_curvature_of_a_winding_road(synthetic):
    path = synthetic.winding_path()
    expected = 0.01 * (0.5 * path.time).sin()
    torch.testing.assert_close(path.curvature[1:-1], expected[1:-1], atol=2e-5, rtol=0)


def test_look_up_between_rows_lies_on_the_circle(synthetic):
    paths = gather_paths([synthetic.arc_path(8.0, 0.04)], [20], 30)
    station = torch.linspace(20.0, 60.0, 57, dtype=torch.float64)[None]
    point = paths.at_station(station)
    yaw = 0.04 * station
    expected = torch.stack([yaw.sin(), 1 - yaw.cos()], -1) / 0.04
    torch.testing.assert_close(point.position, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(point.yaw, yaw, atol=1e-6, rtol=0)


def test_recorded_motion_agrees_with_itself(synthetic):
    paths = gather_paths([synthetic.winding_path()], [20], 30)
    time = torch.linspace(0.0, 10.0, 2001, dtype=torch.float64)[None]
    motion = paths.at_time(time)
    speed = motion.station.diff() / time.diff()
    middle = (motion.speed[:, 1:] + motion.speed[:, :-1]) / 2
    torch.testing.assert_close(speed, middle, atol=0.05, rtol=0)
    assert (speed - middle).abs().mean() < 0.005


@pytest.mark.parametrize("lateral", [-3.5, 0.0, 2.0])
@pytest.mark.parametrize("slip", [-4.0, 0.0, 4.0])
def test_projection_undoes_displacement(synthetic, lateral, slip):
    paths = gather_paths([synthetic.winding_path(), synthetic.arc_path(8.0, 0.04)], [20, 30], 30)
    offset, turn = torch.full((2,), lateral).double(), torch.tensor([0.1, -0.05]).double()
    pose = paths.displaced(NUM_PAST + 3, offset, turn)
    station = paths.station[:, NUM_PAST + 3]
    found = paths.project(pose, station + slip)
    torch.testing.assert_close(found.station, station, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.lateral, offset, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.heading, turn, atol=1e-3, rtol=0)


def test_projection_stays_on_its_lap(synthetic):
    """On a small circle driven round and round, the foot is on the lap of the guess."""
    lap = 2 * math.pi / 0.1
    path = synthetic.arc_path(speed=10.0, curvature=0.1, num_rows=200)
    paths = gather_paths([path], [60], 30)
    station = paths.station[:, NUM_PAST]
    pose = paths.displaced(NUM_PAST, torch.ones(1).double(), torch.zeros(1).double())
    found = paths.project(pose, station + lap + 0.5)
    torch.testing.assert_close(found.station, station + lap, atol=1e-2, rtol=0)


def test_end_is_continued_on_the_arc_and_marked(synthetic):
    long = synthetic.arc_path(10.0, 0.02, num_rows=130)
    short = synthetic.arc_path(10.0, 0.02, num_rows=40)
    whole, cut = gather_paths([long], [20], 30), gather_paths([short], [20], 30)
    torch.testing.assert_close(cut.poses, whole.poses, atol=1e-3, rtol=0)
    torch.testing.assert_close(cut.station, whole.station, atol=1e-3, rtol=0)
    assert cut.valid.sum() == 40 - 11
    assert whole.valid.all()
    motion = cut.at_time(torch.tensor([[0.0, 19 * STEP, 19 * STEP + 0.01]], dtype=torch.float64))
    assert motion.valid.tolist() == [[True, True, False]]


def test_path_of_a_segment_is_the_path_it_was_made_of(synthetic, synthetic_segment):
    path, expected = path_from_segment(synthetic_segment), synthetic.arc_path(num_rows=100)
    torch.testing.assert_close(path.poses, expected.poses, atol=1e-4, rtol=0)
    torch.testing.assert_close(path.speed, expected.speed, atol=1e-4, rtol=0)
    torch.testing.assert_close(path.curvature, expected.curvature, atol=1e-4, rtol=0)


def test_yaw_is_the_direction_of_travel(synthetic, synthetic_segment):
    body = synthetic.arc_path(num_rows=100).poses + torch.tensor([0.0, 0.0, 0.05]).double()
    quaternion = quaternion_from_matrix(matrix_from_planar(body)).numpy()
    path = path_from_segment(replace(synthetic_segment, quaternion=quaternion))
    expected = synthetic.arc_path(num_rows=100).poses
    torch.testing.assert_close(path.poses, expected, atol=1e-4, rtol=0)


def test_standing_car_keeps_its_heading(synthetic_segment):
    still = replace(
        synthetic_segment,
        position=np.zeros((100, 3)),
        velocity=np.zeros((100, 3)),
        quaternion=np.tile(synthetic_segment.quaternion[50], (100, 1)),
    )
    path = path_from_segment(still)
    assert path.curvature.abs().max() == 0
    assert path.poses[:, 2].std() < 1e-12
    paths = gather_paths([path], [20], 30)
    found = paths.project(paths.poses[:, NUM_PAST], paths.station[:, NUM_PAST])
    assert found.lateral.item() == 0


def test_a_car_that_stops_in_a_curve_stands_in_it(synthetic):
    path = synthetic.stopping_path(curvature=0.02)
    assert path.speed[40:45].abs().max() == 0
    torch.testing.assert_close(path.curvature, torch.full((120,), 0.02).double(), atol=2e-5, rtol=0)


def test_beyond_its_ends_a_path_is_straight(synthetic):
    path = synthetic.stopping_path(curvature=0.02, wait=30.0)
    paths = gather_paths([path], [20], 80)
    end = paths.station[0, -1].item()
    assert end == pytest.approx(48.0, abs=0.01)
    point = paths.at_station(torch.tensor([[end, end + 7.0]]).double())
    ahead = point.position[0, 1] - point.position[0, 0]
    yaw = 0.02 * end
    expected = 7.0 * torch.tensor([math.cos(yaw), math.sin(yaw)]).double()
    torch.testing.assert_close(ahead, expected, atol=1e-3, rtol=0)
    beyond = torch.tensor([[*point.position[0, 1].tolist(), yaw]]).double()
    found = paths.project(beyond, torch.tensor([end]).double())
    assert found.station.item() == pytest.approx(end + 7.0, abs=1e-3)
    assert found.lateral.item() == pytest.approx(0, abs=1e-3)


def test_scene_needs_its_context(synthetic):
    with pytest.raises(ValueError, match=r"row 8 of a path of 130 rows; it must lie in 9\.\.129"):
        gather_paths([synthetic.arc_path()], [8], 30)


def test_a_wish_is_told_for_six_seconds_and_the_latest_counts(synthetic):
    told = synthetic.arc_path(desire=[(20, 1), (40, 2)], num_rows=90).told
    assert (told[:20] == torch.tensor([1.0, 0, 0])).all()
    assert told[20].tolist() == [0, 1, 0]
    assert told[35].tolist() == pytest.approx([0.5, 0.5, 0])
    assert told[40].tolist() == [0, 0, 1]
    assert told[46].tolist() == pytest.approx([0.2, 0, 0.8])
    assert (told[70:] == torch.tensor([1.0, 0, 0])).all()
    assert (synthetic.arc_path(num_rows=12).told[:, 0] == 1).all()
    cut = gather_paths([synthetic.arc_path(desire=[(20, 1)])], [30], 5).told
    assert cut[0, NUM_PAST].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
