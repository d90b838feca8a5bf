import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray
import torch

from drive_actors.actor import RolloutActor, Seat
from drive_actors.policy import Policy


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


def weights_of(policy):
    return {name: value.numpy() for name, value in policy.state_dict().items()}


def actor(env, policy):
    return RolloutActor(env, policy.config, index=3, num_steps=5)


def test_loaded_weights_are_a_copy(stripes_env, tiny_policy):
    torch.manual_seed(1)
    given = weights_of(Policy(tiny_policy.config))
    seat = Seat(stripes_env(), Policy(tiny_policy.config))
    for array in given.values():
        array.flags.writeable = False
    seat.load(4, given)
    assert seat.version == 4
    seat.policy.features_from_images.bias.data.add_(1)
    kept = seat.policy.features_from_images.bias.detach().numpy() - 1
    np.testing.assert_allclose(kept, given["features_from_images.bias"], atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_weights_are_taken_only_when_newer(stripes_env, tiny_policy):
    driver, new = actor(stripes_env, tiny_policy), weights_of(tiny_policy)
    old = {name: np.zeros_like(array) for name, array in new.items()}
    versions = []
    for version, given in ((2, new), (1, old), (2, old), (3, new)):
        rollout = driver.rollout([version, ray.put(given)], seed=0)
        versions.append(rollout.policy_version)
        seat = driver._free.get()
        driver._free.put(seat)
        loaded = seat.policy.features_from_images.weight.detach().numpy()
        np.testing.assert_array_equal(loaded, new["features_from_images.weight"])
    assert versions == [2, 2, 2, 3]
    assert rollout.actor == 3


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_two_seats_drive_at_once(stripes_env, tiny_policy):
    both = threading.Barrier(2, timeout=20)

    def make_env():
        env = stripes_env()
        reset = env.world.reset

        def meet(scenes):
            both.wait()  # neither goes on before the other has begun
            reset(scenes)

        env.world.reset = meet
        return env

    driver = RolloutActor(make_env, tiny_policy.config, index=0, num_steps=3, num_seats=2)
    weights = [0, ray.put(weights_of(tiny_policy))]
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda seed: driver.rollout(weights, seed), (1, 2))
    assert (one.noise_seed, other.noise_seed) == (1, 2)
    assert one.num_active_steps == other.num_active_steps == 3 * one.num_scenes
