"""`drive serve-world-model`: keep a world model up, for several jobs of the same Ray cluster.

The service belongs to the cluster that RAY_ADDRESS names, or to one that this job starts on its own
machine and tells how to reach. A policy drives in it with `service_name=NAME`. It ends with the job
(Ctrl-C), after the answers under way. A new checkpoint of the same model can be taken over without
a break: `drive serve-world-model name=NAME service.model=PATH` while it is up.
"""

import logging
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from cluster.progress import CONSOLE
from cluster.train_policy import RayConfig
from drive_learner.local_cluster import local_cluster
from world_model.service_config import ServiceConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServeWorldModelRun:
    """One service.

    name: by which jobs find it. seconds: how long it stays up, null for until it is told to end.
    report_every: s between two lines on what it does.
    """

    name: str = "world-model"
    seconds: float | None = None
    report_every: float = 10.0
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
    from ray import serve

    from world_model.service import is_running, serving, start, totals

    ended = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: ended.set())
    with local_cluster(
        num_cpus=config.ray.num_cpus,
        object_store_mb=config.ray.object_store_mb,
        dashboard=config.ray.dashboard,
    ):
        if is_running(config.name):
            start(config.service, config.name)
            log.info("%s goes on with %s", config.name, config.service.folder)
            return {"name": config.name, "model": str(config.service.folder), "replaced": True}
        with serving(config.service, config.name):
            address = ray.get_runtime_context().gcs_address
            CONSOLE.print(
                f"{config.name} is up: RAY_ADDRESS={address} drive train-policy "
                f"cluster/runs/world_model.yaml service_name={config.name}; Ctrl-C ends it",
                highlight=False,
                markup=False,
            )
            figures: dict[str, Any] = {}
            begun = told = time.monotonic()
            while not ended.wait(min(config.report_every, 0.5)):
                now = time.monotonic()
                if config.seconds is not None and now - begun >= config.seconds:
                    break
                if now - told >= config.report_every:
                    told, figures = now, totals(config.name)
                    log.info("%(sessions)d sessions, %(scenes)d scenes, %(frames)d frames", figures)
            figures = totals(config.name)
        serve.shutdown()
    return {"name": config.name, **figures}
