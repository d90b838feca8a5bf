import numpy as np
import pytest

from drive_envs.roads import Block, Road, lane_centerline
from drive_envs.traffic import (
    CAR_LENGTH,
    Cars,
    Ego,
    LaneTraffic,
    Traffic,
    TrafficConfig,
    random_traffic,
)

BEND = Block(kind="C", length=60.0, radius=50.0, angle_deg=120.0, turn="left")
ROAD = Road(blocks=(Block(kind="S", length=300.0), BEND, Block(kind="S", length=300.0)))
FAR = Ego(s=1e4, offset=0.0, speed=0.0)


def lane_with(s, speed, wished, *, lane=1, opposite=False, ego_lane=1):
    line = lane_centerline(ROAD, lane, opposite=opposite)
    made = LaneTraffic(line, lane_centerline(ROAD, ego_lane), is_oncoming=opposite)
    cars = (np.array(values, float) for values in (s, speed, wished))
    made.cars = Cars.of(*cars, kind=np.zeros(len(s), int))
    return made


def test_a_free_car_reaches_its_speed_and_slows_for_the_curve():
    lane = lane_with([10.0], [5.0], [20.0])
    speeds, bends = [], []
    while lane.cars.s[0] < lane.line.length - 150.0:
        Traffic(lanes=(lane,)).advance(FAR, 0.2)
        speeds.append(lane.cars.speed[0])
        bends.append(float(lane.line.curvature(lane.cars.s)[0]))
    lateral = np.square(speeds) * np.abs(bends)
    assert max(speeds[:150]) > 18
    assert lateral.max() < 3.5
    assert np.median(lateral[lateral > 0]) < 2.1


def test_cars_follow_without_touching_and_stop_at_the_end():
    lane = lane_with([10.0, 40.0, 80.0], [20.0, 10.0, 3.0], [25.0, 15.0, 6.0])
    traffic = Traffic(lanes=(lane,))
    for _ in range(1000):
        traffic.advance(FAR, 0.2)
        assert np.diff(lane.cars.s).min() > CAR_LENGTH
    assert lane.cars.s[-1] < lane.line.length
    assert lane.cars.speed.max() < 0.5


def test_cars_do_not_run_into_the_ego():
    lane = lane_with([10.0], [20.0], [25.0])
    traffic, ego = Traffic(lanes=(lane,)), Ego(s=120.0, offset=0.0, speed=0.0)
    for _ in range(100):
        traffic.advance(ego, 0.2)
        assert not traffic.collides(ego)
    assert 120.0 - CAR_LENGTH - 8.0 < lane.cars.s[0] < 120.0 - CAR_LENGTH


@pytest.mark.parametrize(("lane", "opposite"), [(0, False), (1, False), (0, True), (1, True)])
def test_positions_along_the_ego_lane_are_those_of_the_plane(lane, opposite):
    cars = lane_with([30.0, 350.0, 600.0], [0.0] * 3, [1.0] * 3, lane=lane, opposite=opposite)
    ego_line = lane_centerline(ROAD, 1)
    s, offset = ego_line.locate(cars.line.poses(cars.cars.s)[:, :2])
    np.testing.assert_allclose(cars.ego_s, s, atol=0.2)
    np.testing.assert_allclose(offset, cars.side, atol=1e-6)


def test_the_lead_is_the_next_car_on_the_track():
    here = lane_with([50.0, 90.0, 130.0], [3.0, 4.0, 5.0], [9.0] * 3)
    left = lane_with([70.0], [6.0], [9.0], lane=0)
    oncoming = lane_with([600.0], [9.0], [9.0], lane=0, opposite=True)
    traffic = Traffic(lanes=(here, left, oncoming))
    ego = Ego(s=60.0, offset=0.0, speed=10.0)
    lead = traffic.lead(ego, (0.0,))
    assert lead is not None
    assert lead.speed == 4.0
    assert lead.gap == pytest.approx(30.0 - CAR_LENGTH, abs=0.1)
    changing = traffic.lead(ego, (0.0, ROAD.lane_width))
    assert changing is not None
    assert changing.speed == 6.0
    assert traffic.lead(Ego(s=200.0, offset=0.0, speed=1.0), (0.0,)) is None
    assert traffic.is_clear(ego, ROAD.lane_width, behind=20.0, ahead=5.0)
    assert not traffic.is_clear(ego, ROAD.lane_width, behind=20.0, ahead=15.0)
    assert traffic.collides(Ego(s=68.0, offset=ROAD.lane_width - 0.3, speed=1.0))
    assert not traffic.collides(Ego(s=68.0, offset=0.0, speed=1.0))


def test_traffic_is_drawn_with_room_for_the_ego():
    ego = Ego(s=100.0, offset=0.2, speed=15.0)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        traffic = random_traffic(ROAD, (1, False), TrafficConfig(), rng, ego, 15.0)
        assert len(traffic.lanes) == 4
        assert traffic.num_cars > 3
        assert traffic.is_clear(ego, 0.0, behind=50.0, ahead=50.0)
        shown = traffic.poses(ego)
        assert set(shown) == {"s", "m"}
        ego_line = lane_centerline(ROAD, 1)
        s, _ = ego_line.locate(np.concatenate(list(shown.values()))[:, :2])
        assert (np.abs(s - ego.s) < 145.0).all()


