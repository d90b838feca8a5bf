"""One system of `drive bench peers`, in a process of its own with a Ray of its own.

    python -P -m cluster.peer_process SYSTEM FD

It reads one JSON object a line from stdin, `{"open": point}`, `{"measure": seconds}` or `{"close":
null}`, and writes one answer a line to the file descriptor FD (stdout is Ray's and RLlib's). An
opened system that is not measured comes to rest: its queues fill and its actors wait. So several
can be open at once and take turns.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np
import ray
import torch

from drive_actors.actor import RolloutActor
from drive_actors.policy import Policy, PolicyConfig
from drive_envs.allocator import keep_freed_memory
from drive_envs.sleeping import SleepingConfig, SleepingVectorEnv
from drive_learner.feed import RolloutFeed
from drive_learner.learner import Learner, LearnerConfig, OptimizerConfig
from drive_learner.local_cluster import local_cluster
from drive_learner.loop import advance
from drive_learner.losses import LossConfig
from drive_learner.pool import ActorPool, PoolConfig
from drive_learner.queue import QueueConfig
from drive_learner.rllib_config import RllibLearning
from drive_learner.rllib_env import RllibDrivingEnv

Point = dict[str, Any]
Figures = dict[str, float]

LOSS = LossConfig(plan=0.0, action=0.0, policy_gradient=1.0, value=0.5, entropy=0.001)

POLL = 0.1  # seconds that RLlib trains before it tells how far it is
NUM_EVENTS = 3  # gradient steps of a measurement, at least
PATIENCE = 120.0  # seconds without one


def is_enough(elapsed: float, num_steps: float, seconds: float) -> bool:
    """Tell whether a measurement is over."""
    return elapsed >= seconds and num_steps >= NUM_EVENTS


class Peer(Protocol):
    """A system that can be opened, measured again and again, and closed."""

    def open(self, point: Point) -> Figures: ...
    def measure(self, seconds: float) -> Figures: ...
    def close(self) -> Figures: ...


class Ours:
    """The project's own loop: pool, feed, queue, learner."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def open(self, point: Point) -> Figures:
        """Start the actors; return what copying costs here, while they are idle."""
        torch.set_num_threads(1)
        keep_freed_memory()
        self._stack.enter_context(cluster_for(point))
        copying = measure_copies(point)
        self.point = point
        num_actors = point["actors"]
        pool_config = PoolConfig(
            min_actors=num_actors, max_actors=num_actors, in_flight=2, patience=600.0
        )
        actor = ray.remote(RolloutActor).options(**pool_config.options)
        make = functools.partial(make_sleeping, point, point["scenes"])
        policy = policy_config(point)

        def make_actor(index: int) -> Any:
            return actor.remote(make, policy, index=index, num_steps=point["fragment"])

        pool = ActorPool(make_actor, pool_config)
        self._stack.callback(pool.close)
        pool.wait_until_ready()
        self.learner = Learner(
            Policy(policy),
            LearnerConfig(num_steps=10**9, loss=LOSS, precision="fp32", device="cpu"),
        )
        rollouts = -(-point["sequences"] // point["scenes"])  # of a minibatch
        queue = QueueConfig(
            capacity=num_actors + 2 * rollouts,
            window=rollouts,
            reuse=1,
            min_minibatches=1,
            max_lag=10**9,
            num_sequences=point["sequences"],
            sequence_length=point["fragment"],
        )
        self.feed = RolloutFeed(pool, queue, policy, seed=0)
        self._stack.callback(self.feed.close)
        self.feed.start(0, self.learner.weights())
        return copying

    def measure(self, seconds: float) -> Figures:
        """Learn for so long, from the end of one gradient step to the end of another."""
        self._advance()
        self.feed.metrics()
        began, first, lags, idle = time.monotonic(), self.learner.step, [], 0.0
        while not is_enough(time.monotonic() - began, self.learner.step - first, seconds):
            metrics, waited = self._advance()
            idle += waited
            lags.append(metrics["learner/policy_lag"])
        elapsed = time.monotonic() - began
        num_steps = self.learner.step - first
        minibatch = self.point["sequences"] * self.point["fragment"]
        driven = self.feed.metrics()
        return {
            "steps_per_second": num_steps * minibatch / elapsed,
            "driven_per_second": driven["actor/frames_per_second"],
            "learner_steps_per_second": num_steps / elapsed,
            "policy_lag": float(np.mean(lags)),
            "dropped_per_second": 0.0,  # only what is stale would be, and nothing is
            "idle_share": idle / elapsed,
        }

    def _advance(self) -> tuple[Figures, float]:
        taken = advance(self.learner, self.feed)
        self.feed.publish(self.learner.step, self.learner.weights())
        return taken

    def close(self) -> Figures:
        """Stop everything."""
        self._stack.close()
        return {}


class Rllib:
    """RLlib's IMPALA or APPO."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self._stack = ExitStack()

    def open(self, point: Point) -> Figures:
        """Start its actors and its learner."""
        torch.set_num_threads(1)
        keep_freed_memory()
        from drive_learner.rllib_backend import algorithm, metrics

        self._metrics: Callable[[Any], Figures] = metrics
        self._stack.enter_context(cluster_for(point))
        num_actors = point["actors"]
        self.algo = algorithm(
            RllibLearning(
                algorithm=self.algorithm,  # pyright: ignore[reportArgumentType]
                fragment_length=point["fragment"],
                num_sequences=point["sequences"],
                num_learners=point["rllib_learners"],
                num_aggregators=point["rllib_aggregators"],
            ),
            functools.partial(make_for_rllib, point),
            policy_config(point),
            loss=LOSS,
            optimizer=OptimizerConfig(),
            actors=PoolConfig(max_actors=num_actors, in_flight=point["rllib_in_flight"]),
            num_scenes=point["scenes"],
            seconds=POLL,
        )
        self._stack.callback(self.algo.stop)
        self.last: Figures = {}
        return {}

    def measure(self, seconds: float) -> Figures:
        """Let it train for so long, from the news of one gradient step to that of another."""
        self._train_until_news()
        began, first, num, lags = time.monotonic(), self.last, 0.0, []
        elapsed = 0.0
        while not is_enough(elapsed, num, seconds):
            self._train_until_news()
            elapsed = time.monotonic() - began
            num = self._gained("learner/gradient_steps", first)
            lags.append(self.last.get("learner/policy_lag", float("nan")))
        return {
            "steps_per_second": self._gained("learner/steps_learnt", first) / elapsed,
            "driven_per_second": self._gained("actor/steps", first) / elapsed,
            "learner_steps_per_second": num / elapsed,
            "policy_lag": float(np.nanmean(lags)),
            "dropped_per_second": self._gained("learner/steps_dropped", first) / elapsed,
        }

    def _gained(self, name: str, first: Figures) -> float:
        return self.last.get(name, 0.0) - first.get(name, 0.0)

    def _train_until_news(self) -> None:
        """Train until another gradient step is told of."""
        before = self.last.get("learner/gradient_steps", 0.0)
        began = time.monotonic()
        while self.last.get("learner/gradient_steps", 0.0) <= before:
            # a figure of which there is no news is missing, and is what it was
            self.last = self.last | self._metrics(self.algo.train())
            if time.monotonic() - began > PATIENCE:
                raise RuntimeError(f"RLlib took no gradient step for {PATIENCE:g} s")

    def close(self) -> Figures:
        """Stop everything."""
        self._stack.close()
        return {}


def cluster_for(point: Point) -> Any:
    """Start a Ray with room for a point's actors, whatever cores there are.

    With RAY_ADDRESS set it is that cluster, and the memory of its actors is not seen.
    """
    rollout = point["fragment"] * point["scenes"] * point["bytes"]
    megabytes = 500 + 6 * point["actors"] * rollout // 1_000_000
    return local_cluster(num_cpus=point["actors"] + 8, object_store_mb=megabytes)


def make_sleeping(point: Point, num_scenes: int) -> SleepingVectorEnv:
    """Build the environment of one actor."""
    config = SleepingConfig(
        width=point["width"],
        height=point["height"],
        step_seconds=point["step_seconds"],
        num_steps=point["fragment"],
    )
    return SleepingVectorEnv(config, num_scenes)


def make_for_rllib(point: Point, num_scenes: int) -> RllibDrivingEnv:
    """Build it for RLlib, without the frames of context, which our actors do encode and send."""
    return RllibDrivingEnv(make_sleeping(point, num_scenes), num_actions=2, has_context=False)


def policy_config(point: Point) -> PolicyConfig:
    """Return the network: a small one that reads the lowest twenty-fifth of each image.

    On a CPU the convolutions of all of it would be most of what is measured, in every system, where
    a learner with a GPU spends next to nothing on them.
    """
    return PolicyConfig(
        width=point["width"],
        height=point["height"],
        channels=(4, 4, 4),
        num_features=32,
        bottleneck_bits=None,
        sky=(0.96, 0.96),
        model_dim=32,
        num_layers=1,
        num_heads=2,
        context=1,
        num_hypotheses=1,
    )


class Sender:
    """Returns arrays as an actor returns rollouts."""

    def send(self, num_bytes: int) -> np.ndarray:
        """Return so many bytes."""
        return np.ones(num_bytes, np.uint8)


def measure_copies(point: Point, seconds: float = 1.0) -> Figures:
    """Return bytes/s of a plain copy, and of an actor's return to a copy of it in this process."""
    num_bytes = min(50_000_000, 40 * point["scenes"] * point["bytes"])
    source, target = np.ones(num_bytes, np.uint8), np.zeros(num_bytes, np.uint8)

    def rate(once: Callable[[], None]) -> float:
        once()
        began, num = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            once()
            num += 1
        return num * num_bytes / (time.monotonic() - began)

    sender: Any = ray.remote(Sender).remote()
    figures = {
        "memory_bytes_per_second": rate(lambda: np.copyto(target, source)),
        "store_bytes_per_second": rate(
            lambda: np.copyto(target, ray.get(sender.send.remote(num_bytes)))
        ),
    }
    ray.kill(sender)
    return figures


def main(system: str, descriptor: int) -> None:
    """Answer until stdin ends."""
    peer: Peer = Ours() if system == "ours" else Rllib(system)
    with os.fdopen(descriptor, "w") as answers:
        for line in sys.stdin:
            ((name, given),) = json.loads(line).items()
            arguments = () if given is None else (given,)
            answers.write(json.dumps(getattr(peer, name)(*arguments)) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
