"""The service on a real Ray Serve: shared, routed by session, and survived when replicas die.

One application of two replicas serves all tests, which leave it as they found it.
"""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from gymnasium.utils.env_checker import check_env
from ray.exceptions import ActorDiedError, GetTimeoutError
from ray.util import list_named_actors

from drive_envs.environment import DrivingEnv, DrivingVectorEnv, EnvConfig
from drive_envs.learned import Learned, LearnedConfig
from drive_envs.network_file import NetworkFileError
from drive_envs.protocol import BadRequestError, NoRoomError, SessionLostError
from drive_envs.reprojective import Reprojective, ReprojectiveConfig
from drive_envs.scenes import SamplerConfig, SceneSampler
from drive_learner.local_cluster import local_cluster
from tests.world_model.conftest import (
    CONFIG,
    assert_alike,
    drive,
    opening,
    random_model,
    random_tokenizer,
    step_of,
)
from world_model import service as service_module
from world_model.engine import EngineConfig
from world_model.model_file import load_world_model, save_world_model
from world_model.sampler import SamplerConfig as EulerConfig
from world_model.scheduler import SchedulerConfig
from world_model.service import (
    Answer,
    ServiceConnection,
    is_running,
    serving,
    settings,
    start,
    totals,
    version_of,
)
from world_model.service_config import ServiceConfig

pytestmark = pytest.mark.slow

NAME = "tested"
CAPACITY = 8  # scenes of each of the two replicas
SIZE: dict[str, Any] = {"width": CONFIG.width, "height": CONFIG.height}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_world_model(random_model(0), random_tokenizer(), folder)
    return ServiceConfig(
        model=folder,
        num_replicas=2,
        num_cpus=0.5,
        num_threads=1,
        drain=2.0,
        sampler=EulerConfig(num_steps=2, precision="fp32"),
        engine=EngineConfig(capacity=CAPACITY),
        scheduler=SchedulerConfig(max_wait=0.02, admission_timeout=30.0),
    )


@pytest.fixture(scope="module")
def service(config):
    with local_cluster(num_cpus=2, object_store_mb=200), serving(config, NAME):
        yield


@pytest.fixture
def connection(service):
    """A way to the service, which has to be empty again when all leases are over."""
    yield ServiceConnection(NAME, timeout=20.0)
    in_replicas(let_an_hour_pass)
    deadline = time.monotonic() + 20
    while (left := totals(NAME))["scenes"] or left["sessions"]:
        assert time.monotonic() < deadline, f"what was opened is left over: {left}"
        time.sleep(0.2)


def let_an_hour_pass(_):
    """Put the clock forward by which a replica's engine tells how long a driver has been away."""
    from world_model import engine

    now = engine.time.monotonic
    engine.time = SimpleNamespace(
        monotonic=lambda: now() + 3600, perf_counter=engine.time.perf_counter
    )


def replicas():
    """Return the names of the service's replicas that are alive."""
    named: list[Any] = list_named_actors(all_namespaces=True)
    return sorted(one["name"] for one in named if one["name"].startswith(f"SERVE_REPLICA::{NAME}#"))


def in_replicas(ask):
    """Call a function in the process of each replica."""
    actors = [ray.get_actor(name, namespace="serve") for name in replicas()]
    return ray.get([actor.__ray_call__.remote(ask) for actor in actors])


def kill(name):
    ray.kill(ray.get_actor(name, namespace="serve"))


