import itertools
import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import drive_envs.registration  # noqa: F401 (it makes the ids known)
from drive_envs.blank import Blank
from drive_envs.environment import DrivingEnv, DrivingVectorEnv, EnvConfig
from drive_envs.path import RecordedPath
from drive_envs.photometry import PhotometryConfig
from drive_envs.plan import STEP, action_from_plan
from drive_envs.reprojective import Reprojective
from drive_envs.scenes import SamplerConfig, Scene, SceneSampler
from drive_envs.segments import sample_path, write_segments
from drive_envs.vehicle import preset

PLAIN = EnvConfig(vehicle=preset("plain"))


@pytest.fixture(scope="module")
def sampler(synthetic_segment):
    return SceneSampler([synthetic_segment])


@pytest.fixture(scope="module")
def scenes(synthetic):
    """Four quite different drives, without images."""
    paths = [
        synthetic.winding_path(),
        synthetic.arc_path(8.0, 0.03, desire=[(33, 1)]),
        synthetic.arc_path(20.0, -0.003),
        synthetic.arc_path(15.0, 0.0),
    ]
    offsets = [(0.5, 0.02), (-0.8, 0.0), (0.0, -0.03), (1.0, 0.05)]
    return [
        Scene(
            path=path,
            start=20 + i,
            num_steps=20 + 2 * i,
            source=None,
            lateral_offset=offsets[i][0],
            heading_offset=offsets[i][1],
        )
        for i, path in enumerate(paths)
    ]


def blank(scenes, config=None):
    """Drive these scenes, in their order, in a world without images."""
    given = itertools.cycle(scenes)
    return DrivingVectorEnv(Blank(), lambda rng: next(given), config or PLAIN, len(scenes))


def follow(env, info, policy=lambda info: info["teacher_action"]):
    steps = []
    while info["active"].any():
        steps.append(env.step(policy(info)))
        info = steps[-1][-1]
    return steps


def equal(one, two):
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(
            equal(one[k], two[k]) for k in one if k != "seconds"
        )
    return np.array_equal(one, two)


@pytest.fixture(scope="module")
def file(synthetic_segment, tmp_path_factory):
    path = tmp_path_factory.mktemp("segments") / "drive.parquet"
    write_segments(path, [synthetic_segment])
    return path


def test_check_env(file, monkeypatch):
    monkeypatch.setattr(gymnasium.logger, "warn", refuse_but_normalization)
    check_env(gymnasium.make("drive/Reprojective-v0", segments=file).unwrapped)


# Actions are in SI units, not normalised: that one piece of advice is not followed.
def refuse_but_normalization(message, *args, **kwargs):
    assert "normalized" in message, message


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_make_by_id(file, render_mode):
    env = gymnasium.make("drive/Reprojective-v0", segments=file, render_mode=render_mode)
    observation, info = env.reset(seed=3)
    assert observation in env.observation_space
    picture = env.render() if render_mode else observation["wide"].transpose(1, 2, 0)
    assert (picture == observation["wide"].transpose(1, 2, 0)).all()
    observation, reward, terminated, truncated, info = env.step(info["teacher_action"])
    assert observation in env.observation_space
    assert 0 < float(reward) <= 1
    assert not terminated
    assert not truncated
    env.close()


def test_make_vec_by_id(file):
    env = gymnasium.make_vec(
        "drive/Reprojective-v0", 3, vectorization_mode="vector_entry_point", segments=file
    )
    observation, _ = env.reset(seed=3)
    assert observation in env.observation_space
    assert env.metadata["autoreset_mode"] == AutoresetMode.DISABLED


IN_METADRIVE = """
import gymnasium, torch, drive_envs.registration
from gymnasium.utils.env_checker import check_env
torch.set_num_threads(1)
env = gymnasium.make("drive/MetaDrive-v0")
env.unwrapped.spec = None  # or it would make a second one, of which there can be none
check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
_, info = env.reset(seed=0)
over, errors = False, []
while not over:
    _, _, terminated, over, info = env.step(info["teacher_action"])
    assert not terminated
    errors.append(abs(float(info["lateral_error"])))
env.close()
print("last error", max(errors[-15:]))
"""


