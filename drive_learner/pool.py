"""The elastic pool of rollout actors: who is driving, who is lost, and with which weights.

The pool asks Ray for `max_actors` actors at once. Those that fit are placed, the others wait in
Ray's own queue: a node that joins is used, the autoscaler sees the demand, and a node that leaves
takes its actors back into the queue. An actor is given work only after it has answered, and again
only after it has answered, when it was lost: a rollout is never sent into the void. What it was
driving when it died is reported as lost and not driven again, for its weights are old by then.

Weights are put into the object store once a publish; an actor gets the version and a reference that
it fetches only when newer. An error that an actor raises itself is not a loss: it is raised here.
The pool does not know what a rollout is for.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import ray
from ray import ObjectRef
from ray.exceptions import (
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)
from torch import Tensor

from drive_envs.protocol import Rollout

log = logging.getLogger(__name__)

LOST = (RayActorError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """How many actors, and what one of them takes.

    min_actors: the run begins once so many have answered, and fails after `patience` seconds
    without them. max_actors: as many as the cluster may give. in_flight: rollouts an actor has been
    asked for at once; with 1 it always begins with the newest weights, with 2 it never waits.
    seats: rollouts that it drives at once, each in scenes of its own: with 2, one computes while
    the other waits for a world model.
    num_cpus, num_gpus, resources: of one actor, as Ray counts them, fractions allowed.
    """

    min_actors: int = 1
    max_actors: int = 1
    in_flight: int = 1
    seats: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    patience: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_actors <= self.max_actors:
            raise ValueError(
                f"actors need 1 <= min_actors <= max_actors, got {self.min_actors} "
                f"and {self.max_actors}"
            )
        if not 1 <= self.in_flight <= 2:
            raise ValueError(f"actors in_flight must be 1 or 2, got {self.in_flight}")
        if not 1 <= self.seats <= 4:
            raise ValueError(f"actors seats must be 1 to 4, got {self.seats}")

    @property
    def options(self) -> dict[str, Any]:
        """Options of the Ray actor: restarted for ever, its rollouts never run twice."""
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "resources": dict(self.resources) or None,
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": self.seats,
        }


class Task(NamedTuple):
    """What an actor has been asked for: a sign of life, or a rollout."""

    actor: int
    is_rollout: bool


class Lost(NamedTuple):
    """A rollout that will not arrive: what it is counted as, and what Ray calls it."""

    actor: int
    cause: Literal["actor_lost", "actor_preempted"]
    reason: str


def cause_of(error: Exception) -> Literal["actor_lost", "actor_preempted"]:
    """Tell a machine that was taken back after a warning, as spot machines are, from others."""
    is_preempted = isinstance(error, RayActorError) and error.preempted
    return "actor_preempted" if is_preempted else "actor_lost"


class ActorPool:
    """`max_actors` handles of actors with `rollout(weights, seed) -> Rollout`.

    make_actor(index) returns a started Ray actor. It is called from this process, once an index.
    """

    def __init__(self, make_actor: Callable[[int], Any], config: PoolConfig) -> None:
        self.config = config
        self.num_restarts = 0
        self._weights: list[Any] = []
        self._actors = [make_actor(index) for index in range(config.max_actors)]
        self._tasks: dict[ObjectRef, Task] = {}
        self._answered = [False] * config.max_actors
        for index in range(config.max_actors):
            self._ask_for_life(index)

    @property
    def num_actors(self) -> int:
        """Actors that are alive, as far as the pool knows."""
        return sum(self._answered)

    def _ask_for_life(self, index: int) -> None:
        self._answered[index] = False
        self._tasks[self._actors[index].__ray_ready__.remote()] = Task(index, is_rollout=False)

    def wait_until_ready(self) -> None:
        """Wait for `min_actors`; ValueError when the cluster has no room for them."""
        waiting = [ref for ref, task in self._tasks.items() if not task.is_rollout]
        num = self.config.min_actors
        ready, _ = ray.wait(waiting, num_returns=num, timeout=self.config.patience)
        if len(ready) < num:
            raise ValueError(
                f"only {len(ready)} of at least {num} actors could be started within "
                f"{self.config.patience:g} s: each needs {self.config.options}, "
                f"the cluster has {ray.cluster_resources()}; where nodes are still starting raise "
                "actors.patience, else lower actors.num_cpus or min_actors"
            )

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Make these the weights that the next rollouts begin with."""
        reference = ray.put({name: value.numpy() for name, value in weights.items()})
        # In a list, or Ray would fetch it before each call; one assignment, for it crosses threads.
        self._weights = [version, reference]

    def start(self, seeds: Sequence[int]) -> int:
        """Ask idle actors for at most one rollout a seed; return how many were asked for."""
        load = [0] * len(self._actors)
        for task in self._tasks.values():
            load[task.actor] += task.is_rollout
        free = [
            index
            for turn in range(max(self.config.in_flight, self.config.seats))
            for index, is_alive in enumerate(self._answered)
            if is_alive and load[index] <= turn
        ]
        for index, seed in zip(free, seeds, strict=False):
            reference = self._actors[index].rollout.remote(self._weights, seed)
            self._tasks[reference] = Task(index, is_rollout=True)
        return min(len(free), len(seeds))

    def poll(self, timeout: float) -> Sequence[Rollout | Lost]:
        """Wait at most `timeout` seconds for anything; return the rollouts that came or were lost.

        Raises what an actor raised.
        """
        if not self._tasks:
            # Nobody drives, for the queue is full: to look again at once would keep the learner,
            # in whose process this is, from computing.
            time.sleep(timeout)
            return []
        ready, _ = ray.wait(list(self._tasks), num_returns=1, timeout=timeout)
        arrived: list[Rollout | Lost] = []
        for reference in ready:
            task = self._tasks.pop(reference)
            try:
                result = ray.get(reference)
            except LOST as error:
                if isinstance(error, RayActorError) and error.actor_init_failed:
                    raise
                self._recover(task.actor, error)
                if task.is_rollout:
                    arrived.append(Lost(task.actor, cause_of(error), type(error).__name__))
                continue
            if task.is_rollout:
                arrived.append(result)
            else:
                self._answered[task.actor] = True
        return arrived

    def _recover(self, index: int, error: Exception) -> None:
        is_first = self._answered[index]  # of the actor's tasks to fail
        if is_first:
            self.num_restarts += 1
            log.warning(
                "actor %d was lost, Ray starts it again: %s", index, str(error).splitlines()[0]
            )
        is_asked = any(t.actor == index and not t.is_rollout for t in self._tasks.values())
        if is_first or not is_asked:
            self._ask_for_life(index)

    def close(self) -> None:
        """Stop the actors."""
        for actor in self._actors:
            ray.kill(actor)
