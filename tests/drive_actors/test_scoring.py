import math
from dataclasses import replace

import numpy as np
import pytest

from drive_actors.drivers import Decision, PolicyDriver, StraightDriver, TeacherDriver
from drive_actors.policy import Policy, PolicyConfig
from drive_actors.scoring import Drive, drive, judge, lost, scene_of, score
from drive_envs.blank import Blank
from drive_envs.environment import DrivingVectorEnv, EnvConfig
from drive_envs.metadrive_world import RoadScene
from drive_envs.path import NUM_PAST
from drive_envs.plan import STEP
from drive_envs.scenarios import Pulse, load_scenarios, shipped_path
from drive_envs.scripted_cars import Car
from drive_envs.vehicle import preset

SHIPPED = load_scenarios()
CHANGES = load_scenarios(shipped_path("lane_change"))
PACES = load_scenarios(shipped_path("longitudinal"))
WORLD = Blank(32, 16)
PLAIN, REALISTIC = preset("plain"), preset("realistic")
TINY = PolicyConfig(
    width=32,
    height=16,
    channels=(4, 8, 8),
    num_features=16,
    bottleneck_bits=20.0,
    model_dim=16,
    num_layers=1,
    num_heads=2,
    num_hypotheses=2,
)


class WeavingDriver:
    """The teacher with a steering that swings at 0.33 Hz."""

    def start(self, context):
        self.num_frames = 0

    def act(self, observation, info):
        self.num_frames += 1
        swing = 0.5 * np.sin(2 * np.pi * self.num_frames / 15) / observation["speed"][:, 0] ** 2
        return Decision(action=info["teacher_action"] + np.array([[swing[0], 0]], np.float32))


def drive_all(scenarios, noise, act, seed=0):
    """Drive scenarios as one batch, which is fast."""
    scenes = [scene_of(scenario) for scenario in scenarios]
    (longitudinal,) = {scenario.longitudinal for scenario in scenarios}
    config = EnvConfig(
        width=32,
        height=16,
        vehicle=preset(noise),
        longitudinal=longitudinal,
        max_station_error=math.inf,
    )
    env = DrivingVectorEnv(WORLD, lambda rng: scenes[0], config, num_envs=len(scenes))
    _, info = env.reset(seed=seed, options={"scenes": scenes})
    poses, active = [info["pose"]], [np.ones(len(scenes), bool)]
    while info["active"].any():
        active.append(info["active"])
        _, _, _, _, info = env.step(act(info))
        poses.append(info["pose"])
    tracks = [np.stack(poses)[np.stack(active)[:, i], i] for i in range(len(scenes))]
    return [Drive(time=STEP * np.arange(len(track)), poses=track) for track in tracks]


def judge_all(scenarios, drives):
    return [judge(*pair) for pair in zip(scenarios, drives, strict=True)]


def teacher(info):
    return info["teacher_action"]


@pytest.mark.parametrize(
    "scenarios", [SHIPPED, CHANGES, PACES], ids=["centering", "change", "pace"]
)
@pytest.mark.parametrize(("noise", "seed"), [("plain", 0), ("realistic", 0), ("realistic", 1)])
def test_every_shipped_scenario_can_be_passed(noise, seed, scenarios):
    results = judge_all(scenarios, drive_all(scenarios, noise, teacher, seed))
    assert {result.scenario: result.reasons for result in results if not result.passed} == {}


@pytest.mark.parametrize(("noise", "most"), [("plain", 0), ("realistic", 3)])
def test_nearly_no_shipped_scenario_is_passed_by_driving_straight_on(noise, most):
    straight = np.zeros((len(SHIPPED), 2), np.float32)
    results = judge_all(SHIPPED, drive_all(SHIPPED, noise, lambda info: straight))
    assert sum(result.passed for result in results) <= most
    assert all(result.reasons for result in results if not result.passed)