def test_impossible_traffic_is_refused():
    with pytest.raises(ValueError, match=r"traffic\.share must be 0 to 1, got 2"):
        TrafficConfig(share=2.0)
    with pytest.raises(ValueError, match=r"traffic\.spacing must be a range"):
        TrafficConfig(spacing=(5.0, 9.0))


def test_a_car_stops_for_a_while_and_those_behind_wait():
    lane = lane_with([60.0, 20.0], [12.0, 12.0], [12.0, 12.0])
    lane.cars.stop_begin, lane.cars.stop_end = np.array([2.0, np.inf]), np.array([16.0, np.inf])
    traffic, stood = Traffic(lanes=(lane,)), []
    for step in range(150):
        traffic.advance(FAR, 0.2)
        assert lane.cars.s[0] - lane.cars.s[1] > CAR_LENGTH + 2
        if 9.0 < 0.2 * step < 15.8:
            assert lane.cars.speed[0] == 0
            stood.append(lane.cars.speed[1])
    assert stood[-1] < 0.5
    assert lane.cars.speed.min() > 5


def test_a_car_cuts_in_ahead_and_the_lane_that_it_leaves_is_free():
    here, left = lane_with([200.0], [12.0], [12.0]), lane_with([75.0], [12.0], [12.0], lane=0)
    traffic = Traffic(lanes=(left, here), will_cut_in=True)
    sides, ego = [], Ego(s=50.0, offset=0.1, speed=12.0)
    for _ in range(25):
        cars = traffic.poses(ego)["s"]
        s, offset = lane_centerline(ROAD, 1).locate(cars[:, :2])
        sides.append(float(offset[s.argmin()]))
        traffic.advance(ego, 0.2)
        ego = Ego(s=ego.s + 2.4, offset=0.1, speed=12.0)
    assert not traffic.will_cut_in
    assert len(left.cars) == 0
    assert len(here.cars) == 2
    assert sides[0] == pytest.approx(ROAD.lane_width, abs=0.01)
    assert sides[-1] == pytest.approx(0, abs=0.01)
    assert np.abs(np.diff(sides)).max() < 0.5
    lead = traffic.lead(ego, (0.0,))
    assert lead is not None
    assert lead.gap == pytest.approx(25.0 - CAR_LENGTH, abs=0.5)


def test_nobody_drives_through_who_stands_from_the_start():
    config = TrafficConfig(spacing=(20.0, 60.0), relative_speed=(0.5, 1.1), stopping_share=1.0)
    for seed in range(6):
        rng, ego = np.random.default_rng(seed), Ego(s=25.0, offset=0.0, speed=20.0)
        traffic = random_traffic(ROAD, (1, False), config, rng, ego, 24.0)
        for _ in range(60):
            for lane in traffic.lanes:
                assert (np.diff(np.sort(lane.cars.s)) > CAR_LENGTH - 0.1).all()
                lane.advance(None, 0.2)


@pytest.mark.parametrize(("ahead_speed", "can"), [(0.0, False), (11.0, True)])
def test_a_car_does_not_cut_in_behind_who_stands(ahead_speed, can):
    here = lane_with([100.0], [ahead_speed], [12.0])
    left = lane_with([75.0], [12.0], [12.0], lane=0)
    traffic = Traffic(lanes=(left, here), will_cut_in=True)
    traffic.advance(Ego(s=50.0, offset=0.0, speed=12.0), 0.2)
    assert traffic.will_cut_in is not can


@pytest.mark.parametrize(("gap", "speed"), [(60.0, 12.0), (8.0, 12.0), (25.0, 6.0)])
def test_a_car_cuts_in_only_where_it_fits(gap, speed):
    left = lane_with([50.0 + gap], [speed], [speed], lane=0)
    traffic = Traffic(lanes=(left, lane_with([], [], [])), will_cut_in=True)
    traffic.advance(Ego(s=50.0, offset=0.0, speed=12.0), 0.2)
    assert traffic.will_cut_in
    assert len(left.cars) == 1


def test_what_is_asked_for_changes_nothing_else():
    def drawn(**more):
        config = TrafficConfig(spacing=(30.0, 60.0), **more)
        rng = np.random.default_rng(3)
        return random_traffic(
            ROAD, (1, False), config, rng, Ego(s=25.0, offset=0.0, speed=9.0), 10.0
        )

    plain, busy = drawn(), drawn(stopping_share=0.5, cut_in_share=1.0)
    assert busy.will_cut_in
    assert not plain.will_cut_in
    stops = np.concatenate([lane.cars.stop_begin < np.inf for lane in busy.lanes])
    assert 0.25 < stops.mean() < 0.75
    for one, other in zip(plain.lanes, busy.lanes, strict=True):
        np.testing.assert_array_equal(one.cars.s, other.cars.s)
        standing = (other.cars.stop_begin < 0) & (other.cars.stop_end > 0)
        # Those behind who stands are slower, too.
        assert (other.cars.speed <= one.cars.speed).all()
        assert not other.cars.speed[standing].any()
