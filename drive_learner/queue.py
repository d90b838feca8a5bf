"""The bounded queue in front of the learner: what may be learnt from, how often, and until when.

A rollout is cut into fragments, and each fragment is learnt from `reuse` times, which balances the
costs of driving and of learning. Neighbouring minibatches should not come from the same few scenes:
a minibatch takes its fragments in turn from the `window` oldest rollouts, each of which deals out
its own in a fresh random order every pass, and leaves when its passes are done. The learner waits
while fewer than `min_minibatches` are left in the queue, which keeps the mixture wide when the
actors are the slower side, and no rollout is started while the queue is full, which keeps the data
fresh when the learner is.

Every rollout is accounted for: started = learnt + discarded by cause + in flight + waiting, where a
rollout counts as learnt once a minibatch was given any of it, and waits before that. So is every
use that was promised: given, forgone by cause (it grew stale, the run ended) or due.

A version is the learner's gradient step. The module does not know about processes.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from drive_learner.batch import Fragment, Source, fragments


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """Bounds of the queue and the shape of a minibatch.

    capacity: rollouts held and in flight together. window: rollouts a minibatch mixes. reuse: times
    that each fragment is learnt from. min_minibatches: the learner waits while the queue could give
    fewer. max_lag: gradient steps after which a rollout is stale. num_sequences: fragments in a
    minibatch. sequence_length: steps in a fragment.
    """

    capacity: int = 16
    window: int = 8
    reuse: int = 2
    min_minibatches: int = 20
    max_lag: int = 300
    num_sequences: int = 20
    sequence_length: int = 15

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"queue {name} must be 1 or more, got {value}")
        if self.window > self.capacity:
            raise ValueError(
                f"queue window is {self.window} rollouts, but its capacity is {self.capacity}"
            )


@dataclass(kw_only=True)
class Counts:
    """The fate of every rollout that was started, and of every use that was promised.

    waiting: rollouts that are held and not used yet. draws: uses given. draws_due: uses that the
    rollouts held are still promised.
    """

    started: int = 0
    learnt: int = 0
    in_flight: int = 0
    waiting: int = 0
    discarded: Counter[str] = field(default_factory=Counter)
    draws: int = 0
    draws_due: int = 0
    draws_forgone: Counter[str] = field(default_factory=Counter)

    def check(self) -> None:
        """Assert that nothing was lost silently."""
        known = self.learnt + self.discarded.total() + self.in_flight + self.waiting
        assert self.started == known, self

    def settle(self, cause: str) -> None:
        """Give up for one cause what is in flight, waits or is due: it will never come back."""
        if lost := self.in_flight + self.waiting:
            self.discarded[cause] += lost
        if self.draws_due:
            self.draws_forgone[cause] += self.draws_due
        self.in_flight = self.waiting = self.draws_due = 0


class Held:
    """One rollout in the queue, dealing out its fragments."""

    def __init__(self, source: Source, length: int, reuse: int) -> None:
        self.source = source
        self.all = list(fragments(source, length))
        self.left = len(self.all) * reuse
        self.was_used = False
        self._pass: list[Fragment] = []

    def deal(self, generator: np.random.Generator) -> Fragment:
        """Return the next fragment of this pass."""
        if not self._pass:
            # Nothing has been dealt before the first pass.
            dealt = [each._replace(is_first_use=not self.was_used) for each in self.all]
            self._pass = [dealt[i] for i in generator.permutation(len(dealt))]
        self.left -= 1
        self.was_used = True
        return self._pass.pop()


class RolloutQueue:
    """Rollouts in, minibatches of fragments out. Used by one thread."""

    def __init__(
        self, config: QueueConfig, generator: np.random.Generator, counts: Counts | None = None
    ) -> None:
        self.config = config
        self.generator = generator
        self.counts = counts or Counts()
        self._held: deque[Held] = deque()

    @property
    def num_minibatches(self) -> float:
        """Minibatches that the queue could still give."""
        return sum(held.left for held in self._held) / self.config.num_sequences

    @property
    def num_rollouts(self) -> int:
        """Rollouts held."""
        return len(self._held)

    @property
    def room(self) -> int:
        """Rollouts that may be started now."""
        in_flight = self.counts.in_flight
        room = self.config.capacity - len(self._held) - in_flight
        # A full queue that cannot fill one minibatch would wait for the learner for ever.
        is_starved = self.num_minibatches < 1 and not in_flight
        return max(room, 1) if is_starved else max(room, 0)

    def start(self) -> None:
        """Count a rollout that an actor begins."""
        self.counts.started += 1
        self.counts.in_flight += 1

    def lose(self, cause: str) -> None:
        """Count a rollout that will never arrive."""
        self.counts.in_flight -= 1
        self.counts.discarded[cause] += 1

    def put(self, source: Source) -> None:
        """Take in a rollout that was started before."""
        self.counts.in_flight -= 1
        held = Held(source, self.config.sequence_length, self.config.reuse)
        if not held.left:
            self.counts.discarded["empty"] += 1
            return
        self.counts.waiting += 1
        self.counts.draws_due += held.left
        self._held.append(held)

    def draw(self, version: int) -> list[Fragment] | None:
        """Pick one minibatch for the learner at `version`, or None while there is too little."""
        stale = version - self.config.max_lag
        for held in [held for held in self._held if held.source.rollout.policy_version < stale]:
            self._retire(held, "stale")
        is_full = len(self._held) >= self.config.capacity
        if self.num_minibatches < (1 if is_full else self.config.min_minibatches):
            return None
        return [self._deal(i) for i in range(self.config.num_sequences)]

    def _deal(self, turn: int) -> Fragment:
        held = self._held[turn % min(self.config.window, len(self._held))]
        if not held.was_used:
            self.counts.waiting -= 1
            self.counts.learnt += 1
        fragment = held.deal(self.generator)
        self.counts.draws += 1
        self.counts.draws_due -= 1
        if not held.left:
            self._retire(held, "")
        return fragment

    def _retire(self, held: Held, cause: str) -> None:
        self._held.remove(held)
        if not held.was_used:
            self.counts.waiting -= 1
            self.counts.discarded[cause] += 1
        if held.left:
            self.counts.draws_due -= held.left
            self.counts.draws_forgone[cause] += held.left

    def close(self, cause: str) -> None:
        """Discard, counted, what is in flight or still waits unused."""
        for held in list(self._held):
            self._retire(held, cause)
        self.counts.settle(cause)
        self.counts.check()