@pytest.mark.slow
def test_metadrive_by_id_is_an_environment_that_the_teacher_can_drive():
    """In a process of its own: MetaDrive is one a process."""
    program = [sys.executable, "-W", "ignore", "-c", IN_METADRIVE]
    done = subprocess.run(program, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("last error")[1]) < 0.3


def test_closing_one_environment_closes_its_world_but_a_batch_shares_it(scenes):
    class Open(Blank):
        is_open = True

        def close(self):
            self.is_open = False

    world = Open()
    DrivingVectorEnv(world, lambda rng: scenes[0], PLAIN).close()
    assert world.is_open
    DrivingEnv(world, lambda rng: scenes[0], PLAIN).close()
    assert not world.is_open
    DrivingEnv(Blank(), lambda rng: scenes[0], PLAIN).close()


@pytest.mark.skipif(not sample_path().exists(), reason="the sample is not recorded yet")
def test_the_shipped_sample_is_driven():
    env = gymnasium.make("drive/Reprojective-v0")
    _, info = env.reset(seed=0)
    over = False
    while not over:
        _, _, terminated, over, info = env.step(info["teacher_action"])
        assert not terminated
    assert abs(info["lateral_error"]) < 0.3


@pytest.mark.parametrize("vehicle", ["plain", "training", "realistic"])
def test_same_seed_same_episode(sampler, vehicle):
    env = DrivingVectorEnv(Reprojective(), sampler, EnvConfig(vehicle=preset(vehicle)), num_envs=3)
    episodes = []
    for seed in (5, 5, 6):
        observation, info = env.reset(seed=seed)
        steps = [env.step(0.9 * info["teacher_action"]) for _ in range(4)]
        episodes.append([(observation, info), *steps])
    for one, two in zip(episodes[0], episodes[1], strict=True):
        assert all(equal(a, b) for a, b in zip(one, two, strict=True))
    assert not equal(episodes[0][0][0], episodes[2][0][0])
    # Without a seed the next episode is another one.
    assert not equal(env.reset()[0], episodes[2][0][0])


def test_row_of_the_batch_equals_the_scene_alone(scenes):
    together = blank(scenes)
    observation, info = together.reset()
    batch = [(observation, info), *follow(together, info)]
    for i, scene in enumerate(scenes):
        alone = DrivingEnv(Blank(), lambda rng: scenes[0], PLAIN)
        observation, info = alone.reset(options={"scenes": [scene]})
        steps: list[tuple] = [(observation, info)]
        while info["active"]:
            steps.append(alone.step(info["teacher_action"]))
            info = steps[-1][-1]
        assert len(steps) == 1 + scene.num_steps
        for one, several in zip(steps, batch, strict=False):
            for key, value in one[0].items():
                np.testing.assert_allclose(value, several[0][key][i], rtol=1e-5, atol=1e-6)
            for key, value in one[-1].items():
                if key != "context":
                    np.testing.assert_allclose(value, several[-1][key][i], rtol=1e-4, atol=1e-5)


def test_drawn_scene_does_not_depend_on_the_batch(sampler):
    one = DrivingVectorEnv(Reprojective(), sampler, num_envs=1)
    three = DrivingVectorEnv(Reprojective(), sampler, num_envs=3)
    alone, in_batch = one.reset(seed=11)[0], three.reset(seed=11)[0]
    for key, value in alone.items():
        assert np.array_equal(value[0], in_batch[key][0])


