"""Driving in a world model: the same environment, and drives that outlive a lost session."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from drive_envs.environment import DrivingEnv, DrivingVectorEnv, EnvConfig
from drive_envs.learned import Learned, LearnedConfig
from drive_envs.protocol import NoRoomError, SessionLostError
from drive_envs.reprojective import Reprojective, ReprojectiveConfig
from drive_envs.scenes import SamplerConfig, SceneSampler
from tests.world_model.conftest import CONFIG, InProcess, Now

SIZE: dict[str, Any] = {"width": CONFIG.width, "height": CONFIG.height}
SAMPLER = SamplerConfig(num_steps=(6, 8), rows_after=CONFIG.num_anchors)


@pytest.fixture
def connection(make_engine):
    return InProcess(make_engine())


@pytest.fixture
def make_world(connection):
    def make(**options):
        recorded = Reprojective(ReprojectiveConfig(**SIZE))
        return Learned(connection, recorded, LearnedConfig(num_anchors=2, **options))

    return make


@pytest.fixture
def make_env(make_world, synthetic_segment):
    def make(num_envs=2, **options):
        sampler = SceneSampler([synthetic_segment], SAMPLER)
        return DrivingVectorEnv(make_world(**options), sampler, EnvConfig(**SIZE), num_envs)

    return make


def drive(env, num_steps=5):
    env.reset(seed=3)
    return [env.step(np.zeros((env.num_envs, 2), np.float32))[0] for _ in range(num_steps)]


def assert_alike(one, other, tolerance):
    for name in ("narrow", "wide"):
        difference = np.abs(one[name].astype(int) - other[name])
        assert difference.mean() <= tolerance, name


@pytest.mark.filterwarnings("ignore:.*For Box action spaces")
def test_it_is_an_environment_like_the_others(make_world, synthetic_segment):
    env = DrivingEnv(make_world(), SceneSampler([synthetic_segment], SAMPLER), EnvConfig(**SIZE))
    check_env(env, skip_render_check=True)


def test_the_context_is_recorded_and_the_rest_is_generated(make_env, connection, synthetic_segment):
    env = make_env()
    observation, info = env.reset(seed=3)
    recorded = Reprojective(ReprojectiveConfig(**SIZE))
    other = DrivingVectorEnv(
        recorded, SceneSampler([synthetic_segment], SAMPLER), EnvConfig(**SIZE), 2
    )
    expected, expected_info = other.reset(seed=3)
    np.testing.assert_array_equal(observation["wide"], expected["wide"])
    np.testing.assert_array_equal(info["context"]["wide"], expected_info["context"]["wide"])
    assert connection.engine.counters.frames == 0
    env.step(np.zeros((2, 2), np.float32))
    assert connection.engine.counters.frames == 2
    assert np.abs(env.world.plan).max() > 0


def test_the_same_seed_shows_the_same(make_env):
    first, second = drive(make_env()), drive(make_env())
    for one, other in zip(first, second, strict=True):
        assert_alike(one, other, 0)


def test_a_lost_answer_is_asked_for_again(make_env, connection):
    expected = drive(make_env())
    connection.trouble = {connection.num_steps + 2: "answer lost"}
    found = drive(make_env())
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other, 0)
    assert connection.engine.counters.repeated == 1


def test_a_lost_session_is_opened_anew_and_the_drive_goes_on(make_env, connection):
    expected = drive(make_env())
    connection.trouble = {connection.num_steps + 4: "forgotten"}
    env = make_env()
    found = drive(env)
    # What was generated is now context, and that is all that has changed: pixels are rounded.
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert_alike(one, other, 0)
    for one, other in zip(found[3:], expected[3:], strict=True):
        assert_alike(one, other, 3)
    assert env.world.num_reopened == connection.engine.counters.reopened == 1


def test_patience_ends(make_env, connection, monkeypatch):
    env = make_env(patience=0.3)
    env.reset(seed=0)
    monkeypatch.setattr(connection, "step", lambda _: Now(lambda: SessionLostError("nobody")))
    with pytest.raises(SessionLostError, match="nobody"):
        env.step(np.zeros((2, 2), np.float32))


def test_no_room_is_said_at_once(make_env):
    with pytest.raises(NoRoomError, match="capacity"):
        make_env(num_envs=9).reset(seed=0)


def test_its_places_are_given_back(make_env, connection):
    env = make_env()
    drive(env)
    drive(env)
    assert len(connection.engine.sessions) == 1
    env.world.close()
    assert connection.engine.num_free == 8


def test_a_scene_without_frames_after_its_end(make_world, synthetic_segment):
    rows_missing = SamplerConfig(num_steps=(45, 45))
    rng = np.random.default_rng(0)
    scene = max(
        (SceneSampler([synthetic_segment], rows_missing)(rng) for _ in range(60)),
        key=lambda scene: scene.start,
    )
    with pytest.raises(ValueError, match=r"set sampler.rows_after=2"):
        make_world().reset([scene])


def test_scenes_that_are_over_keep_their_last_image(make_world, synthetic_segment):
    world = make_world()
    sampler = SceneSampler([synthetic_segment], SAMPLER)
    scenes = [sampler(np.random.default_rng(seed)) for seed in range(2)]
    world.reset(scenes)
    poses = torch.stack([scene.path.poses[scene.start] for scene in scenes])
    both = torch.ones(2, dtype=torch.bool)
    for step in range(-9, 1):
        world.render(poses, step, both)
    first = world.render(poses, 1, both)
    second = world.render(poses, 2, torch.tensor([True, False]))
    np.testing.assert_array_equal(first["wide"][1], second["wide"][1])
    assert np.abs(first["wide"][0].astype(int) - second["wide"][0]).max() > 0


def test_the_plan_teacher_is_what_the_world_plans(make_world, synthetic_segment):
    sampler = SceneSampler([synthetic_segment], SAMPLER)
    world = make_world()
    env = DrivingVectorEnv(world, sampler, EnvConfig(**SIZE, teacher="plan"), 2)
    _, info = env.reset(seed=0)
    np.testing.assert_allclose(info["teacher_plan"], world.plan)
    assert np.abs(info["teacher_plan"]).max() > 0
    *_, info = env.step(np.zeros((2, 2), np.float32))
    np.testing.assert_allclose(info["teacher_plan"], world.plan)
    assert info["teacher_plan_valid"].all()
    assert np.isfinite(info["teacher_action"]).all()


def test_recordings_can_be_driven_with_the_plan_teacher(make_env, make_world, synthetic_segment):
    sampler = SceneSampler([synthetic_segment], SAMPLER)
    options = EnvConfig(**SIZE, teacher="plan")
    world = make_world(is_shown=False)
    env = DrivingVectorEnv(world, sampler, options, 2)
    recorded = DrivingVectorEnv(
        Reprojective(ReprojectiveConfig(**SIZE)), sampler, EnvConfig(**SIZE), 2
    )
    env.reset(seed=0)
    recorded.reset(seed=0)
    action = np.full((2, 2), [0.01, 0.0], np.float32)
    for _ in range(3):
        seen, *_, info = env.step(action)
        expected, *_ = recorded.step(action)
        np.testing.assert_array_equal(seen["wide"], expected["wide"])
        np.testing.assert_allclose(info["teacher_plan"], world.plan)


def test_a_world_that_does_not_plan(synthetic_segment):
    recorded = Reprojective(ReprojectiveConfig(**SIZE))
    with pytest.raises(ValueError, match="a Reprojective world does not plan"):
        DrivingVectorEnv(
            recorded, SceneSampler([synthetic_segment]), EnvConfig(**SIZE, teacher="plan")
        )
