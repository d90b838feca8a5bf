"""From the pool through the queue to the learner, in a thread of its own.

The thread starts rollouts while the queue has room, takes in what arrives, and copies the next
minibatch into one of two preallocated buffers while the learner computes on the other. It spends
its time waiting or copying, both outside the interpreter lock, so the learner hardly notices.
An error in it, or in an actor, is raised in the learner at its next minibatch.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from drive_actors.policy import PolicyConfig
from drive_envs.protocol import Rollout
from drive_learner.batch import Batch, empty_batch, fill, source_of
from drive_learner.pool import ActorPool, Lost
from drive_learner.queue import Counts, QueueConfig, RolloutQueue

NUM_BUFFERS = 2
POLL = 0.02  # seconds between two looks at the learner while no actor reports
PATIENCE = 0.2  # seconds after which the learner asks whether the thread still lives


class RolloutFeed:
    """Minibatches for the learner out of a pool of actors.

    policy: whose noise and history they have. seed: of the run; rollout i of a run has its own
    seed, whoever drives it, also after a resumption.
    """

    def __init__(
        self,
        pool: ActorPool,
        config: QueueConfig,
        policy: PolicyConfig,
        *,
        seed: int,
        state: Mapping[str, Any] | None = None,
        pinned: bool = False,
    ) -> None:
        self.pool = pool
        self._latest: Rollout | None = None
        self._policy, self._seed, self._pinned = policy, seed, pinned
        counts = counts_from(state["counts"]) if state else Counts()
        # What was in flight, waited or due when the checkpoint was written died with its process.
        counts.settle("restart")
        generator = np.random.default_rng([seed, counts.started])
        self._queue = RolloutQueue(config, generator, counts)
        self._version = 0
        self._free: queue.Queue[Batch] = queue.Queue()
        self._ready: queue.Queue[Batch] = queue.Queue()
        self._num_buffers = 0
        now = time.monotonic()
        self._arrivals = dict.fromkeys(range(pool.config.max_actors), now)
        self._totals = Totals(self._arrivals)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._executor = ThreadPoolExecutor(1, "rollout feed")
        self._running: Future[None] | None = None

    def start(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Publish the first weights and begin."""
        self.publish(version, weights)
        self._running = self._executor.submit(self._run)

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Hand new weights to the rollouts that begin from now on."""
        self.pool.publish(version, weights)

    def next(self, version: int) -> Batch:
        """Wait for a minibatch for the learner at `version`; `give_back` it after use."""
        self._version = version
        assert self._running is not None
        while True:
            try:
                return self._ready.get(timeout=PATIENCE)
            except queue.Empty:
                if self._running.done():
                    self._running.result()  # raises what the thread raised

    def give_back(self, batch: Batch) -> None:
        """Let the memory of a minibatch be used again."""
        self._free.put(batch)

    @property
    def latest(self) -> Rollout | None:
        """The last rollout that arrived."""
        return self._latest

    def state(self) -> dict[str, Any]:
        """Return the counters as JSON holds them."""
        with self._lock:
            return {"counts": counts_to_json(self._queue.counts)}

    def metrics(self) -> dict[str, float]:
        """Return what happened since the last call, and the state of the queue, as metrics."""
        with self._lock:
            counts = self._queue.counts
            metrics = self._totals.metrics()
            metrics |= {
                "queue/rollouts": self._queue.num_rollouts,
                "queue/minibatches": self._queue.num_minibatches,
                "queue/in_flight": counts.in_flight,
                "rollouts/started": counts.started,
                "rollouts/learnt": counts.learnt,
                "actor/alive": self.pool.num_actors,
                "actor/restarts": self.pool.num_restarts,
            }
            metrics |= {f"discarded/{cause}": n for cause, n in counts.discarded.items()}
            self._totals = Totals(self._arrivals)
        return metrics

    def close(self) -> Counts:
        """Stop the thread and the actors; return the final counts, in which all add up.

        May be called again.
        """
        self._stopping.set()
        self._executor.shutdown()
        self.pool.close()
        self._queue.close("end_of_run")
        return self._queue.counts

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._advance()

    def _advance(self) -> None:
        with self._lock:
            started = self._queue.counts.started
            seeds = [self._seed_of(started + i) for i in range(self._queue.room)]
            for _ in range(self.pool.start(seeds)):
                self._queue.start()
        arrived = self.pool.poll(POLL)
        with self._lock:
            for rollout in arrived:
                self._take_in(rollout)
            batch = self._draw()
        if batch is not None:
            self._ready.put(batch)

    def _seed_of(self, index: int) -> int:
        return int(np.random.SeedSequence([self._seed, index]).generate_state(1, np.uint32)[0])

    def _take_in(self, rollout: Rollout | Lost) -> None:
        if isinstance(rollout, Lost):
            self._queue.lose(rollout.cause)
            return
        self._totals.add(rollout)
        self._latest = rollout
        source = source_of(rollout, self._policy.num_noised)
        self._queue.put(source)
        while self._num_buffers < NUM_BUFFERS:
            config = self._queue.config
            self._free.put(
                empty_batch(
                    source,
                    config.sequence_length,
                    config.num_sequences,
                    num_context=self._policy.num_past,
                    pinned=self._pinned,
                )
            )
            self._num_buffers += 1

    def _draw(self) -> Batch | None:
        if self._free.empty() or (picked := self._queue.draw(self._version)) is None:
            return None
        batch = self._free.get_nowait()
        fill(batch, picked)
        return batch


class Totals:
    """Sums over the rollouts that arrived since the last look.

    How busy an actor was with one is told by the time since its rollout before: a rollout that was
    begun before the last look is not held against the time since.
    """

    def __init__(self, arrivals: dict[int, float]) -> None:
        self._since = time.monotonic()
        self._arrivals = arrivals  # when each actor's last rollout came, handed on
        self._wall = 0.0
        self._num = {"rollouts": 0, "steps": 0, "scenes": 0, "terminated": 0}
        self._sums = {"return": 0.0, "lateral_error": 0.0}
        self._seconds: dict[str, float] = {}

    def add(self, rollout: Rollout) -> None:
        """Count one rollout."""
        now = time.monotonic()
        self._wall += now - self._arrivals[rollout.actor]
        self._arrivals[rollout.actor] = now
        self._num["rollouts"] += 1
        self._num["steps"] += rollout.num_active_steps
        self._num["scenes"] += rollout.num_scenes
        self._num["terminated"] += int(rollout.terminated.sum())
        self._sums["return"] += float(rollout.reward.sum())
        self._sums["lateral_error"] += float(np.abs(rollout.lateral_error[rollout.active]).sum())
        for phase, seconds in rollout.seconds.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def metrics(self) -> dict[str, float]:
        """Return rates, shares of the actors' time, and means a scene and a step."""
        wall = time.monotonic() - self._since
        metrics = {
            "actor/frames_per_second": self._num["steps"] / wall,
            "actor/rollouts": self._num["rollouts"],
        }
        if self._wall:
            for phase, seconds in self._seconds.items():
                metrics[f"actor/share_{phase}"] = seconds / self._wall
            metrics["actor/utilisation"] = metrics.pop("actor/share_env", 0.0)
        if self._num["steps"]:
            metrics |= {
                "rollout/return": self._sums["return"] / self._num["scenes"],
                "rollout/lateral_error": self._sums["lateral_error"] / self._num["steps"],
                "rollout/terminated_share": self._num["terminated"] / self._num["scenes"],
            }
        return metrics


def counts_to_json(counts: Counts) -> dict[str, Any]:
    """Write counters down for JSON."""
    return {
        name: dict(value) if isinstance(value, Counter) else value
        for name, value in vars(counts).items()
    }


def counts_from(state: Mapping[str, Any]) -> Counts:
    """Read counters back from JSON."""
    causes = {name: Counter(state[name]) for name in ("discarded", "draws_forgone")}
    return Counts(**{**state, **causes})
