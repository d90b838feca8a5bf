"""The whole path from a real environment to the learner, in one process."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from drive_actors.action import log_probs
from drive_actors.policy import Policy
from drive_actors.rollout import collect
from drive_envs.environment import DrivingVectorEnv, EnvConfig
from drive_envs.reprojective import Reprojective, ReprojectiveConfig
from drive_envs.reward import RewardConfig
from drive_envs.scenes import SamplerConfig, SceneSampler
from drive_learner.batch import collate, fragments, source_of
from drive_learner.learner import Learner, LearnerConfig, OptimizerConfig
from drive_learner.losses import LossConfig

SIZE: dict[str, Any] = {"width": 32, "height": 16}
NO_LOSS = LossConfig(plan=0.0, action=0.0, policy_gradient=0.0, value=0.0, entropy=0.0)


@pytest.fixture(scope="module")
def make_env(synthetic):
    segment = synthetic.segment_from_path(synthetic.winding_path(num_rows=60), **SIZE)

    def make(num_steps, reward=None, num_scenes=4):
        return DrivingVectorEnv(
            Reprojective(ReprojectiveConfig(**SIZE)),
            SceneSampler([segment], SamplerConfig(num_steps=num_steps)),
            EnvConfig(**SIZE, reward=reward or RewardConfig()),
            num_envs=num_scenes,
        )

    return make


def batch_of(rollout, length, num_features=16):
    return collate(list(fragments(source_of(rollout, num_features), length)), length)


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 10])
def test_at_equal_weights_the_importance_ratio_is_one(make_env, tiny_policy, length):
    rollout = collect(make_env((6, 10)), tiny_policy, version=0, actor=0, seed=3, num_steps=10)
    assert not rollout.active.all()
    batch = batch_of(rollout, length)
    with torch.no_grad():
        output = tiny_policy.unroll(batch.observation, batch.noise)
    learnt = log_probs(output.action_mean[:-1], output.action_log_std[:-1], batch.action_normalized)
    difference = (learnt - batch.log_probs)[batch.active].sum(-1)
    np.testing.assert_allclose(difference.exp(), 1, atol=1e-5)


@pytest.mark.slow
def test_a_constant_reward_is_worth_its_discounted_sum(make_env, tiny_policy):
    """Reward 1, gamma 0.9, episodes cut after 5 steps: V = 1 / (1 - 0.9), if cuts bootstrap."""
    indifferent = RewardConfig(lateral=1e6, heading=1e6, jerk=1e6, ahead=1e6)
    env = make_env((5, 5), indifferent, num_scenes=2)
    config = LearnerConfig(
        num_steps=200,
        device="cpu",
        loss=replace(NO_LOSS, value=1.0, discount=0.9),
        optimizer=OptimizerConfig(learning_rate=3e-2, num_warmup_steps=5, weight_decay=0.0),
    )
    learner = Learner(tiny_policy, config)
    for seed in range(20):
        version = learner.step
        rollout = collect(env, learner.policy, version=version, actor=0, seed=seed, num_steps=5)
        assert rollout.truncated[-1].all()
        np.testing.assert_allclose(rollout.reward, 1)
        for _ in range(10):
            learner.update(batch_of(rollout, 5))
    batch = batch_of(collect(env, tiny_policy, version=0, actor=0, seed=99, num_steps=5), 5)
    with torch.no_grad():
        value = learner.policy.unroll(batch.observation, batch.noise).value
    np.testing.assert_allclose(value, 10, rtol=0.02)


@pytest.mark.slow
def test_the_reward_alone_teaches_to_drive(make_env, tiny_policy):
    """V-trace's policy gradient, no teacher: what pays moves the action that way."""
    env = make_env((5, 5), num_scenes=8)
    config = LearnerConfig(
        num_steps=60,
        device="cpu",
        loss=replace(NO_LOSS, policy_gradient=1.0, value=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-2, num_warmup_steps=0),
    )
    # Of 40 policies drawn at random 37 learn it; those that drive to the left by themselves cannot.
    torch.manual_seed(0)
    learner = Learner(Policy(tiny_policy.config), config)
    rollout = collect(env, learner.policy, version=0, actor=0, seed=0, num_steps=5)
    batch = batch_of(rollout, 5)
    batch.reward.copy_(batch.action_normalized[..., 0])  # left pays
    before = mean_action(learner.policy, batch)
    while learner.step < config.num_steps:
        learner.update(batch)
    assert mean_action(learner.policy, batch) > before + 0.1


def mean_action(policy, batch):
    with torch.no_grad():
        return policy.unroll(batch.observation, batch.noise).action_mean[..., 0].mean().item()
