"""The service on a real Ray Serve: shared, routed by session, and survived when replicas die."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.util import list_named_actors

from drive_envs.protocol import BadRequestError, NoRoomError, SessionLostError
from drive_learner.local_cluster import local_cluster
from tests.world_model.conftest import CONFIG, assert_alike, drive, opening, step_of
from world_model.dit import WorldModel
from world_model.engine import EngineConfig
from world_model.model_file import load_world_model, save_world_model
from world_model.sampler import SamplerConfig
from world_model.scheduler import SchedulerConfig
from world_model.service import ServiceConnection, serving, start
from world_model.service_config import ServiceConfig


def replicas_of(application):
    """Return the names of the actors that are an application's replicas, sorted."""
    named: list[Any] = list_named_actors(all_namespaces=True)
    return sorted(
        actor["name"]
        for actor in named
        if actor["name"].startswith(f"SERVE_REPLICA::{application}#")
    )


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(num_cpus=4, object_store_mb=200):
        yield


@pytest.fixture
def config(model, tokenizer, tmp_path):
    save_world_model(model, tokenizer, tmp_path / "model")
    return ServiceConfig(
        model=tmp_path / "model",
        num_cpus=0.5,
        sampler=SamplerConfig(num_steps=2, precision="fp32"),
        engine=EngineConfig(capacity=8),
        scheduler=SchedulerConfig(max_wait=0.05, admission_timeout=1.0),
    )


def test_the_service_shows_what_the_model_does_in_process(cluster, config, make_engine):
    requests = [opening(name, num_scenes=n, seed=n) for n, name in enumerate("abc", start=1)]
    model, tokenizer = load_world_model(config.model)
    expected = {}
    for request in requests:
        engine = make_engine()
        engine.replace_weights(model, tokenizer)
        expected[request.session] = drive(engine, request)
    with serving(config, "same") as name, ThreadPoolExecutor(3) as pool:
        connection = ServiceConnection(name)

        def drive_there(request):
            connection.open(request).result()
            found = [connection.step(step_of(request, n + 1)).result() for n in range(5)]
            connection.close(request.session)
            return found

        for request, found in zip(requests, pool.map(drive_there, requests), strict=True):
            for one, other in zip(found, expected[request.session], strict=True):
                assert_alike(one, other)
        figures = connection.handle.figures.remote().result()
    assert figures["opened"] == figures["closed"] == 3
    assert figures["scenes"] == figures["sessions"] == 0


def test_errors_come_through_and_harm_nothing(cluster, config):
    with serving(config, "errors") as name:
        connection = ServiceConnection(name)
        request = opening("a", num_scenes=5)
        connection.open(request).result()
        with pytest.raises(SessionLostError, match="there is no session 'b'"):
            connection.step(step_of(opening("b"), 1)).result()
        poses = np.full((2, 4, 3), np.nan)
        with pytest.raises(BadRequestError, match="not finite"):
            connection.open(replace(opening("b"), context_poses=poses)).result()
        with pytest.raises(NoRoomError, match="exceed the capacity of 8"):
            connection.open(opening("b", num_scenes=4)).result()
        for method in ("open", "step"):
            handle = connection.handle.options(method_name=method, session_id="a")
            with pytest.raises(BadRequestError, match="a str is no"):
                handle.remote("garbage").result()
        assert connection.step(step_of(request, 1)).result().num_batched == 5


def test_sessions_stay_with_their_replicas_and_are_lost_with_them(cluster, config):
    config = replace(config, num_replicas=2, num_cpus=0.25)
    requests = [opening(f"s{n}", num_scenes=1, seed=n) for n in range(6)]
    with serving(config, "two") as name:
        connection = ServiceConnection(name)
        for request in requests:
            connection.open(request).result()
        for frame in range(3):  # each finds its own replica again
            for request in requests:
                connection.step(step_of(request, frame + 1)).result()
        replicas = replicas_of("two")
        assert len(replicas) == 2
        ray.kill(ray.get_actor(replicas[0], namespace="serve"))
        outcomes = []
        for request in requests:
            try:
                connection.step(step_of(request, 4)).result()
                outcomes.append("went on")
            except SessionLostError:
                # The client opens it anew and goes on, wherever that is.
                connection.open(replace(request, frame=3)).result()
                connection.step(step_of(request, 4)).result()
                outcomes.append("was opened anew")
    assert set(outcomes) == {"went on", "was opened anew"}


def test_weights_are_replaced_in_place(cluster, config, tokenizer, tmp_path):
    torch.manual_seed(3)
    other = WorldModel(CONFIG).eval()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.5 / parameter.shape[-1] ** 0.5)
    save_world_model(other, tokenizer, tmp_path / "other")
    request = opening("a")
    with serving(config, "weights") as name:
        connection = ServiceConnection(name)
        connection.open(request).result()
        connection.step(step_of(request, 1)).result()
        start(config, name, model=tmp_path / "other")
        views = connection.step(step_of(request, 2)).result()  # the session is still there
        connection.open(replace(request, session="b")).result()
        new = connection.step(step_of(replace(request, session="b"), 1)).result()
        start(config, name)
        connection.open(replace(request, session="c")).result()
        old = connection.step(step_of(replace(request, session="c"), 1)).result()
    assert np.isfinite(views.plan).all()
    assert np.abs(new.plan - old.plan).max() > 1e-2