def test_a_lane_change_is_not_passed_in_the_old_lane():
    kept = [replace(scenario, desire=()) for scenario in CHANGES]
    results = judge_all(CHANGES, drive_all(kept, "plain", teacher))
    assert all("left the lane" in " ".join(result.reasons) for result in results)
    hit = [any("hit a car" in reason for reason in result.reasons) for result in results]
    assert hit == [bool(scenario.cars) for scenario in CHANGES]


def test_a_lane_change_is_not_passed_without_its_pulse():
    early, late = ([moved(scenario, time) for scenario in CHANGES] for time in (0.0, 8.0))
    results = judge_all(late, drive_all(early, "plain", teacher))
    assert all("left the lane" in " ".join(result.reasons) for result in results)


class SteeringDriver:
    """The teacher's steering, at a constant acceleration."""

    def __init__(self, acceleration=0.0):
        self.acceleration = acceleration

    def start(self, context):
        pass

    def act(self, observation, info):
        action = info["teacher_action"].copy()
        action[:, 1] = self.acceleration
        return Decision(action=action)


@pytest.mark.parametrize("scenario", PACES, ids=lambda scenario: scenario.name)
def test_no_longitudinal_scenario_is_passed_at_constant_speed(scenario):
    result = judge(scenario, drive(SteeringDriver(), scenario, WORLD, PLAIN))
    assert not result.passed
    why = "; ".join(result.reasons)
    words = ["left the lane", "lateral"] if scenario.name.startswith("curve") else ["hit a car"]
    assert any(word in why for word in (*words, "behind the car ahead")), why
    assert result.pace is not None
    if "hit a car" in why:
        assert result.reasons[0] == f"hit a car after {result.time[-1]:.1f} s"
        assert result.time[-1] < scenario.duration
    else:
        assert result.pace.progress > 1


def test_who_runs_past_a_stop_and_off_the_road_is_ended_there():
    scenario = next(scenario for scenario in PACES if scenario.name == "standing-10-left")
    result = judge(scenario, drive(StraightDriver(), scenario, WORLD, PLAIN))
    assert f"left the road after {result.time[-1]:.1f} s" in result.reasons
    assert 4 < np.abs(result.lateral).max() < 6


def test_who_stops_for_nothing_fails_for_that_alone():
    for scenario in PACES[:7]:
        result = judge(scenario, drive(SteeringDriver(-1.5), scenario, WORLD, PLAIN))
        (why,) = result.reasons
        assert "of a good driver's way (at least 80%)" in why


def test_gap_and_speed_of_a_drive_are_those_of_the_scenario():
    scenario = PACES[0]
    result = judge(scenario, drive(TeacherDriver(), scenario, WORLD, PLAIN))
    assert len(result.speed) == len(result.gap) == len(result.time)
    assert result.gap[0] == pytest.approx(40 - 4.6, abs=0.01)
    assert result.speed[[0, -1]] == pytest.approx([15, 9], abs=0.1)
    assert result.pace is not None
    assert result.pace.min_gap == pytest.approx(result.gap.min())
    assert result.pace.progress == pytest.approx(1, abs=0.01)
    (kept,) = score(TeacherDriver(), SHIPPED[:1], WORLD)
    assert kept.pace is None
    assert kept.gap[0] == math.inf
    assert set(kept.speed) == {SHIPPED[0].speed}


def moved(scenario, time):
    """Ask for the lane change at another time."""
    return replace(scenario, desire=(replace(scenario.desire[0], time=time),))


def test_a_weave_fails_for_what_it_is():
    result = judge(SHIPPED[2], drive(WeavingDriver(), SHIPPED[2], WORLD, PLAIN))
    assert any("oscillates" in reason for reason in result.reasons)
    assert result.figures is not None
    assert result.figures.mean_abs_lateral < 0.5


