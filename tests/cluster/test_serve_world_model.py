"""A service that is kept up: found by its name, told to end, and given other weights."""

import json
import threading
import time
import urllib.request
from dataclasses import replace

import pytest

from cluster import serve_world_model
from cluster.progress import CONSOLE
from cluster.serve_world_model import ServeWorldModelRun, run
from tests.world_model.conftest import opening, random_model, random_tokenizer, step_of
from world_model.engine import EngineConfig
from world_model.model_file import save_world_model
from world_model.sampler import SamplerConfig
from world_model.service_config import ServiceConfig


@pytest.mark.slow
def test_a_service_is_kept_up_until_it_is_told_to_end(tmp_path, monkeypatch):
    from world_model.service import ServiceConnection, is_running

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
    ended = threading.Event()

    def use_it():
        try:
            while not any(text.startswith("HTTP at") for text in said):
                time.sleep(0.05)
            found["is_running"] = is_running("kept")
            connection, request = ServiceConnection("kept"), opening("a")
            connection.open(request).result()
            connection.step(step_of(request, 1)).result()
            other = replace(config, service=replace(config.service, model=tmp_path / "1"))
            # As the command would, which is a process of its own on the same cluster.
            with monkeypatch.context() as patch:
                patch.setattr(serve_world_model, "local_cluster", lambda **_: threading.Lock())
                found["again"] = run(other, tmp_path)
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
            ended.set()

    class Told:
        def __enter__(self):
            return ended

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(serve_world_model, "told_to_end", Told)
    thread = threading.Thread(target=use_it)
    thread.start()
    figures = run(config, tmp_path)
    thread.join(30)
    assert found["is_running"]
    assert found["again"]["replaced"]
    assert found["figures"]["frames"] == 4
    assert figures["sessions"] == figures["scenes"] == 0
    assert figures["opened"] == figures["closed"] == 1
    assert any("service_name=kept" in text for text in said)
