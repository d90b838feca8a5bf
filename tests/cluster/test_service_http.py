"""The HTTP front: what comes through is what the service says, and only to who knows the token."""

import io
import json
import threading
import urllib.error
import urllib.request
from dataclasses import asdict

import numpy as np
import pytest

from cluster.local_server import LocalServer
from cluster.service_http import make_app
from tests.world_model.conftest import (
    InProcess,
    opening,
    random_model,
    random_tokenizer,
    step_of,
)
from world_model.engine import Engine, EngineConfig
from world_model.sampler import SamplerConfig

TOKEN = "secret"


@pytest.fixture(scope="module")
def engine():
    sampler = SamplerConfig(num_steps=2, precision="fp32")
    return Engine(random_model(0), random_tokenizer(), sampler, EngineConfig(capacity=4))


@pytest.fixture(scope="module")
def address(engine):
    figures = lambda: asdict(engine.counters)  # noqa: E731
    server = LocalServer(make_app(InProcess(engine), figures, TOKEN), 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server.address
    server.end()
    thread.join(20)


def ask(address, path, body=None, token=TOKEN):
    """Return status and body of an answer."""
    request = urllib.request.Request(
        address + path, data=body, headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def packed(message):
    arrays = {k: v for k, v in vars(message).items() if isinstance(v, np.ndarray)}
    others = {k: v for k, v in vars(message).items() if k not in arrays and v is not None}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, fields=np.array(json.dumps(others)), **arrays)
    return file.getvalue()


def read(body):
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_a_drive_over_http_is_the_drive_in_process(address, engine):
    request = opening("a")
    engine.open(request)
    (expected,) = engine.step([step_of(request, 1)])
    engine.close("a")
    status, body = ask(address, "/open", packed(request))
    assert status == 200
    assert read(body)["plan"].shape == (2, 33, 15)
    status, body = ask(address, "/step", packed(step_of(request, 1)))
    found = read(body)
    np.testing.assert_array_equal(found["images"], expected.images)
    np.testing.assert_allclose(found["plan"], expected.plan, atol=1e-5)
    assert json.loads(str(found["fields"]))["num_batched"] == 2
    assert ask(address, "/close", json.dumps({"session": "a"}).encode())[0] == 200
    assert engine.num_free == 4
    assert json.loads(ask(address, "/figures")[1])["frames"] >= 4


def test_errors_have_a_status_and_a_sentence(address):
    many = opening("many", num_scenes=5)
    cases = {
        ("/step", packed(step_of(opening("nobody"), 1))): (404, "SessionLostError"),
        ("/open", packed(many)): (503, "NoRoomError"),
        ("/open", b"garbage"): (400, "BadRequestError"),
        ("/step", packed(many)): (400, "BadRequestError"),
        ("/close", b"garbage"): (400, "BadRequestError"),
    }
    for (path, body), (status, kind) in cases.items():
        found, answer = ask(address, path, body)
        told = json.loads(answer)
        assert (found, told["error"]) == (status, kind), told
        assert told["message"]


def test_a_torn_archive_is_a_bad_request(address):
    file = io.BytesIO()
    np.savez_compressed(file, images=np.zeros(100_000), fields=np.array("{}"))
    body = bytearray(file.getvalue())
    body[60:90] = bytes(255 - byte for byte in body[60:90])
    status, answer = ask(address, "/step", bytes(body))
    assert (status, json.loads(answer)["error"]) == (400, "BadRequestError")


def test_a_pickle_is_not_opened(address):
    file = io.BytesIO()
    np.savez(file, fields=np.array([{"session": "a"}], dtype=object))
    status, answer = ask(address, "/step", file.getvalue())
    assert status == 400
    assert "allow_pickle" in json.loads(answer)["message"]


@pytest.mark.parametrize("path", ["/open", "/step", "/close", "/figures"])
def test_nobody_gets_in_without_the_token(address, path):
    body = None if path == "/figures" else b""
    for token in ("", "wrong"):
        assert ask(address, path, body, token)[0] == 401


def test_it_is_for_this_machine_alone(address):
    assert address.startswith("http://127.0.0.1:")