def test_leaving_the_road_ends_the_drive_and_is_said():
    result = judge(SHIPPED[5], drive(StraightDriver(), SHIPPED[5], WORLD, PLAIN))
    assert not result.passed
    assert f"left the road after {result.time[-1]:.1f} s" in result.reasons
    assert abs(result.lateral[-1]) > 4


@pytest.mark.parametrize("scenario", SHIPPED[:12:5], ids=lambda scenario: scenario.name)
def test_a_drive_begins_as_the_scenario_says(scenario):
    driven = drive(TeacherDriver(), scenario, WORLD, PLAIN, with_views=True)
    result = judge(scenario, driven)
    assert result.lateral[0] == pytest.approx(scenario.lateral_offset, abs=1e-6)
    s = scenario.line.locate(driven.poses[:1, :2])[0]
    assert s == pytest.approx(scenario.station, abs=0.05)
    heading = driven.poses[0, 2] - scenario.line.poses(s)[0, 2]
    assert np.rad2deg(heading) == pytest.approx(scenario.heading_offset_deg, abs=0.01)
    assert driven.time[-1] == pytest.approx(scenario.duration)
    assert len(driven.views) == len(driven.time) - 1
    measured = [view.lateral for view in driven.views]
    np.testing.assert_allclose(measured, result.lateral[:-1], atol=2e-3)


def test_the_same_seed_is_the_same_drive_and_another_is_not():
    scenario = replace(SHIPPED[9], duration=4.0)
    one, two = (drive(TeacherDriver(), scenario, WORLD, REALISTIC).poses for _ in range(2))
    np.testing.assert_array_equal(one, two)
    other = drive(TeacherDriver(), replace(scenario, seed=99), WORLD, REALISTIC).poses
    assert np.abs(one - other).max() > 1e-3


def test_a_lane_change_asked_for_is_driven_and_judged():
    scenario = replace(
        SHIPPED[9],
        road=replace(SHIPPED[9].road, lane_count=3),
        lane=1,
        desire=(Pulse(time=2.0, direction="left"),),
    )
    scene = scene_of(scenario)
    assert scene.path.desire.nonzero().flatten().tolist() == [NUM_PAST + 10]
    driven = drive(TeacherDriver(), scenario, WORLD, PLAIN)
    assert judge(scenario, driven).passed
    assert not judge(replace(scenario, desire=()), driven).passed
    arrived = scenario.line.locate(driven.poses[-1:, :2])[1][0]
    assert arrived == pytest.approx(scenario.road.lane_width, abs=0.05)


def test_a_policy_drives_the_same_whether_it_drove_before():
    driver = PolicyDriver(Policy(TINY))
    scenario = replace(SHIPPED[3], duration=2.0)
    first = drive(driver, scenario, WORLD, PLAIN, with_views=True)
    drive(driver, SHIPPED[4], WORLD, PLAIN)
    again = drive(driver, scenario, WORLD, PLAIN)
    np.testing.assert_array_equal(first.poses, again.poses)
    assert first.views[0].plan is not None
    assert np.isfinite(first.views[0].plan).all()


def test_a_score_is_a_result_each_and_a_lost_one_counts_as_failed_with_its_cause():
    (driven,) = score(TeacherDriver(), SHIPPED[:1], WORLD)
    assert driven.passed
    result = lost(SHIPPED[0], "its process died")
    assert not result.passed
    assert result.reasons == ("its process died",)
    assert result.figures is None


def test_the_road_of_a_scene_is_its_source():
    scenario = replace(SHIPPED[8], cars=(Car(lane=0, gap=20.0, speed=9.0),))
    source = scene_of(scenario).source
    assert source == RoadScene(road=scenario.road, lane=scenario.lane)
    assert isinstance(source, RoadScene)
    assert source.cars is not None
    time = STEP * (np.arange(len(source.cars)) - NUM_PAST)
    assert time[-1] == pytest.approx(scenario.duration)
    np.testing.assert_array_equal(source.cars, scenario.car_poses(time))