def test_photometry_is_of_the_scene_and_changes_only_what_is_seen(sampler):
    grainy = PhotometryConfig(exposure=(0.7, 0.9), noise=(5.0, 8.0))
    plain, one, three = (
        DrivingVectorEnv(Reprojective(), sampler, EnvConfig(photometry=photometry), num_envs=num)
        for photometry, num in ((PhotometryConfig(), 3), (grainy, 1), (grainy, 3))
    )
    clean, alone, batch = (env.reset(seed=11) for env in (plain, one, three))
    assert equal(alone[1]["pose"][0], batch[1]["pose"][0])
    for name in ("narrow", "wide"):
        assert np.array_equal(alone[0][name][0], batch[0][name][0])
        ratio = batch[0][name].mean((1, 2, 3)) / clean[0][name].mean((1, 2, 3))
        assert ((ratio > 0.68) & (ratio < 0.92)).all()
    for key in ("speed", "last_action"):
        assert np.array_equal(clean[0][key], batch[0][key])
    assert np.array_equal(clean[1]["teacher_plan"], batch[1]["teacher_plan"])


def test_truncated_at_the_anchor_and_frozen_afterwards(scenes):
    env = blank(scenes)
    _, info = env.reset()
    steps = follow(env, info)
    for i, scene in enumerate(scenes):
        truncated = [bool(step[3][i]) for step in steps]
        assert truncated.index(True) == scene.num_steps - 1
        assert sum(truncated) == 1
        assert not any(step[2][i] for step in steps)
        after = steps[scene.num_steps :]
        for observation, reward, _, _, info in after:
            assert reward[i] == 0
            assert not info["active"][i]
            last_observation, *_, last_info = steps[scene.num_steps - 1]
            for key in ("speed", "last_action", "narrow"):
                assert np.array_equal(observation[key][i], last_observation[key][i])
            assert np.array_equal(info["pose"][i], last_info["pose"][i])
            assert np.array_equal(info["teacher_plan"][i], last_info["teacher_plan"][i])
    frozen = env.step(np.zeros((4, 2), np.float32))
    assert frozen[1].tolist() == [0.0] * 4
    assert not frozen[-1]["active"].any()


def test_leaving_the_road_terminates_and_does_not_truncate(scenes):
    env = blank(scenes)
    _, info = env.reset()
    away = follow(env, info, lambda info: np.full((4, 2), 0.02, np.float32))
    for i in range(4):
        terminated = [bool(step[2][i]) for step in away]
        assert sum(terminated) + sum(bool(step[3][i]) for step in away) == 1
        if any(terminated):
            step = away[terminated.index(True)]
            assert abs(step[-1]["lateral_error"][i]) > 4
            assert step[1][i] == 0
    assert sum(bool(step[2][3]) for step in away) == 1


def test_who_is_late_in_a_lane_change_may_be_farther_off(synthetic):
    paths = [synthetic.arc_path(15.0, 0.0, desire=desire) for desire in ((), [(22, 1)])]
    scenes = [Scene(path=path, start=20, num_steps=30, source=None) for path in paths]
    env = blank(scenes, EnvConfig(max_lateral_error=2.5, lane_change_margin=1.5))
    _, info = env.reset()
    steps = follow(env, info, lambda info: np.full((2, 2), 0.005, np.float32))
    farthest = np.abs([step[-1]["lateral_error"] for step in steps]).max(axis=0)
    assert np.stack([step[2] for step in steps]).any(axis=0).all()
    # In one step it goes some 0.7 m to the side.
    assert 2.5 < farthest[0] < 3.2
    assert 4.0 < farthest[1] < 4.9


