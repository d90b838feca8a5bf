"""A service that is kept up: found by its name, told to end, and given other weights."""

import json
import os
import signal
import threading
import time
import urllib.request
from dataclasses import replace

import pytest
from ray.exceptions import ActorDiedError

from cluster import serve_world_model
from cluster.config import load
from cluster.jobs import RUNS
from cluster.progress import CONSOLE
from cluster.serve_world_model import ServeWorldModelRun, gone_on_with, run, wait
from tests.world_model.conftest import opening, random_model, random_tokenizer, step_of
from world_model.engine import EngineConfig
from world_model.model_file import save_world_model
from world_model.sampler import SamplerConfig
from world_model.service_config import ServiceConfig


@pytest.mark.slow
def test_a_service_is_kept_up_until_it_is_told_to_end(tmp_path, monkeypatch):
    from world_model.service import ServiceConnection, is_running, settings

    for seed in range(2):
        save_world_model(random_model(seed), random_tokenizer(), tmp_path / str(seed))
    config = ServeWorldModelRun(
        name="kept",
        report_every=0.2,
        http_port=0,
        service=ServiceConfig(
            model=tmp_path / "0",
            num_cpus=0.5,
            sampler=SamplerConfig(num_steps=1),
            engine=EngineConfig(capacity=4),
        ),
    )
    said, found = [], {}
    monkeypatch.setattr(CONSOLE, "print", lambda text, **_: said.append(text))
    monkeypatch.setenv("DRIVE_SERVICE_TOKEN", "secret")

    def use_it():
        try:
            while not any(text.startswith("HTTP at") for text in said):
                time.sleep(0.05)
            found["is_running"] = is_running("kept")
            connection, request = ServiceConnection("kept"), opening("a")
            connection.open(request).result()
            connection.step(step_of(request, 1)).result()
            other = replace(config, service=ServiceConfig(model=tmp_path / "1"))
            larger = replace(config, service=ServiceConfig(engine=EngineConfig(capacity=5)))
            # As the command would, which is a process of its own on the same cluster.
            with monkeypatch.context() as patch:
                patch.setattr(serve_world_model, "local_cluster", lambda **_: threading.Lock())
                found["again"] = run(other, tmp_path)
                with pytest.raises(ValueError, match=r"up with other settings \(service\.engine\)"):
                    run(larger, tmp_path)
            found["settings"] = settings("kept")
            connection.step(step_of(request, 2)).result()
            connection.close("a")
            address = next(text for text in said if text.startswith("HTTP at")).split()[-1]
            asked = urllib.request.Request(
                address + "/figures", headers={"Authorization": "Bearer secret"}
            )
            deadline = time.monotonic() + 20  # for the session to be closed before the service is
            while time.monotonic() < deadline:
                with urllib.request.urlopen(asked, timeout=20) as answer:
                    found["figures"] = json.loads(answer.read())
                if not found["figures"]["sessions"]:
                    break
                time.sleep(0.05)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=use_it)
    thread.start()
    figures = run(config, tmp_path)
    thread.join(30)
    assert found["is_running"]
    assert found["again"]["replaced"]
    assert found["settings"] == replace(config.service, model=tmp_path / "1")
    assert found["figures"]["frames"] == 4
    assert figures["sessions"] == figures["scenes"] == 0
    assert figures["opened"] == figures["closed"] == 1
    assert any("service_name=kept" in text for text in said)


def test_a_service_that_is_up_goes_on_as_it_is_but_for_what_is_said(tmp_path):
    running = ServiceConfig(
        model=tmp_path / "old", num_replicas=3, num_gpus=0.5, engine=EngineConfig(capacity=9)
    )
    # The run that is shipped says nothing: all of it is as by default.
    unsaid = load(ServeWorldModelRun, RUNS / "world_model_service.yaml").service
    assert gone_on_with(running, unsaid, "kept") == running
    assert gone_on_with(running, running, "kept") == running
    new = ServiceConfig(model=tmp_path / "new")
    assert gone_on_with(running, new, "kept") == replace(running, model=tmp_path / "new")
    more = ServiceConfig(num_replicas=4)
    assert gone_on_with(running, more, "kept") == replace(running, num_replicas=4)
    other = ServiceConfig(num_replicas=4, num_gpus=1.0, drain=3.0)
    with pytest.raises(ValueError, match=r"kept is up .* \(service.num_gpus, service.drain\)"):
        gone_on_with(running, other, "kept")


@pytest.mark.slow
def test_a_service_that_is_lost_is_waited_for_no_longer_than_asked(monkeypatch, caplog):
    from world_model import service

    answers = [{"frames": 3}]

    def totals(name, patience):
        if answers:
            return answers.pop()
        raise ActorDiedError

    monkeypatch.setattr(service, "totals", totals)
    config = ServeWorldModelRun(seconds=0.2, report_every=0.05)
    assert wait(config, threading.Event()) == {"frames": 3}
    assert "world-model does not say what it has done" in caplog.text
