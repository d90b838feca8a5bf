"""Who drives in closed loop: a trained policy, the path teacher, or nobody (straight on).

The teacher shows that a scenario can be passed at all, and straight on that it can be failed. Only
the policy looks at images. A driver keeps its own memory; `start` clears it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from drive_actors.action import command_from_normalized
from drive_actors.policy import Policy
from drive_actors.rollout import Memory
from drive_envs.plan import best_plan

Observation = Mapping[str, np.ndarray]
Commands = Float32[np.ndarray, "batch 2"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do now, and the plan behind it where there is one.

    action: curvature 1/m, acceleration m/s^2. plan: SI units, in the ego frame of now.
    """

    action: Commands
    plan: Float32[np.ndarray, "batch 33 15"] | None = None


@runtime_checkable
class Driver(Protocol):
    """Acts on what a `DrivingVectorEnv` returns."""

    def start(self, context: Observation) -> None:
        """Begin a drive whose 9 frames before the first one are `context` (9, batch, ...)."""
        ...

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Decision:
        """Decide on one frame (batch, ...)."""
        ...


class PolicyDriver:
    """A policy in evaluation mode: the mean of its action, no noise in its bottleneck."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.eval()
        self.memory = Memory(self.policy, noise=None)

    @torch.inference_mode()
    def start(self, context: Observation) -> None:
        batch = context["speed"].shape[1]
        frames = {key: value.flatten(0, 1) for key, value in tensors(context).items()}
        self.memory.start(frames, batch)

    @torch.inference_mode()
    def act(self, observation: Observation, info: Mapping[str, Any]) -> Decision:
        seen = tensors(observation)
        # Without noise a frame's place in the rollout is of no account.
        output = self.policy(self.memory.see(0, seen), seen["speed"])
        action = command_from_normalized(output.action_mean, seen["speed"])
        assert output.plan is not None
        return Decision(action=action.float().numpy(), plan=best_plan(output.plan).float().numpy())


class TeacherDriver:
    """The path teacher, which knows the road and the vehicle."""

    def start(self, context: Observation) -> None:
        pass

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Decision:
        return Decision(action=info["teacher_action"], plan=info["teacher_plan"])


class StraightDriver:
    """Holds the wheel straight and the speed as it is."""

    def start(self, context: Observation) -> None:
        pass

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Decision:
        return Decision(action=np.zeros((len(observation["speed"]), 2), np.float32))


def tensors(observation: Observation) -> dict[str, Tensor]:
    """Copy arrays into tensors; an environment may reuse its buffers."""
    return {key: torch.from_numpy(np.array(value)) for key, value in observation.items()}
