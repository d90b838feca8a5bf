"""An environment that takes its time and computes nothing, as a machine elsewhere would.

It has the observations and the infos of `drive_envs.environment.DrivingVectorEnv`, with images of
noise that were drawn once, and a step that sleeps. So what is measured around it is what moves the
data, not what makes it. All its scenes are truncated after `num_steps` steps, and each step earns
`reward`. Resetting and the context take no time.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from drive_envs.environment import Observation, action_space, observation_space
from drive_envs.path import NUM_DESIRES
from drive_envs.plan import NUM_POINTS, NUM_VALUES
from drive_envs.protocol import NUM_CONTEXT

NUM_DRAWN = 4  # frames that take turns
SPEED = 10.0  # m/s


@dataclass(frozen=True, kw_only=True)
class SleepingConfig:
    """width, height: of both images. step_seconds: of all scenes. num_steps: of a scene."""

    width: int = 128
    height: int = 64
    step_seconds: float = 0.0
    num_steps: int = 30
    reward: float = 1.0

    def __post_init__(self) -> None:
        if self.step_seconds < 0:
            raise ValueError(f"step_seconds must be 0 or more, got {self.step_seconds}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be 1 or more, got {self.num_steps}")


class SleepingVectorEnv(VectorEnv):
    """A batch of scenes that stand still, for `num_steps` steps."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, config: SleepingConfig, num_envs: int = 1) -> None:
        self.config, self.num_envs = config, num_envs
        self.single_observation_space = observation_space(config.width, config.height)
        self.single_action_space = action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        generator = np.random.default_rng(0)
        size = (NUM_DRAWN, num_envs, 3, config.height, config.width)
        self._images = {
            name: generator.integers(0, 256, size, np.uint8) for name in ("narrow", "wide")
        }
        self._last_action = np.zeros((num_envs, 2), np.float32)
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start over, all at once."""
        super().reset(seed=seed, options=options)
        self._last_action = np.zeros((self.num_envs, 2), np.float32)
        self._step = 0
        frame = self._observe()
        context = {key: np.stack([value] * NUM_CONTEXT) for key, value in frame.items()}
        told = {"context": context, "recording": np.arange(self.num_envs)}
        return frame, self._told(0.0) | told

    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Sleep."""
        begin = time.perf_counter()
        if self.config.step_seconds:
            time.sleep(self.config.step_seconds)
        self._last_action = np.asarray(actions, np.float32)
        self._step += 1
        over = np.full(self.num_envs, self._step >= self.config.num_steps)
        reward = np.full(self.num_envs, self.config.reward)
        info = self._told(time.perf_counter() - begin)
        return self._observe(), reward, np.zeros(self.num_envs, bool), over, info

    def _observe(self) -> Observation:
        num = self.num_envs
        desire = np.zeros((num, NUM_DESIRES), np.float32)
        desire[:, 0] = 1
        return {
            **{name: drawn[self._step % NUM_DRAWN] for name, drawn in self._images.items()},
            "speed": np.full((num, 1), SPEED, np.float32),
            "desire": desire,
            "last_action": self._last_action,
        }

    def _told(self, seconds: float) -> dict[str, Any]:
        num = self.num_envs
        return {
            "teacher_plan": np.zeros((num, NUM_POINTS, NUM_VALUES), np.float32),
            "teacher_plan_valid": np.ones((num, NUM_POINTS), bool),
            "teacher_action": np.zeros((num, 2), np.float32),
            "lateral_error": np.zeros(num, np.float32),
            "active": np.full(num, self._step < self.config.num_steps),
            "seconds": {"sleep": seconds},
        }
