import os
import signal
import time
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayActorError

from drive_learner.pool import ActorPool, Lost, PoolConfig

pytestmark = pytest.mark.slow

WEIGHTS = {"weight": torch.arange(3.0)}
ENDLESS = 77  # seed of a rollout that takes longer than anybody waits


def sum_of(reference):
    weights: dict[str, Any] = ray.get(reference)
    return float(weights["weight"].sum())


class Driver:
    """Sends back the rollout it was made with, signed with all that it was told."""

    def __init__(self, index, rollout, seconds):
        if seconds < 0:
            raise ValueError(f"seconds is {seconds}, a rollout takes some")
        self.index, self.example, self.seconds = index, rollout, seconds

    def rollout(self, weights, seed):
        time.sleep(600 if seed == ENDLESS else self.seconds)
        version, reference = weights
        if seed == 13:
            raise ValueError("seed 13 brings bad luck: choose another")
        return replace(
            self.example,
            actor=self.index,
            noise_seed=seed,
            policy_version=version,
            seconds={"pid": os.getpid(), "weight": sum_of(reference)},
        )


@pytest.fixture
def make_pool(local_ray, random_rollout):
    pools, held = [], []

    def make(seconds=0.05, **changes):
        config = PoolConfig(**{"max_actors": 2, **changes})
        actor = ray.remote(Driver).options(**config.options)
        # Held to the end of the test, for a restart needs it again: nobody else keeps it.
        rollout = ray.put(random_rollout())
        held.append(rollout)
        pools.append(ActorPool(lambda index: actor.remote(index, rollout, seconds), config))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def collect(pool, num, seconds=20.0):
    arrived = []
    deadline = time.monotonic() + seconds
    while len(arrived) < num and time.monotonic() < deadline:
        arrived += pool.poll(0.1)
    assert len(arrived) == num
    return arrived


def wait_for(pool, num):
    deadline = time.monotonic() + 30
    while pool.num_actors < num and time.monotonic() < deadline:
        pool.poll(0.1)
    assert pool.num_actors == num


def test_each_actor_has_at_most_its_share_in_flight(make_pool):
    pool = make_pool(in_flight=2)
    pool.publish(3, WEIGHTS)
    assert pool.start([0]) == 0  # nobody has answered yet
    wait_for(pool, 2)
    assert pool.start(range(10)) == 4
    assert pool.start(range(10)) == 0
    arrived = collect(pool, 4)
    assert sorted(rollout.noise_seed for rollout in arrived) == [0, 1, 2, 3]
    assert sorted(rollout.actor for rollout in arrived) == [0, 0, 1, 1]
    assert {rollout.policy_version for rollout in arrived} == {3}
    assert {rollout.seconds["weight"] for rollout in arrived} == {3.0}


def test_a_killed_actor_is_counted_and_drives_again(make_pool):
    pool = make_pool(max_actors=1)
    pool.publish(0, WEIGHTS)
    wait_for(pool, 1)
    pool.start([1])
    (first,) = collect(pool, 1)
    assert pool.start([ENDLESS]) == 1
    os.kill(first.seconds["pid"], signal.SIGKILL)
    (lost,) = collect(pool, 1)
    assert isinstance(lost, Lost)
    assert pool.num_restarts == 1
    wait_for(pool, 1)
    pool.start([3])
    (third,) = collect(pool, 1)
    assert third.noise_seed == 3
    assert third.seconds["pid"] != first.seconds["pid"]


def test_a_pool_with_nothing_to_do_leaves_the_processor_alone(make_pool):
    """The learner shares its process: a feed that spins while the queue is full slows it down."""
    pool = make_pool(max_actors=1)
    wait_for(pool, 1)
    begin = time.monotonic(), time.thread_time()
    for _ in range(10):
        assert pool.poll(0.05) == []
    assert time.monotonic() - begin[0] > 0.4
    assert time.thread_time() - begin[1] < 0.1


def test_what_an_actor_raises_is_raised_here(make_pool):
    pool = make_pool(max_actors=1)
    pool.publish(0, WEIGHTS)
    wait_for(pool, 1)
    pool.start([13])
    with pytest.raises(ValueError, match="bad luck"):
        collect(pool, 1)


def test_an_actor_that_cannot_be_made_is_an_error_at_once(make_pool):
    pool = make_pool(max_actors=1, seconds=-1)
    with pytest.raises(RayActorError, match="seconds is -1"):
        collect(pool, 1)


def test_a_cluster_without_room_is_said_so(make_pool):
    pool = make_pool(max_actors=4, min_actors=4, patience=3.0)
    with pytest.raises(ValueError, match="of at least 4 actors"):
        pool.wait_until_ready()