def wait_for_replicas():
    """Wait until two replicas are up and known to the router."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(replicas()) == 2 and totals(NAME)["replicas"] == 2:
            return
        time.sleep(0.2)
    pytest.fail("the replicas did not come back")


def make_env(connection, segment, patience=60.0):
    recorded = Reprojective(ReprojectiveConfig(**SIZE))
    world = Learned(connection, recorded, LearnedConfig(num_anchors=2, patience=patience))
    sampler = SceneSampler([segment], SamplerConfig(num_steps=(8, 8), rows_after=2))
    return DrivingVectorEnv(world, sampler, EnvConfig(**SIZE), 2), world


def roll_out(connection, segment, seed, at=None, trouble=None):
    """Drive a whole scene, with trouble before step `at`; return how often a session was lost."""
    env, world = make_env(connection, segment)
    observation, info = env.reset(seed=seed)
    for step in range(8):
        assert info["active"].any()
        if step == at and trouble is not None:
            trouble()
        observation, *_, info = env.step(np.zeros((2, 2), np.float32))
    assert not info["active"].any()
    assert observation["wide"].shape == (2, 3, CONFIG.height, CONFIG.width)
    world.close()
    return world.num_reopened


def test_it_shows_what_the_model_does_in_process(connection, config, make_engine):
    requests = [opening(name, num_scenes=n, seed=n) for n, name in enumerate("abc", start=1)]
    model, tokenizer = load_world_model(config.model)
    expected = {}
    for request in requests:
        engine = make_engine()
        engine.replace_weights(model, tokenizer)
        expected[request.session] = drive(engine, request)

    def drive_there(request):
        connection.open(request).result()
        found = [connection.step(step_of(request, n + 1)).result() for n in range(5)]
        connection.close(request.session)
        return found

    with ThreadPoolExecutor(3) as threads:
        for request, found in zip(requests, threads.map(drive_there, requests), strict=True):
            for one, other in zip(found, expected[request.session], strict=True):
                assert_alike(one, other)


def test_an_environment_in_it_is_like_the_others(connection, synthetic_segment):
    env, world = make_env(connection, synthetic_segment)
    with pytest.warns(UserWarning, match="For Box action spaces"):
        check_env(DrivingEnv(world, env.sampler, env.config), skip_render_check=True)
    world.close()


def test_errors_come_through_and_harm_nothing(connection):
    request = opening("a", num_scenes=5)
    connection.open(request).result()
    with pytest.raises(SessionLostError, match="there is no session 'b'"):
        connection.step(step_of(opening("b"), 1)).result()
    poses = np.full((2, 4, 3), np.nan)
    with pytest.raises(BadRequestError, match="not finite"):
        connection.open(replace(opening("b"), context_poses=poses)).result()
    with pytest.raises(NoRoomError, match="exceed the capacity of 8"):
        connection.open(opening("c", num_scenes=9)).result()
    for method in ("open", "step"):
        handle = connection.handle.options(method_name=method, session_id="a")
        with pytest.raises(BadRequestError, match="a str is no"):
            handle.remote("garbage").result()
    assert connection.step(step_of(request, 1)).result().num_batched == 5
    connection.close("a")


def test_one_replica_is_lost(connection, synthetic_segment):
    with ThreadPoolExecutor(4) as threads:
        lost = replicas()[0]
        drives = [
            threads.submit(
                roll_out,
                connection,
                synthetic_segment,
                seed,
                3 if seed == 0 else None,
                lambda: kill(lost),
            )
            for seed in range(4)
        ]
        for one in drives:
            one.result()
    wait_for_replicas()


def test_both_replicas_are_lost(connection, synthetic_segment):
    def kill_both():
        for name in replicas():
            kill(name)

    assert roll_out(connection, synthetic_segment, 0, 4, kill_both) >= 1
    wait_for_replicas()


class Failing:
    """A response of Serve's that never comes."""

    def __init__(self, error):
        self.error = error

    def result(self, timeout_s):
        raise self.error


@pytest.mark.parametrize(
    ("error", "meant"),
    [
        (GetTimeoutError("some object(s) not ready"), TimeoutError),
        (TimeoutError("resolving"), TimeoutError),
        (ActorDiedError(), SessionLostError),
    ],
)
def test_who_is_slow_is_not_taken_for_gone(error, meant):
    with pytest.raises(meant):
        Answer(Failing(error), timeout=0.5).result()


