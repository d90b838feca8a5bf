from dataclasses import replace

import numpy as np
import pytest
import torch

from drive_actors.action import log_probs
from drive_actors.bottleneck import noise
from drive_actors.policy import Policy
from drive_actors.rollout import collect
from drive_envs.protocol import NUM_CONTEXT

NUM_STEPS = 8


def drive(env, policy, seed=0, num_steps=NUM_STEPS, deterministic=False, teacher_share=0.0):
    return collect(
        env,
        policy,
        version=7,
        actor=2,
        seed=seed,
        num_steps=num_steps,
        deterministic=deterministic,
        teacher_share=teacher_share,
    )


def tensors(observation):
    return {key: torch.from_numpy(value) for key, value in observation.items()}


@torch.no_grad()
@pytest.mark.parametrize(("is_masked", "context"), [(False, 10), (True, 10), (False, 14)])
def test_learner_side_unroll_has_importance_ratio_one(stripes_env, tiny_policy, is_masked, context):
    tiny_policy = Policy(replace(tiny_policy.config, context=context))
    rollout = drive(stripes_env(), tiny_policy)
    frames = NUM_CONTEXT + NUM_STEPS + 1
    drawn = noise(rollout.noise_seed, frames, rollout.num_scenes, tiny_policy.config.num_features)
    needed = torch.from_numpy(rollout.needed_frames) if is_masked else None
    output = tiny_policy.unroll(tensors(rollout.observation), drawn, needed)
    density = log_probs(
        output.action_mean[:-1],
        output.action_log_std[:-1],
        torch.from_numpy(rollout.action_normalized),
    )
    log_ratio = (density - torch.from_numpy(rollout.log_probs)).sum(-1)
    ratio = log_ratio.exp()[torch.from_numpy(rollout.active)]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)


def test_what_is_recorded_is_what_the_environment_said(stripes_env, tiny_policy):
    rollout = drive(stripes_env(), tiny_policy, seed=3)
    env = stripes_env()
    observation, info = env.reset(seed=3)
    for key, value in info["context"].items():
        np.testing.assert_array_equal(rollout.observation[key][:NUM_CONTEXT], value)
    active = np.ones(env.num_envs, bool)
    for step in range(NUM_STEPS):
        np.testing.assert_array_equal(rollout.active[step], active)
        for key, value in observation.items():
            np.testing.assert_array_equal(rollout.observation[key][NUM_CONTEXT + step], value)
        for name in ("teacher_plan", "teacher_plan_valid", "teacher_action", "lateral_error"):
            recorded = getattr(rollout, name)[step]
            np.testing.assert_array_equal(recorded[active], info[name][active])
            assert not recorded[~active].any()
        observation, reward, terminated, truncated, info = env.step(rollout.action[step])
        np.testing.assert_allclose(rollout.reward[step], reward * active, rtol=1e-6)
        np.testing.assert_array_equal(rollout.terminated[step], terminated & active)
        np.testing.assert_array_equal(rollout.truncated[step], truncated & active)
        active = active & ~(terminated | truncated)
    assert not active.any()
    assert (rollout.truncated.sum(axis=0) == 1).all()
    for key, value in observation.items():
        np.testing.assert_array_equal(rollout.observation[key][-1], value)


def test_same_seed_same_rollout(stripes_env, tiny_policy):
    one, same, other = (drive(stripes_env(), tiny_policy, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.action, same.action)
    assert not np.array_equal(one.action, other.action)


def test_deterministic_driving_adds_no_noise_to_the_mean(stripes_env, tiny_policy):
    rollout = drive(stripes_env(), tiny_policy, deterministic=True)
    with torch.no_grad():
        mean = tiny_policy.unroll(tensors(rollout.observation), None).action_mean[:-1].numpy()
    active = rollout.active
    np.testing.assert_allclose(rollout.action_normalized[active], mean[active], atol=1e-5)


def test_the_teacher_drives_his_share_of_the_steps(stripes_env, tiny_policy):
    alone, shared, taught = (
        drive(stripes_env(), tiny_policy, teacher_share=share) for share in (0.0, 0.5, 1.0)
    )
    is_taught = [
        np.abs(r.action - r.teacher_action).max(axis=-1)[r.active] < 1e-5
        for r in (alone, shared, taught)
    ]
    assert not is_taught[0].any()
    assert 0.25 < is_taught[1].mean() < 0.75
    assert is_taught[2].all()
    frames = NUM_CONTEXT + NUM_STEPS + 1
    drawn = noise(shared.noise_seed, frames, shared.num_scenes, tiny_policy.config.num_features)
    with torch.no_grad():
        output = tiny_policy.unroll(tensors(shared.observation), drawn)
    u = torch.from_numpy(shared.action_normalized)
    density = log_probs(output.action_mean[:-1], output.action_log_std[:-1], u).numpy()
    np.testing.assert_allclose(
        shared.log_probs[shared.active], density[shared.active], rtol=1e-3, atol=1e-3
    )


def test_a_scene_that_leaves_the_road_is_terminated_and_one_cut_short_is_neither(
    stripes_env, tiny_policy
):
    left = drive(stripes_env(max_lateral_error=0.1), tiny_policy)
    assert left.terminated.any()
    assert not (left.terminated & left.truncated).any()
    cut = drive(stripes_env(), tiny_policy, num_steps=2)
    assert cut.active.all()
    assert not (cut.terminated | cut.truncated).any()


def test_times_and_sizes_are_accounted_for(stripes_env, tiny_policy):
    rollout = drive(stripes_env(), tiny_policy)
    seconds = rollout.seconds
    assert seconds["env"] + seconds["policy"] <= seconds["total"]
    assert 0 < seconds["env/render"] <= seconds["env"]
    assert rollout.num_active_steps == rollout.active.sum() < NUM_STEPS * rollout.num_scenes
    assert rollout.num_bytes > rollout.observation["narrow"].nbytes
    assert all(array.flags["C_CONTIGUOUS"] for array in rollout.observation.values())


def test_no_steps_are_refused(stripes_env, tiny_policy):
    with pytest.raises(ValueError, match="num_steps"):
        drive(stripes_env(), tiny_policy, num_steps=0)
