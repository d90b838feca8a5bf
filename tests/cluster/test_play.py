"""The page of `drive play`: what it sends, who may steer, and what a browser makes of it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from playwright.sync_api import sync_playwright
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from cluster.play import Drive, PlayRun, Server, make_driver, opened_world
from cluster.progress import CONSOLE

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.slow


@contextmanager
def played(monkeypatch, **options):
    """Serve a drive; yield it and the page's address."""
    said = []
    monkeypatch.setattr(CONSOLE, "print", lambda text, **_: said.append(text))
    config = PlayRun(port=0, rate=20.0, **options)
    with opened_world(config) as env:
        drive = Drive(env, make_driver(config), config)
        server = Server(drive, config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
        thread.start()
        try:
            for _ in range(500):
                if said:
                    break
                threading.Event().wait(0.02)
            yield drive, said[0].split()[1]
        finally:
            server.end()
            thread.join(20)


def socket_of(address):
    return connect(address.replace("http", "ws") + "/drive", origin=address)


def receive(socket, number):
    """Return what is said of the next frames, and the last picture."""
    told, picture = [], b""
    for _ in range(number):
        told.append(json.loads(socket.recv(timeout=20)))
        picture = socket.recv(timeout=20)
    return told, picture


def steered(drive, wanted):
    """Wait until a key has come through."""
    end = time.monotonic() + 20
    while drive.steer != wanted and time.monotonic() < end:
        time.sleep(0.01)
    return drive.steer == wanted


def test_keys_steer(monkeypatch):
    with played(monkeypatch, num_steps=30) as (_, address), socket_of(address) as socket:
        receive(socket, 2)
        socket.send(json.dumps({"steer": 1}))
        told, picture = receive(socket, 1)
        while not told[-1]["curvature"] and told[-1]["drive"] == 1:
            told, picture = receive(socket, 1)
    assert picture[:2] == b"\xff\xd8"  # JPEG
    assert told[-1]["curvature"] > 0


def test_space_begins_again(monkeypatch):
    with played(monkeypatch, num_steps=45) as (_, address), socket_of(address) as socket:
        told, _ = receive(socket, 2)
        socket.send(json.dumps({"steer": "hard"}))  # is no key
        socket.send(json.dumps({"restart": True}))
        while told[-1]["drive"] == 1:
            told += receive(socket, 1)[0]
    assert told[-1]["drive"] == 2
    assert told[-1]["seconds"] <= 1.0
    assert told[-2]["seconds"] < 8.0  # it did not come to its end, after 9 s


def test_space_is_heard_also_while_a_frame_is_driven(monkeypatch):
    config = PlayRun(port=0, driver="straight", num_steps=45)
    with opened_world(config) as env:
        drive = Drive(env, make_driver(config), config)
        drive.next()
        step = env.step
        monkeypatch.setattr(env, "step", lambda action: (drive.restart(), step(action))[1])
        told = [drive.next()[1] for _ in range(2)]
    assert [(one["drive"], one["seconds"]) for one in told] == [(1, 0.2), (2, 0.0)]


def test_a_policy_is_watched_from_drive_to_drive(monkeypatch):
    with (
        played(monkeypatch, driver="policy", num_steps=8) as (drive, address),
        socket_of(address) as socket,
    ):
        told, _ = receive(socket, 20)
    assert [one["over"] for one in told[:9]] == [False] * 8 + [True]
    assert told[9]["drive"] == 2
    assert max(abs(one["lateral"]) for one in told) < 1.5
    assert drive.decision.plan is not None


def test_a_page_from_elsewhere_may_not_steer(monkeypatch):
    with played(monkeypatch) as (_, address):
        url = address.replace("http", "ws") + "/drive"
        for origin in (Origin("http://example.org"), None):
            with pytest.raises((ConnectionClosed, InvalidStatus)), connect(url, origin=origin) as s:
                s.recv(timeout=10)


def test_one_page_drives_at_a_time(monkeypatch):
    with played(monkeypatch) as (_, address), socket_of(address) as first:
        receive(first, 1)
        with socket_of(address) as second, pytest.raises(ConnectionClosed, match="another page"):
            second.recv(timeout=10)
        receive(first, 2)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_shows_it_and_its_keys_steer(monkeypatch, tmp_path):
    with (
        played(monkeypatch, num_steps=40) as (drive, address),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1100, "height": 560})
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_function("document.getElementById('view').naturalWidth > 0")
        page.keyboard.down("ArrowRight")
        page.wait_for_function("parseFloat(document.getElementById('seconds').textContent) > 1")
        assert steered(drive, -1)
        page.keyboard.up("ArrowRight")
        page.screenshot(path=tmp_path / "play.png")
        before = page.inner_text("#drive")
        page.keyboard.press(" ")
        page.wait_for_function(f"document.getElementById('drive').textContent != '{before}'")
        assert steered(drive, 0)
        assert not errors
        browser.close()


def test_a_port_that_is_taken(monkeypatch):
    with played(monkeypatch) as (drive, address):
        port = int(address.rsplit(":", 1)[1])
        server = Server(drive, PlayRun(port=port))
        with pytest.raises(ValueError, match=r"cannot be had .* say port=0"):
            asyncio.run(server.serve())


def test_it_ends_soon_with_its_cluster(tmp_path):
    """A signal to all its processes, as of a terminal that is closed, ends Ray's before ours."""
    command = [sys.executable, "-m", "cluster", "play", "world=world_model", "num_steps=30"]
    played = subprocess.Popen(
        [*command, "port=0", f"output={tmp_path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert played.stderr is not None
    try:
        assert any("Ctrl-C ends it" in line for line in played.stderr)
        os.killpg(played.pid, signal.SIGTERM)
        begun = time.monotonic()
        told, _ = played.communicate(timeout=100)
    finally:
        played.kill()
    assert time.monotonic() - begun < 50  # Ray would end it after 60
    assert json.loads(told)["world"] == "world_model"
    assert played.returncode == 0