def test_context_is_displaced_as_the_start_is_and_leads_into_it(scenes):
    env = blank(scenes)
    observation, info = env.reset()
    context = info["context"]
    assert context["narrow"].shape == (9, 4, 3, 64, 128)
    path = scenes[3].path  # straight, 15 m/s, offsets 1 m and 0.05 rad
    expected = path.poses[scenes[3].start, :2].numpy() + np.array([0.0, 1.0])
    assert info["pose"][3] == pytest.approx([*expected, 0.05])
    for i in (1, 2):  # circles
        radius_factor = 1 - scenes[i].path.curvature[20].item() * scenes[i].lateral_offset
        speed = scenes[i].path.speed[20].item() * radius_factor
        assert context["speed"][:, i, 0] == pytest.approx(speed, rel=1e-3)
        assert observation["speed"][i, 0] == pytest.approx(speed, rel=1e-2)
        curvature = scenes[i].path.curvature[20].item() / radius_factor
        assert context["last_action"][:, i, 0] == pytest.approx(curvature, rel=1e-3)
        assert observation["last_action"][i, 0] == pytest.approx(curvature, rel=1e-3)


@pytest.mark.parametrize("vehicle", ["plain", "realistic"])
def test_context_commands_would_have_made_the_car_drive_the_recording(synthetic, vehicle):
    """The car that took them steers as the path bends when the scene starts, wind included."""
    path = synthetic.winding_path()
    scene = Scene(path=path, start=40, num_steps=30, source=None)
    env = blank([scene], EnvConfig(vehicle=preset(vehicle)))
    _, info = env.reset(seed=1)
    error = [step[-1]["lateral_error"][0] for step in follow(env, info)]
    assert np.abs(error).max() < 0.1


def test_desire_is_told_from_its_frame_on(scenes):
    env = blank(scenes)
    _, info = env.reset()
    seen = np.stack([step[0]["desire"][1] for step in follow(env, info)][:22])
    # Row 33 of a scene that starts at row 21 is seen after the twelfth step.
    assert (seen[:11] == [1, 0, 0]).all()
    assert seen[11].tolist() == [0, 1, 0]
    np.testing.assert_allclose(seen[11:, 1], 1 - np.arange(len(seen) - 11) / 30, atol=1e-6)
    np.testing.assert_allclose(seen.sum(axis=1), 1, atol=1e-6)


def test_recorded_longitudinal_keeps_the_recorded_station(scenes):
    env = blank(scenes)
    _, info = env.reset()
    steps = follow(env, info)[:20]
    for step, (observation, *_, info) in enumerate(steps, start=1):
        for i, scene in enumerate(scenes):
            recorded = scene.path.poses[scene.start + step]
            dx, dy = info["pose"][i, :2] - recorded[:2].numpy()
            yaw = recorded[2].item()
            assert abs(math.cos(yaw) * dx + math.sin(yaw) * dy) < 0.05
        # On the inside of a curve it is slower than the recorded car.
        curved = scenes[1].path.curvature[20].item() * info["lateral_error"][1]
        assert observation["speed"][1, 0] == pytest.approx(8 * (1 - curved), rel=0.01)


def test_policy_longitudinal_obeys_and_the_teacher_catches_up(scenes):
    env = blank(scenes, EnvConfig(vehicle=preset("plain"), longitudinal="policy"))
    observation, info = env.reset()
    before = observation["speed"].copy()
    observation, *_ = env.step(np.tile(np.array([0, 1], np.float32), (4, 1)))
    assert observation["speed"] == pytest.approx(before + STEP, rel=1e-5)
    _, info = env.reset()
    follow(env, info)
    end = env.unwrapped._paths.station[torch.arange(4), 9 + torch.arange(20, 28, 2)]
    assert (env.unwrapped._offset.station - end).abs().max() < 0.3


def test_action_of_the_teacher_agrees_with_its_plan(scenes):
    env = blank(scenes)
    _, info = env.reset()
    steps, difference = follow(env, info)[:18], np.zeros(4)
    for *_, info in steps:
        plan = action_from_plan(torch.from_numpy(info["teacher_plan"]), look_ahead=STEP / 2)
        speed = np.array([12.0, 8.0, 20.0, 15.0])
        difference = (plan[:, 0].numpy() - info["teacher_action"][:, 0]) * speed**2
        assert np.abs(difference).max() < 0.5
    assert np.abs(difference).max() < 0.1


