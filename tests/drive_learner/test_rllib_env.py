"""The environment as RLlib sees it: every frame of ours in order, and what is no step is marked."""

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from drive_actors.action import command_from_normalized
from drive_envs.environment import Observation
from drive_envs.protocol import NUM_CONTEXT
from drive_envs.sleeping import SleepingConfig, SleepingVectorEnv
from drive_learner.rllib_env import RllibDrivingEnv

CONFIG = SleepingConfig(width=16, height=16, num_steps=3)
ACTION = np.array([[0.5], [-0.5]], np.float32)


class EndsEarly(SleepingVectorEnv):
    """The first scene leaves the road in its first step."""

    def step(self, actions: np.ndarray):
        observation, reward, left, over, info = super().step(actions)
        left[0] = self._step == 1
        over[0] = False
        return observation, reward, left, over, info


def rolled(
    env: RllibDrivingEnv, num: int
) -> tuple[list[Observation], np.ndarray, np.ndarray, np.ndarray]:
    first, _ = env.reset(seed=0)
    seen, rewards, terminated, truncated = [first], [], [], []
    for _ in range(num):
        observation, reward, left, over, _ = env.step(ACTION)
        seen.append(observation)
        rewards.append(reward)
        terminated.append(left)
        truncated.append(over)
    return seen, np.array(rewards), np.array(terminated), np.array(truncated)


def test_context_comes_first_then_steps_then_a_new_scene() -> None:
    env = RllibDrivingEnv(SleepingVectorEnv(CONFIG, 2), num_actions=1)
    seen, rewards, terminated, truncated = rolled(env, NUM_CONTEXT + 3 + 1)
    acting = np.array([frame["acting"][:, 0] for frame in seen])
    steps = slice(NUM_CONTEXT, NUM_CONTEXT + 3)
    assert (acting[:NUM_CONTEXT] == 0).all()
    assert (acting[steps] == 1).all()
    assert (acting[NUM_CONTEXT + 3 :] == 0).all()
    assert (rewards[steps] == 1).all()
    assert rewards.sum() == 6
    assert not terminated.any()
    assert truncated.sum() == 2
    assert truncated[NUM_CONTEXT + 2].all()


def test_a_scene_that_is_over_early_waits_for_the_others_without_reward() -> None:
    env = RllibDrivingEnv(EndsEarly(CONFIG, 2), num_actions=1)
    seen, rewards, terminated, truncated = rolled(env, NUM_CONTEXT + 4)
    acting = np.array([frame["acting"][:, 0] for frame in seen])
    assert acting[NUM_CONTEXT:].T.tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert rewards.sum(axis=0).tolist() == [1, 3]
    assert terminated.sum(axis=0).tolist() == [1, 0]
    assert truncated.sum(axis=0).tolist() == [0, 1]


def test_without_context_the_first_frame_is_acted_on() -> None:
    env = RllibDrivingEnv(SleepingVectorEnv(CONFIG, 2), num_actions=1, has_context=False)
    seen, rewards, _, truncated = rolled(env, 4)
    assert [frame["acting"][0, 0] for frame in seen] == [1, 1, 1, 0, 1]
    assert rewards[:, 0].tolist() == [1, 1, 1, 0]
    assert truncated[:, 0].tolist() == [False, False, True, False]


def test_actions_are_accelerations_and_the_car_is_sent_commands() -> None:
    env = RllibDrivingEnv(SleepingVectorEnv(CONFIG, 2), num_actions=1, has_context=False)
    env.reset(seed=0)
    seen, *_ = env.step(ACTION)
    u = torch.tensor([[0.5, 0.0], [-0.5, 0.0]])
    expected = command_from_normalized(u, torch.full((2, 1), 10.0)).numpy()
    np.testing.assert_allclose(seen["last_action"], expected)


def test_observations_are_of_the_space_that_is_said() -> None:
    env = RllibDrivingEnv(SleepingVectorEnv(CONFIG, 2), num_actions=2, is_taught=True)
    assert isinstance(env, gym.vector.VectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    seen, *_ = rolled(env, 0)
    assert env.observation_space.contains(seen[0])
