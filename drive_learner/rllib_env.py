"""A driving environment as RLlib wants one: scenes that begin again by themselves.

`DrivingVectorEnv` starts all scenes together, says what was seen before in `info`, and freezes a
scene that is over until the others are. RLlib knows steps only: it wants one frame after another
and a new scene in the step after the last (gymnasium's NEXT_STEP). So the frames of context are
shown one by one before the first that is acted on, with whatever is done meanwhile left aside, and
a scene that waits shows its last frame. Both are told by `acting` 0 in the observation, and are no
part of any loss.

What the teacher would do is in the observation too, for the losses of imitation: RLlib hands
nothing else from the environment to the learner. The policy does not read it. Actions are u of
`drive_actors.action`: one number where the car does not take the policy's acceleration, else two.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from drive_actors.action import command_from_normalized
from drive_envs.plan import NUM_POINTS, NUM_VALUES
from drive_envs.protocol import NUM_CONTEXT

Observation = dict[str, np.ndarray]

TEACHING = ("teacher_plan", "teacher_plan_valid", "teacher_action")


@runtime_checkable
class BatchOfScenes(Protocol):
    """`DrivingVectorEnv`, or what behaves as it does."""

    num_envs: int
    single_observation_space: spaces.Space[Any]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start new scenes, all at once."""
        ...

    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Drive one step."""
        ...


class RllibDrivingEnv(VectorEnv):
    """Scenes driven together, each step one frame of all of them; see the module.

    has_context: False leaves the context out: histories then begin empty. is_taught: whether
    observations hold what the teacher wants.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        env: BatchOfScenes,
        *,
        num_actions: int,
        is_taught: bool = False,
        has_context: bool = True,
    ) -> None:
        self.env, self.num_envs = env, env.num_envs
        self.is_taught, self.has_context = is_taught, has_context
        self.single_observation_space = observation_space(
            env.single_observation_space, is_taught=is_taught
        )
        self.single_action_space = spaces.Box(-np.inf, np.inf, (num_actions,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._coming: Iterator[Observation] = iter(())
        self._active = np.zeros(self.num_envs, bool)
        self._speed = np.zeros((self.num_envs, 1), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start new scenes; return the first frame of context."""
        super().reset(seed=seed)
        return self._begin(seed), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Drive one step, or show what comes before."""
        never = np.zeros(self.num_envs, bool)
        if (coming := next(self._coming, None)) is not None:
            return coming, np.zeros(self.num_envs), never, never.copy(), {}
        if not self._active.any():
            return self._begin(None), np.zeros(self.num_envs), never, never.copy(), {}
        was_active = self._active
        observation, reward, terminated, truncated, info = self.env.step(self._command(actions))
        self._active = was_active & ~(terminated | truncated)
        seen = self._told(observation, info, self._active)
        reward = np.where(was_active, reward, 0.0)
        return seen, reward, terminated & was_active, truncated & was_active, {}

    def _begin(self, seed: int | None) -> Observation:
        first, info = self.env.reset(seed=seed)
        context = info["context"]
        self._active = np.ones(self.num_envs, bool)
        past = [
            self._told({key: value[i] for key, value in context.items()}, info, ~self._active)
            for i in range(NUM_CONTEXT if self.has_context else 0)
        ]
        self._coming = iter([*past, self._told(first, info, self._active)])
        return next(self._coming)

    def _told(
        self, observation: Observation, info: dict[str, Any], acting: np.ndarray
    ) -> Observation:
        self._speed = observation["speed"]
        told = {**observation, "acting": acting[:, None].astype(np.float32)}
        if self.is_taught:
            told |= {key: info[key] for key in TEACHING}
            told["teacher_plan_valid"] = told["teacher_plan_valid"].astype(np.int8)
        return told

    def _command(self, actions: np.ndarray) -> np.ndarray:
        normalized = torch.zeros(self.num_envs, 2)
        normalized[:, : actions.shape[1]] = torch.as_tensor(np.asarray(actions))
        return command_from_normalized(normalized, torch.from_numpy(self._speed)).numpy()


def observation_space(seen: spaces.Space[Any], *, is_taught: bool) -> spaces.Space[Any]:
    """Return the space of one scene's observation around what its cameras see."""
    assert isinstance(seen, spaces.Dict)
    flag = spaces.Box(0.0, 1.0, (1,), np.float32)
    teaching = {
        "teacher_plan": spaces.Box(-np.inf, np.inf, (NUM_POINTS, NUM_VALUES), np.float32),
        "teacher_plan_valid": spaces.MultiBinary(NUM_POINTS),
        "teacher_action": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    }
    return spaces.Dict({**seen.spaces, **(teaching if is_taught else {}), "acting": flag})
