"""The actor: an environment, a policy, and the newest weights it was given.

A plain class, made into a process where it is started: `ray.remote(RolloutActor).options(...)`. A
rollout is the task's return value, for a return outlives the actor and an actor's own `ray.put`
does not. The actor does not know who learns, or how many like it there are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch

from drive_actors.policy import Policy, PolicyConfig
from drive_actors.rollout import collect
from drive_envs.allocator import keep_freed_memory
from drive_envs.environment import DrivingVectorEnv
from drive_envs.protocol import Rollout


class RolloutActor:
    """Drives rollouts of `num_steps` steps with the policy it was last given.

    make_env builds the environment in the actor's own process; `index` is the actor's place in its
    pool, written into its rollouts.
    """

    def __init__(
        self,
        make_env: Callable[[], DrivingVectorEnv],
        policy: PolicyConfig,
        *,
        index: int,
        num_steps: int,
    ) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self.env = make_env()
        self.policy = Policy(policy).eval()
        self.index, self.num_steps = index, num_steps
        self.version = -1

    def rollout(self, weights: Sequence[Any], seed: int) -> Rollout:
        """Drive one rollout.

        weights: (version, reference to a mapping of names to arrays). The reference is fetched only
        when the version is newer than the actor's own; inside a sequence, Ray leaves it alone.
        """
        version, reference = weights
        if version > self.version:
            self.load(version, ray.get(reference))
        return collect(
            self.env,
            self.policy,
            version=self.version,
            actor=self.index,
            seed=seed,
            num_steps=self.num_steps,
        )

    def load(self, version: int, weights: Mapping[str, np.ndarray]) -> None:
        """Take new weights, a copy: what comes out of the object store is read-only."""
        state = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
        self.policy.load_state_dict(state)
        self.version = version
