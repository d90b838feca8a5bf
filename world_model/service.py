"""The world model as a Ray Serve deployment that many actors share.

A replica holds one model and the sessions that were opened there (`engine`), and answers what its
scheduler gathers. All requests of a session go to the same replica, as long as it lives: Serve's
router hashes the session's name. A request that comes to a replica which does not know its session
is answered with SessionLostError, and the client opens it anew (`drive_envs.learned`).

Serve's client API is wrapped here and nowhere else: `serving` starts and ends an application,
`ServiceConnection` speaks to one. No HTTP is served.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve import context as serve_context
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)
from ray.serve.schema import ApplicationStatus
from ray.util.metrics import Counter, Gauge, Histogram

from drive_envs.allocator import keep_freed_memory
from drive_envs.protocol import OpenSession, SessionLostError, StepSession, Views
from world_model.engine import Engine
from world_model.model_file import check_there, load_world_model
from world_model.scheduler import Scheduler
from world_model.service_config import ServiceConfig

log = logging.getLogger(__name__)

DEPLOYMENT = "WorldModel"
ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"  # alpha API
PATIENCE = 30.0  # s until replicas that are lost are there again
PROMPT = 5.0  # s within which Serve's controller answers
# Serve would tell of every request, in the log of whoever started it.
QUIET = {"log_level": "WARNING", "enable_access_log": False}
WAIT_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
SCENES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


class Replica:
    """One model, its sessions, and what they ask; a process of its own in Serve."""

    def __init__(self, config: ServiceConfig) -> None:
        torch.set_num_threads(config.num_threads or max(1, round(config.num_cpus)))
        keep_freed_memory()
        self.config, self.model = config, config.folder
        device = "cuda" if config.num_gpus > 0 else "cpu"
        model, tokenizer = load_world_model(config.folder)
        self.engine = Engine(model.to(device), tokenizer, config.sampler, config.engine)
        self.metrics = ServiceMetrics(self.engine)
        self._scheduler: Scheduler | None = None

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler, made in the replica's own event loop."""
        if self._scheduler is None:
            self._scheduler = Scheduler(self.engine, self.config.scheduler)
        return self._scheduler

    async def open(self, request: OpenSession) -> Views:
        """Open a session; see `Engine.open`."""
        views = await self.scheduler.open(request)
        self.metrics.record(None)
        return views

    async def step(self, request: StepSession) -> Views:
        """Answer a request; see `Engine.step`."""
        views = await self.scheduler.step(request)
        self.metrics.record(views)
        return views

    async def close(self, session: str) -> bool:
        """Close a session; False when there is none."""
        is_closed = await self.scheduler.close(session)
        self.metrics.record(None)
        return is_closed

    async def figures(self) -> dict[str, Any]:
        """Return what happened here so far."""
        engine = self.engine
        return {
            **asdict(engine.counters),
            "sessions": len(engine.sessions),
            "scenes": engine.config.capacity - engine.num_free,
            "capacity": engine.config.capacity,
            "bytes_per_scene": engine.bytes_per_scene,
        }

    async def settings(self) -> ServiceConfig:
        """Return what this replica was made with, and the model that it has now."""
        return replace(self.config, model=self.model)

    async def reconfigure(self, user_config: Mapping[str, str]) -> None:
        """Take other weights, `user_config["model"]`, between two frames; sessions stay."""
        model = Path(user_config["model"])
        if model != self.model:
            await self.scheduler.replace_weights(lambda: load_world_model(model))
            self.model = model

    def check_health(self) -> None:
        """Raise when requests are no longer answered."""
        if self._scheduler is not None and not self._scheduler.is_well:
            raise RuntimeError("the scheduler has ended")


