import numpy as np
import pytest

from drive_envs.roads import Arc, Block, Centerline, Road, lane_centerline

BENDS = (
    Block(kind="S", length=40.0),
    Block(kind="C", length=20.0, radius=60.0, angle_deg=150.0, turn="left"),
    Block(kind="C", length=30.0, radius=45.0, angle_deg=100.0, turn="right"),
)


def bends(**changes):
    return Road(**{"blocks": BENDS, "lane_count": 3, "lane_width": 3.5, **changes})


@pytest.mark.parametrize("opposite", [False, True])
@pytest.mark.parametrize("lane", [0, 2])
def test_locate_inverts_poses(lane, opposite):
    line = lane_centerline(bends(), lane, opposite=opposite)
    generator = np.random.default_rng(0)
    s, offset = generator.uniform(-20, line.length + 20, 300), generator.uniform(-3, 3, 300)
    found_s, found_offset = line.locate(line.poses(s, offset)[:, :2])
    np.testing.assert_allclose(found_s, s, atol=1e-9)
    np.testing.assert_allclose(found_offset, offset, atol=1e-9)


def test_curvature_is_how_heading_changes():
    line = lane_centerline(bends(), 1)
    s = np.arange(0.0, line.length, 0.01)
    poses = line.poses(s)
    change = np.gradient(np.unwrap(poses[:, 2]), s)
    np.testing.assert_allclose(np.median(np.abs(change - line.curvature(s))), 0, atol=1e-9)
    np.testing.assert_allclose(np.gradient(poses[:, 0], s)[1:-1], np.cos(poses[1:-1, 2]), atol=1e-3)


def test_left_is_positive():
    left = Road(blocks=(Block(kind="C", length=5.0, radius=50.0, angle_deg=90.0, turn="left"),))
    line = lane_centerline(left, left.lane_count - 1)
    assert line.curvature(np.array([40.0]))[0] == pytest.approx(1 / 50)
    assert lane_centerline(left, 0).poses(np.zeros(1))[0, 1] > line.poses(np.zeros(1))[0, 1]
    assert line.locate(line.poses(np.array([40.0]), 2.0)[:, :2])[1][0] == pytest.approx(2.0)


def test_opposite_lanes_run_the_other_way_beyond_the_yellow_line():
    road = bends()
    here, there = lane_centerline(road, 0), lane_centerline(road, 0, opposite=True)
    s, offset = here.locate(there.poses(np.array([0.0, 50.0]))[:, :2])
    np.testing.assert_allclose(offset, road.lane_width, atol=1e-9)
    assert s[0] == pytest.approx(here.length)
    assert s[1] < s[0]


def test_the_road_is_centred():
    road = bends()
    line = lane_centerline(road, 2)
    points = line.poses(np.arange(0, line.length, 0.5))[:, :2]
    np.testing.assert_allclose(points.min(axis=0) + points.max(axis=0), 0, atol=0.5)
    assert np.abs(points).max() < road.extent


def test_fingerprint_tells_roads_apart():
    assert bends().fingerprint() == bends().fingerprint()
    others = [bends(lane_count=2), bends(lane_width=3.4), bends(blocks=BENDS[:2])]
    assert len({road.fingerprint() for road in [bends(), *others]}) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(kind="S", length=0.0), "length > 0 m, got 0"),
        (lambda: Block(kind="C", length=5.0, radius=0.0, angle_deg=90.0), "radius > 0"),
        (lambda: Block(kind="C", length=5.0, radius=9.0, angle_deg=200.0), "angle_deg <= 180"),
        (lambda: bends(lane_count=4), "lane_count must be 1, 2 or 3, got 4"),
        (lambda: bends(lane_width=9.0), "lane_width must be 2.5 to 5 m, got 9"),
        (
            lambda: bends(
                lane_width=4.9, blocks=(Block(kind="C", length=5.0, radius=29.0, angle_deg=9.0),)
            ),
            "need a radius of more than 29",
        ),
        (lambda: lane_centerline(bends(), 3), "lane 3 does not exist: the road has lanes 0 to 2"),
    ],
)
def test_impossible_roads_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_arc_of_no_curvature_is_straight():
    line = Centerline(arcs=(Arc(x=1.0, y=2.0, yaw=0.0, length=10.0, curvature=0.0),))
    np.testing.assert_allclose(line.poses(np.array([4.0]), 1.0), [[5.0, 3.0, 0.0]])
