"""`drive serve-world-model`: keep a world model up, for several jobs of the same Ray cluster.

The service belongs to the cluster that RAY_ADDRESS names, or to one that this job starts on its own
machine and tells how to reach. A policy drives in it with `service_name=NAME`. It ends with the job
(Ctrl-C), after the answers under way. A new checkpoint of the same model can be taken over without
a break: `drive serve-world-model name=NAME service.model=PATH` while it is up. What is left at its
default then stays as it is: the number of replicas can be changed too, the other settings cannot.

Where Serve itself is told what to run, by KubeRay or `serve deploy`, `application` is what its
configuration names (`cluster/specs/rayservice.yaml`).
"""

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import ray

from cluster.config import Place, build_record
from cluster.local_server import LocalServer
from cluster.progress import CONSOLE
from cluster.service_http import make_app
from cluster.train_policy import RayConfig
from drive_learner.local_cluster import ALONE, local_cluster
from world_model.service_config import ServiceConfig

log = logging.getLogger(__name__)

CHANGEABLE = ("model", "num_replicas")  # of a service, while it is up
PATIENCE = 10.0  # s for a service to say what it has done


@dataclass(frozen=True, kw_only=True)
class ServeWorldModelRun:
    """One service.

    name: by which jobs find it. seconds: how long it stays up, null for until it is told to end.
    report_every: s between two lines on what it does. http_port: serve HTTP too, on this machine
    alone and for who knows the token (`cluster/service_http.py`); 0 for any port, null for none.
    The token is DRIVE_SERVICE_TOKEN of the environment, or made up and shown.
    """

    name: str = "world-model"
    seconds: float | None = None
    report_every: float = 10.0
    http_port: int | None = None
    service: ServiceConfig = field(default_factory=ServiceConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        if self.report_every <= 0 or (self.seconds is not None and self.seconds < 0):
            raise ValueError(
                f"report_every is {self.report_every} s and seconds {self.seconds}; they must be "
                "positive"
            )


def run(config: ServeWorldModelRun, output: Path) -> dict[str, Any]:
    """Serve until told to end; return what was done. `output` gets nothing."""
    from world_model.service import is_running, serving

    with (
        local_cluster(
            num_cpus=config.ray.num_cpus,
            object_store_mb=config.ray.object_store_mb,
            dashboard=config.ray.dashboard,
        ),
        told_to_end() as ended,  # within, as Ray sets a handler of its own
    ):
        if is_running(config.name):
            return take_over(config)
        with serving(config.service, config.name):
            address = ray.get_runtime_context().gcs_address
            told = f"{ALONE}=0 " if os.environ.get(ALONE) == "0" else ""
            CONSOLE.print(
                f"{config.name} is up: {told}RAY_ADDRESS={address} drive train-policy "
                f"cluster/runs/world_model.yaml service_name={config.name}; Ctrl-C ends it",
                highlight=False,
                markup=False,
            )
            with http_front(config):
                figures = wait(config, ended)
    return {"name": config.name, **figures}


def take_over(config: ServeWorldModelRun) -> dict[str, Any]:
    """Change the service of this name, which is up, to what the run says of it."""
    from world_model.service import settings, start

    before = settings(config.name)
    after = gone_on_with(before, config.service, config.name)
    start(after, config.name)
    log.info("%s goes on with %s, %d replicas", config.name, after.model, after.num_replicas)
    is_replaced = after.model != before.model
    return {"name": config.name, "model": str(after.model), "replaced": is_replaced}


def gone_on_with(running: ServiceConfig, asked: ServiceConfig, name: str) -> ServiceConfig:
    """Return how a service that is up goes on: as it is, but for what is asked of it.

    ValueError where that is what cannot change while it is up.
    """
    if asked.model is not None:
        asked = replace(asked, model=asked.folder)
    default = ServiceConfig()
    said = {
        key: getattr(asked, key)
        for key in (one.name for one in fields(asked))
        if getattr(asked, key) not in (getattr(default, key), getattr(running, key))
    }
    if fixed := [f"service.{key}" for key in said if key not in CHANGEABLE]:
        raise ValueError(
            f"{name} is up with other settings ({', '.join(fixed)}), which cannot change while it "
            "is: leave them out, or end it and start it anew"
        )
    return replace(running, **said)


def application(args: dict[str, Any]) -> Any:
    """Build Serve's application out of `args`, which are the `service` of a run.

    Serve calls it on the cluster, by its import path. ConfigError for what `args` should not hold,
    NetworkFileError when there is no model.
    """
    from world_model.model_file import check_there
    from world_model.service import application as build

    place = Place(key="args", file=Path("Serve's configuration"), overridden=())
    config: ServiceConfig = build_record(ServiceConfig, args, MISSING, place)
    check_there(config.folder)
    return build(config, config.folder)


@contextmanager
def told_to_end() -> Iterator[threading.Event]:
    """Yield what is set by Ctrl-C or a request to terminate, within the block."""
    ended = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield ended
        return
    names = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(name, lambda *_: ended.set()) for name in names]
    try:
        yield ended
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)


@contextmanager
def http_front(config: ServeWorldModelRun) -> Iterator[None]:
    """Serve HTTP for the block, if that is asked for."""
    if config.http_port is None:
        yield
        return
    from world_model.service import ServiceConnection, totals

    token = os.environ.get("DRIVE_SERVICE_TOKEN")
    if not token:
        token = secrets.token_urlsafe(24)
        CONSOLE.print(f"DRIVE_SERVICE_TOKEN={token}", highlight=False, markup=False)
    app = make_app(ServiceConnection(config.name), lambda: totals(config.name), token)
    server = LocalServer(app, config.http_port)
    thread = threading.Thread(target=server.run)
    thread.start()
    CONSOLE.print(f"HTTP at {server.address}", highlight=False, markup=False)
    try:
        yield
    finally:
        server.end()
        thread.join()


def wait(config: ServeWorldModelRun, ended: threading.Event) -> dict[str, Any]:
    """Report until told to end; return what was done, as far as it is known."""
    begun = told = time.monotonic()
    figures = found_done(config.name)
    while not ended.wait(min(config.report_every, 0.5)):
        now = time.monotonic()
        if config.seconds is not None and now - begun >= config.seconds:
            break
        if now - told >= config.report_every:
            told = now
            if found := found_done(config.name):
                figures = found
                log.info("%(sessions)d sessions, %(scenes)d scenes, %(frames)d frames", figures)
    return found_done(config.name) or figures


def found_done(name: str) -> dict[str, Any]:
    """Ask a service what it has done; nothing where it does not answer."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    from world_model.service import totals

    try:
        return totals(name, PATIENCE)
    except (RayError, RayServeException, TimeoutError) as error:
        log.warning("%s does not say what it has done: %s", name, error)
        return {}