class ServiceMetrics:
    """What a replica tells Ray's metrics (`ray_world_model_...`)."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.told = {"frames": 0, "reopened": 0, "expired": 0, "refused": 0}
        self.told_seconds: dict[str, float] = {}
        name = "world_model_"
        self.sessions = Gauge(f"{name}sessions", "Sessions that are open.")
        self.scenes = Gauge(f"{name}scenes", "Scenes that are open, each with its memory.")
        self.memory = Gauge(f"{name}memory_bytes", "Keys and values of the open scenes.")
        self.batch = Histogram(f"{name}batch_scenes", "Scenes of a pass.", boundaries=SCENES)
        self.queue = Histogram(
            f"{name}queue_seconds", "Wait of a request for its pass.", boundaries=WAIT_SECONDS
        )
        self.counters = {
            key: Counter(f"{name}{key}", text)
            for key, text in {
                "frames": "Frames made.",
                "reopened": "Sessions opened anew after their replica was lost.",
                "expired": "Sessions closed because their driver had vanished.",
                "refused": "Openings for which there was no room.",
            }.items()
        }
        self.seconds = Counter(f"{name}seconds", "Time by phase.", tag_keys=("phase",))

    def record(self, views: Views | None) -> None:
        """Tell what has changed, and of a request that was answered."""
        engine = self.engine
        self.sessions.set(len(engine.sessions))
        scenes = engine.config.capacity - engine.num_free
        self.scenes.set(scenes)
        self.memory.set(scenes * engine.bytes_per_scene)
        for name, counter in self.counters.items():
            total = getattr(engine.counters, name)
            if total > self.told[name]:
                counter.inc(total - self.told[name])
                self.told[name] = total
        for phase, total in list(engine.counters.seconds.items()):
            before = self.told_seconds.get(phase, 0.0)
            if total > before:
                self.seconds.inc(total - before, {"phase": phase})
                self.told_seconds[phase] = total
        if views is not None:
            self.batch.observe(views.num_batched)
            self.queue.observe(max(views.seconds.get("queue", 0.0), 1e-6))


@contextmanager
def serving(config: ServiceConfig, name: str) -> Iterator[str]:
    """Serve a world model under a name for the block, whatever happens; yield the name.

    Waits until all replicas are up. Ray is connected already.
    """
    try:
        start(config, name)
        yield name
    finally:
        end(name)


def start(config: ServiceConfig, name: str, *, model: Path | None = None) -> None:
    """Start an application, or give the one of this name other weights (`model`).

    Where replicas of this name are up that were made with other settings than model, number and
    drain, there will be new ones, and their sessions are gone. NetworkFileError when there is no
    model, before anything is started.
    """
    folder = (model or config.folder).resolve()
    check_there(folder)
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    serve.run(application(config, folder), name=name, route_prefix=None)


def end(name: str) -> None:
    """End an application, and wait for it, where Serve was started and is still there.

    `serve.delete` would wait for a controller that is gone, with its cluster, until Ray ends the
    process.
    """
    if not serve_context._cached_client_from_current_session():
        return
    try:
        ask_controller("delete_apps", [name])
        while name in ask_controller("get_serve_instance_details")["applications"]:
            time.sleep(0.1)
    except RayError as error:
        log.warning("%s is not ended: Serve does not answer (%s)", name, error)


def ask_controller(method: str, *args: Any) -> Any:
    """Ask Serve's controller, which is up; a RayError when it does not answer soon."""
    client: Any = serve_context._get_global_client()
    return ray.get(getattr(client._controller, method).remote(*args), timeout=PROMPT)


def application(config: ServiceConfig, folder: Path) -> serve.Application:
    """Describe a service whose replicas hold the model in `folder`; nothing is started."""
    options: dict[str, Any] = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
    if config.resources:
        options["resources"] = dict(config.resources)
    most = config.engine.capacity + config.scheduler.max_openings
    router_class: Any = ROUTER
    router = RequestRouterConfig(request_router_class=router_class)
    deployment: Any = serve.deployment(
        Replica,
        name=DEPLOYMENT,
        num_replicas=config.num_replicas,
        ray_actor_options=options,
        # Requests wait in our scheduler, which knows which of them to take together.
        max_ongoing_requests=most,
        max_queued_requests=-1,
        user_config={"model": str(folder)},
        request_router_config=router,
        graceful_shutdown_timeout_s=config.drain,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=QUIET,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
    )
    # Serve makes a version up for each `run`, and a new version means new replicas, whose sessions
    # are gone. There is no public way to say that only `user_config` has changed.
    deployment._version = version_of(config)
    # A replica begins in a folder of Ray's: relative paths are meant from here.
    return deployment.bind(replace(config, model=config.folder))


