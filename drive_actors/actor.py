"""The actor: environments, policies, and the newest weights they were given.

A plain class, made into a process where it is started: `ray.remote(RolloutActor).options(...)`. A
rollout is the task's return value, for a return outlives the actor and an actor's own `ray.put`
does not. The actor does not know who learns, or how many like it there are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import ray
import torch

from drive_actors.policy import Policy, PolicyConfig
from drive_actors.rollout import collect
from drive_envs.allocator import keep_freed_memory
from drive_envs.environment import DrivingVectorEnv
from drive_envs.protocol import Rollout


@dataclass
class Seat:
    """Where one rollout at a time is driven: an environment, a policy, and its weights' version."""

    env: DrivingVectorEnv
    policy: Policy
    version: int = -1

    def load(self, version: int, weights: Mapping[str, np.ndarray]) -> None:
        """Take new weights, a copy: what comes out of the object store is read-only."""
        state = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
        self.policy.load_state_dict(state)
        self.version = version


class RolloutActor:
    """Drives rollouts of `num_steps` steps with the policy it was last given.

    make_env builds an environment in the actor's own process; `index` is the actor's place in its
    pool, written into its rollouts. teacher_share: see `collect`. With several seats (and as many
    threads of Ray's, `max_concurrency`) as many rollouts are driven at once: one computes while
    another waits for a world that is elsewhere.
    """

    def __init__(
        self,
        make_env: Callable[[], DrivingVectorEnv],
        policy: PolicyConfig,
        *,
        index: int,
        num_steps: int,
        num_seats: int = 1,
        teacher_share: float = 0.0,
    ) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self.index, self.num_steps, self.teacher_share = index, num_steps, teacher_share
        self._free: SimpleQueue[Seat] = SimpleQueue()
        for _ in range(num_seats):
            self._free.put(Seat(make_env(), Policy(policy).eval()))

    def rollout(self, weights: Sequence[Any], seed: int) -> Rollout:
        """Drive one rollout.

        weights: (version, reference to a mapping of names to arrays). The reference is fetched only
        when the version is newer than the seat's own; inside a sequence, Ray leaves it alone.
        """
        version, reference = weights
        seat = self._free.get()
        try:
            if version > seat.version:
                seat.load(version, ray.get(reference))
            return collect(
                seat.env,
                seat.policy,
                version=seat.version,
                actor=self.index,
                seed=seed,
                num_steps=self.num_steps,
                teacher_share=self.teacher_share,
            )
        finally:
            self._free.put(seat)
