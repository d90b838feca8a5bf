import json
from collections import Counter

import numpy as np
import pytest

from drive_learner.batch import source_of
from drive_learner.feed import counts_from, counts_to_json
from drive_learner.queue import QueueConfig, RolloutQueue

CONFIG = QueueConfig(
    capacity=4,
    window=3,
    reuse=2,
    min_minibatches=2,
    max_lag=10,
    num_sequences=4,
    sequence_length=3,
)


def make_queue(config=CONFIG):
    return RolloutQueue(config, np.random.default_rng(0))


def put(queue, rollout):
    queue.start()
    queue.put(source_of(rollout, None))


def drain(queue, version=0):
    picked = []
    while (batch := queue.draw(version)) is not None:
        picked += batch
    return picked


def test_every_fragment_is_used_as_often_as_promised(random_rollout):
    queue = make_queue()
    rollouts = [random_rollout(seed=seed, actor=seed) for seed in range(6)]
    picked = []
    for rollout in rollouts:
        put(queue, rollout)
        picked += drain(queue)
    queue.close("end")
    used = Counter((f.source.rollout.actor, f.scene, f.start) for f in picked)
    assert max(used.values()) == CONFIG.reuse
    met = set()
    for fragment in picked:
        name = (fragment.source.rollout.actor, fragment.scene, fragment.start)
        assert fragment.is_first_use == (name not in met)
        met.add(name)
    # the oldest were dealt out whole: 12, 7 and 3 steps are 4 + 3 + 1 fragments
    for actor in range(3):
        assert [n for key, n in used.items() if key[0] == actor] == [CONFIG.reuse] * 8
    counts = queue.counts
    assert counts.draws == len(picked)
    assert counts.draws + counts.draws_forgone.total() == 6 * 8 * CONFIG.reuse


def test_a_minibatch_mixes_the_window(random_rollout):
    queue = make_queue()
    for seed in range(4):
        put(queue, random_rollout(seed=seed, actor=seed))
    batch = queue.draw(0)
    assert batch is not None
    assert {f.source.rollout.actor for f in batch} == {0, 1, 2}


def test_the_learner_waits_for_a_mixture(random_rollout):
    queue = make_queue()
    put(queue, random_rollout(lengths=(7,)))  # 3 fragments, 6 uses: a minibatch, but not 2
    assert queue.draw(0) is None
    put(queue, random_rollout(lengths=(7,)))
    assert queue.draw(0) is not None


def test_no_rollout_is_started_into_a_full_queue(random_rollout):
    queue = make_queue()
    assert queue.room == 4
    queue.start()
    queue.start()
    assert queue.room == 2
    for seed in range(2):
        queue.put(source_of(random_rollout(seed=seed), None))
    assert queue.room == 2
    for _ in range(2):
        put(queue, random_rollout())
    assert queue.room == 0
    while queue.room == 0:
        assert queue.draw(0) is not None


def test_a_full_queue_of_scraps_never_waits_for_ever(random_rollout):
    """One use left in each of a full queue of tiny rollouts is not a minibatch: ask for another."""
    queue = make_queue(QueueConfig(capacity=2, window=2, num_sequences=32, min_minibatches=1))
    for seed in range(2):
        put(queue, random_rollout(lengths=(2,), seed=seed))
    for seed in range(40):
        if queue.draw(0) is not None:
            return
        assert queue.room == 1
        put(queue, random_rollout(lengths=(2,), seed=seed))
    pytest.fail("the queue never gave a minibatch")


def test_stale_rollouts_are_discarded_and_counted(random_rollout):
    queue = make_queue()
    put(queue, random_rollout(version=0))
    for seed in range(3):
        put(queue, random_rollout(seed=seed, version=11))
    assert queue.draw(10) is not None  # version 0 is just not stale, and is used
    assert queue.draw(11) is not None
    assert queue.counts.draws_forgone["stale"] > 0
    assert queue.counts.learnt == 4
    put(queue, random_rollout(version=11))
    assert queue.draw(22) is None
    assert queue.counts.discarded == {"stale": 1}  # the others were learnt from before
    assert queue.counts.learnt == 4
    queue.counts.check()


def test_accounts_add_up_at_the_end(random_rollout):
    queue = make_queue()
    for seed in range(3):
        put(queue, random_rollout(seed=seed))
    put(queue, random_rollout(lengths=(0, 0)))
    queue.start()
    queue.lose("actor_lost")
    queue.start()
    assert queue.draw(0) is not None
    queue.close("end_of_run")
    counts = queue.counts
    counts.check()
    assert (counts.started, counts.learnt, counts.in_flight, counts.waiting) == (6, 3, 0, 0)
    assert counts.discarded == {"empty": 1, "actor_lost": 1, "end_of_run": 1}


def test_what_was_learnt_from_is_not_lost_with_the_learner(random_rollout):
    queue = make_queue()
    for seed in range(4):
        put(queue, random_rollout(seed=seed, actor=seed))
    queue.start()
    picked = queue.draw(0)
    assert picked is not None
    assert len({f.source.rollout.actor for f in picked}) == 3
    counts = counts_from(json.loads(json.dumps(counts_to_json(queue.counts))))
    counts.settle("restart")
    counts.check()
    assert (counts.started, counts.learnt, counts.in_flight, counts.waiting) == (5, 3, 0, 0)
    assert counts.discarded == {"restart": 2}  # one was not used yet, one not driven to its end
    promised = 4 * 8 * CONFIG.reuse
    assert counts.draws_forgone == {"restart": promised - len(picked)}


@pytest.mark.parametrize("change", [{"reuse": 0}, {"window": 5}, {"capacity": 0}])
def test_impossible_bounds_are_refused(change):
    with pytest.raises(ValueError, match="queue"):
        QueueConfig(**{**vars(CONFIG), **change})