def test_turning_the_world_changes_nothing_that_is_seen(synthetic):
    def episode(path):
        scene = Scene(path=path, start=20, num_steps=20, source=None, lateral_offset=0.7)
        env = blank([scene], EnvConfig(vehicle=preset("realistic")))
        observation, info = env.reset(seed=4)
        return [(observation, info), *follow(env, info)]

    path = synthetic.winding_path()
    x, y, yaw = path.poses.unbind(-1)
    cos, sin = math.cos(2.0), math.sin(2.0)
    turned = torch.stack([cos * x - sin * y - 60, sin * x + cos * y + 9, yaw + 2.0], -1)
    other = RecordedPath(time=path.time, poses=turned, speed=path.speed, desire=path.desire)
    for one, two in zip(episode(path), episode(other), strict=True):
        for key in ("speed", "last_action"):
            np.testing.assert_allclose(one[0][key], two[0][key], atol=1e-5)
        for key in ("teacher_plan", "teacher_action", "lateral_error", "heading_error"):
            np.testing.assert_allclose(one[-1][key], two[-1][key], atol=1e-4)


def test_seconds_tell_the_phases(sampler):
    env = DrivingVectorEnv(Reprojective(), sampler, num_envs=2)
    _, info = env.reset(seed=0)
    assert set(info["seconds"]) == {"reset", "render", "decode", "teacher"}
    *_, info = env.step(info["teacher_action"])
    assert set(info["seconds"]) == {"vehicle", "render", "decode", "teacher"}
    assert all(seconds >= 0 for seconds in info["seconds"].values())
    assert info["seconds"]["decode"] <= info["seconds"]["render"]


@pytest.mark.parametrize(
    "actions",
    [np.zeros((3, 2)), np.zeros(2), np.full((4, 2), np.nan)],
    ids=["batch", "flat", "nan"],
)
def test_wrong_actions_are_refused(scenes, actions):
    env = blank(scenes)
    env.reset()
    with pytest.raises(ValueError, match=r"4 scenes need \(4, 2\) finite numbers"):
        env.step(actions)


def test_wrong_sizes_and_counts_are_named(scenes, sampler):
    with pytest.raises(ValueError, match=r"camera 'narrow' is 256 x 128, but .* 128 x 64"):
        DrivingVectorEnv(Blank(256, 128), sampler)
    with pytest.raises(ValueError, match="1 scenes were given to 4 environments"):
        blank(scenes).reset(options={"scenes": scenes[:1]})
    with pytest.raises(ValueError, match="max_lateral_error is 0"):
        EnvConfig(max_lateral_error=0.0)
    with pytest.raises(ValueError, match="lane_change_margin is -1"):
        EnvConfig(lane_change_margin=-1.0)


def test_reset_refuses_options_that_it_would_ignore(scenes):
    env = blank(scenes)
    with pytest.raises(ValueError, match="reset has no option 'scene', 'speed'; known are scenes"):
        env.reset(options={"scene": scenes, "speed": 3})
    with pytest.raises(ValueError, match=r"'reset_mask'\] cannot be followed: all scenes of a"):
        env.reset(options={"reset_mask": np.ones(4, bool)})
    alone = DrivingEnv(Blank(), lambda rng: scenes[0], PLAIN)
    with pytest.raises(ValueError, match="reset has no option 'Scenes'"):
        alone.reset(options={"Scenes": scenes[:1]})
    assert equal(env.reset(seed=1, options={})[0], env.reset(seed=1, options=None)[0])


def test_sampler_config_is_what_the_environment_draws_from(synthetic_segment):
    config = SamplerConfig(num_steps=(5, 5), share_without_offset=1.0)
    env = DrivingVectorEnv(Blank(), SceneSampler([synthetic_segment], config), PLAIN, num_envs=4)
    _, info = env.reset(seed=0)
    assert np.abs(info["lateral_error"]).max() < 1e-3
    assert len(follow(env, info)) == 5