def version_of(config: ServiceConfig) -> str:
    """Return a name for what replicas are made with and cannot change while they are up."""
    made_with = replace(config, model=None, num_replicas=1, drain=0.0)
    return hashlib.sha256(repr(made_with).encode()).hexdigest()[:12]


def is_running(name: str) -> bool:
    """Tell whether an application of this name is up in the Ray cluster that is connected."""
    application = serve.status().applications.get(name)
    return application is not None and application.status == ApplicationStatus.RUNNING


def settings(name: str) -> ServiceConfig:
    """Return how an application goes on that is up: its replicas, their number, the model."""
    config: ServiceConfig = ask_all(name, "settings")[0]
    details = ask_controller("get_serve_instance_details")
    deployments = details["applications"][name]["deployments"]
    return replace(config, num_replicas=deployments[DEPLOYMENT]["target_num_replicas"])


def ask_all(name: str, method: str, patience: float = PATIENCE) -> list[Any]:
    """Ask every replica; TimeoutError when one does not answer.

    A handle that is new learns a moment later which ones there are, and every handle a moment later
    which ones are dead.
    """
    # What is left out would be asked of a cluster that is gone until Ray ends the process.
    unasked: Any = {"_check_exists": False, "_record_telemetry": False}
    handle = serve.get_deployment_handle(DEPLOYMENT, name, **unasked)
    deadline = time.monotonic() + patience
    while True:
        try:
            return list(handle.broadcast(method).results(timeout_s=patience))
        except (DeploymentUnavailableError, RayActorError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def totals(name: str, patience: float = PATIENCE) -> dict[str, Any]:
    """Return what happened in all replicas of an application since they were started."""
    replicas = ask_all(name, "figures", patience)
    total: dict[str, Any] = {"replicas": len(replicas), "seconds": {}}
    for figures in replicas:
        for key, value in figures.items():
            if key == "seconds":
                for phase, seconds in value.items():
                    spent = total["seconds"].get(phase, 0.0) + seconds
                    total["seconds"][phase] = round(spent, 3)
            elif key == "bytes_per_scene":
                total[key] = value
            else:
                total[key] = total.get(key, 0) + value
    return total


class Answer:
    """An answer that is under way; `result` waits for it."""

    def __init__(self, response: Any, timeout: float) -> None:
        self._response, self._timeout = response, timeout

    def result(self) -> Views:
        """Wait; SessionLostError when the replica is gone, TimeoutError when it is too slow."""
        try:
            return self._response.result(timeout_s=self._timeout)
        except BackPressureError as error:
            raise TimeoutError("the world model's queue is full") from error
        except TimeoutError:  # Ray's own are RayErrors as well
            raise
        except (RayServeException, RayError) as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, (LookupError, RuntimeError, ValueError)):
                raise cause from None
            raise SessionLostError(f"a replica of the world model is gone: {error}") from error


class ServiceConnection:
    """Speaks to an application by its name, from any process of the same Ray cluster."""

    def __init__(self, name: str, timeout: float = 60.0) -> None:
        self.handle = serve.get_deployment_handle(DEPLOYMENT, name)
        self.timeout = timeout

    def open(self, request: OpenSession) -> Answer:
        """Ask to open a session."""
        method = self.handle.options(method_name="open", session_id=request.session)
        return Answer(method.remote(request), self.timeout)

    def step(self, request: StepSession) -> Answer:
        """Ask what a session looks like from poses."""
        method = self.handle.options(method_name="step", session_id=request.session)
        return Answer(method.remote(request), self.timeout)

    def close(self, session: str) -> Answer:
        """Close a session; the answer, whether there was one, need not be waited for."""
        method = self.handle.options(method_name="close", session_id=session)
        return Answer(method.remote(session), self.timeout)