def signal_all(pids, number):
    for pid in pids:
        os.kill(pid, number)


class Noted(Answer):
    """An answer that says so when it is late."""

    def __init__(self, answer, when_late):
        super().__init__(answer._response, answer._timeout)
        self.when_late = when_late

    def result(self):
        try:
            return super().result()
        except TimeoutError:
            self.when_late()
            raise


class Impatient(ServiceConnection):
    """Wakes the replicas up when an answer was late, and is patient again."""

    def __init__(self, wake):
        super().__init__(NAME, timeout=20.0)
        self.wake, self.num_late = wake, 0

    def step(self, request):
        return Noted(super().step(request), self.be_patient)

    def be_patient(self):
        self.num_late += 1
        self.timeout = 20.0
        self.wake()


def test_a_replica_is_slow(service, synthetic_segment):
    pids = in_replicas(lambda _: os.getpid())
    assert len(pids) == 2
    impatient = Impatient(lambda: signal_all(pids, signal.SIGCONT))

    def stall():
        signal_all(pids, signal.SIGSTOP)
        impatient.timeout = 0.5

    before = totals(NAME)
    assert roll_out(impatient, synthetic_segment, 1, 3, stall) == 0
    assert impatient.num_late >= 1
    assert totals(NAME)["opened"] == before["opened"] + 1


def test_four_times_more_sessions_than_there_is_room_for(connection):
    requests = [opening(f"many-{n}", num_scenes=4, seed=n) for n in range(16)]

    def drive_one(request):
        connection.open(request).result()
        for frame in range(3):
            connection.step(step_of(request, frame + 1)).result()
        connection.close(request.session)
        return True

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(drive_one, requests))


def test_a_driver_vanishes(connection):
    before = totals(NAME)["expired"]
    connection.open(opening("vanished")).result()
    assert totals(NAME)["scenes"] == 2
    in_replicas(let_an_hour_pass)
    deadline = time.monotonic() + 20
    while totals(NAME)["scenes"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert totals(NAME)["expired"] == before + 1


def test_a_model_that_is_not_there_is_said_before_anything_is_started(config, tmp_path):
    with pytest.raises(NetworkFileError, match=r"there is no world model at .*none"):
        start(replace(config, model=tmp_path / "none"), "never")


def test_what_is_started_half_way_is_ended(service, config, monkeypatch):
    def start_and_stop(config, name):
        start(config, name)
        raise KeyboardInterrupt

    monkeypatch.setattr(service_module, "start", start_and_stop)
    with pytest.raises(KeyboardInterrupt), serving(replace(config, num_replicas=1), "half"):
        pytest.fail("it was interrupted")
    assert not is_running("half")
    assert is_running(NAME)


def test_other_settings_mean_other_replicas(service, config, tmp_path):
    assert settings(NAME) == replace(config, model=config.folder)
    in_place = replace(config, model=tmp_path, num_replicas=3, drain=1.0)
    assert version_of(in_place) == version_of(config)
    assert version_of(replace(config, engine=EngineConfig(capacity=3))) != version_of(config)


def test_weights_are_replaced_in_place(connection, config, tmp_path):
    save_world_model(random_model(3), random_tokenizer(), tmp_path)
    request = opening("kept")
    connection.open(request).result()
    connection.step(step_of(request, 1)).result()
    start(config, NAME, model=tmp_path)
    views = connection.step(step_of(request, 2)).result()  # the session is still there
    assert np.isfinite(views.plan).all()
    first = {}
    for name, model in (("new", None), ("old", config.model)):
        if model is not None:
            start(config, NAME, model=model)
        connection.open(replace(request, session=name)).result()
        first[name] = connection.step(step_of(replace(request, session=name), 1)).result()
        connection.close(name)
    connection.close("kept")
    assert np.abs(first["new"].plan - first["old"].plan).max() > 1e-2
