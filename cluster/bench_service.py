"""How fast the world model's service is, beside the same model called in this process.

Several drivers, each a process of its own, step their sessions as fast as they are answered; each
session has the same number of scenes. In this process the same scenes are stepped by one call a
frame, which is the batch that the service could at best have gathered. Both take turns; medians are
reported. Weights and images are random: how long a frame takes does not depend on them.

What a call costs beside the work is the time that its driver waited, less the wait for other
drivers' requests and the phases of the pass.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import torch

from cluster.curve_plot import Panel, draw_curves
from cluster.progress import progress
from drive_envs.protocol import OpenSession, StepSession
from drive_learner.local_cluster import local_cluster
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModel, WorldModelConfig
from world_model.engine import Engine, EngineConfig
from world_model.model_file import load_world_model, save_world_model
from world_model.sampler import SamplerConfig
from world_model.service_config import ServiceConfig
from world_model.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ServiceBench:
    """Which model, how it is served, and by how many it is asked.

    num_sessions: drivers at once. num_replicas: of the service. headline: the number of drivers
    whose ratio is the headline, with the fewest replicas. scenes: of a session. num_frames: of a
    measurement. num_repeats: measurements of each.
    """

    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    tokenizer: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    service: ServiceConfig = field(
        default_factory=lambda: ServiceConfig(
            sampler=SamplerConfig(num_steps=4),
            # Drivers are silent while the model in process has its turn.
            engine=EngineConfig(capacity=64, batch_size=64, lease=3600.0),
        )
    )
    num_sessions: tuple[int, ...] = (1, 2, 4, 8, 16)
    num_replicas: tuple[int, ...] = (1, 2)
    headline: int = 8
    scenes: int = 4
    num_frames: int = 6
    num_repeats: int = 3

    def __post_init__(self) -> None:
        if self.headline not in self.num_sessions:
            raise ValueError(
                f"service.headline is {self.headline}, not one of num_sessions {self.num_sessions}"
            )
        if max(self.num_sessions) * self.scenes > self.service.engine.capacity:
            raise ValueError(
                f"{max(self.num_sessions)} sessions of {self.scenes} scenes exceed the capacity of "
                f"{self.service.engine.capacity}: raise service.service.engine.capacity"
            )


def bench_service(config: ServiceBench, output: Path) -> dict[str, Any]:
    """Measure; return frames/s by replicas and sessions, and `service_over_in_process`.

    `output` gets `service.png`, the curve.
    """
    from world_model.service import serving

    rates: dict[str, dict[int, list[float]]] = {"in process": {}}
    overheads: dict[int, list[float]] = {}
    total = config.num_repeats * len(config.num_sessions) * (1 + len(config.num_replicas))
    with (
        tempfile.TemporaryDirectory() as folder,
        progress("service", total) as meter,
        local_cluster(num_cpus=sum(config.num_replicas) + 2, object_store_mb=1000),
    ):
        service = replace(config.service, model=make_model(config, Path(folder)))
        for count in config.num_replicas:
            kind = f"{count} replica{'s' if count > 1 else ''}"
            rates[kind] = {}
            is_first = count == config.num_replicas[0]
            with serving(replace(service, num_replicas=count), f"bench-{count}") as name:
                for number in config.num_sessions:
                    drivers = Drivers(name, number, config)
                    beside = InProcess(service, number, config) if is_first else None
                    for _ in range(config.num_repeats):
                        rate, overhead = drivers.rate()
                        rates[kind].setdefault(number, []).append(rate)
                        if is_first:
                            overheads.setdefault(number, []).append(overhead)
                        meter.advance(note=f"{kind}, {number} drivers: {rate:.1f} frames/s")
                        if beside is not None:
                            rates["in process"].setdefault(number, []).append(beside.rate())
                            meter.advance(note=f"in process: {rates['in process'][number][-1]:.1f}")
                    drivers.close()
    found = {
        kind: {number: median(values) for number, values in by_number.items()}
        for kind, by_number in rates.items()
    }
    panel = Panel(
        title="frames/s, all together",
        label=f"drivers at once, {config.scenes} scenes each",
        curves={kind: np.array(list(curve.values())) for kind, curve in found.items()},
        x=config.num_sessions,
    )
    picture = draw_curves([panel])
    (output / "service.png").write_bytes(picture)
    first = next(kind for kind in found if kind != "in process")
    return {
        "frames_per_second": {
            kind: {str(number): round(rate, 1) for number, rate in curve.items()}
            for kind, curve in found.items()
        },
        "overhead_ms": {
            str(number): round(1000 * median(values), 2) for number, values in overheads.items()
        },
        "scenes_per_session": config.scenes,
        "service_over_in_process": round(
            found[first][config.headline] / found["in process"][config.headline], 3
        ),
    }


def make_model(config: ServiceBench, folder: Path) -> Path:
    """Write a model with random weights."""
    torch.manual_seed(0)
    save_world_model(WorldModel(config.model), Tokenizer(config.tokenizer), folder)
    return folder


def opening(config: ServiceBench, session: str) -> OpenSession:
    """Make up a session."""
    model, num = config.model, config.scenes
    rng = np.random.default_rng(0)
    size = (2, 3, model.height, model.width)
    num_context = model.num_history + 1
    context = rng.integers(0, 256, (num, num_context, *size), np.uint8)
    poses = np.zeros((num, num_context + 60, 3))
    poses[..., 0] = 2.0 * np.arange(poses.shape[1])
    return OpenSession(
        session=session,
        context=context,
        context_poses=poses[:, :num_context],
        anchors=np.repeat(context[:, :1], model.num_anchors, axis=1),
        anchor_poses=poses[:, 50 : 50 + model.num_anchors],
        wait=np.full(num, 40),
        seed=np.arange(num),
    )


def step_of(request: OpenSession, frame: int) -> StepSession:
    """Ask for a frame, straight on."""
    scenes = np.arange(request.num_scenes)
    poses = request.context_poses[:, -1] + frame * np.array([2.0, 0.0, 0.0])
    return StepSession(session=request.session, frame=frame, scenes=scenes, poses=poses)


class Driver:
    """One session, in a process of its own."""

    def __init__(self, name: str, number: int, config: ServiceBench) -> None:
        from world_model.service import ServiceConnection

        self.connection = ServiceConnection(name)
        self.request = opening(config, f"driver-{number}-{time.time_ns()}")
        self.connection.open(self.request).result()
        self.frame = 0

    def drive(self, num_frames: int) -> list[float]:
        """Step on; return what each call cost beside the work, in s."""
        costs = []
        for _ in range(num_frames):
            self.frame += 1
            begin = time.perf_counter()
            views = self.connection.step(step_of(self.request, self.frame)).result()
            costs.append(time.perf_counter() - begin - sum(views.seconds.values()))
        return costs

    def close(self) -> None:
        """Give the session back."""
        # Who is killed with the request still on its way would leave the session behind.
        self.connection.close(self.request.session).result()


class Drivers:
    """Several of them, all at once."""

    def __init__(self, name: str, number: int, config: ServiceBench) -> None:
        self.config, self.number = config, number
        driver = ray.remote(Driver).options(num_cpus=0)
        self.drivers: list[Any] = [driver.remote(name, i, config) for i in range(number)]
        self._all("drive", 1)

    def rate(self) -> tuple[float, float]:
        """Return frames/s of all together, and what a call costs beside the work, in s."""
        begin = time.perf_counter()
        costs = self._all("drive", self.config.num_frames)
        seconds = time.perf_counter() - begin
        frames = self.number * self.config.scenes * self.config.num_frames
        return frames / seconds, median(cost for of_driver in costs for cost in of_driver)

    def close(self) -> None:
        """End them."""
        self._all("close")
        for driver in self.drivers:
            ray.kill(driver)

    def _all(self, method: str, *given: Any) -> Sequence[Any]:
        return ray.get([getattr(driver, method).remote(*given) for driver in self.drivers])


class InProcess:
    """The same scenes, in this process and by one call a frame."""

    def __init__(self, service: ServiceConfig, number: int, config: ServiceBench) -> None:
        self.num_threads = service.num_threads or max(1, round(service.num_cpus))
        self.config, self.frame = config, 0
        model, tokenizer = load_world_model(service.folder)
        device = "cuda" if service.num_gpus > 0 else "cpu"
        self.engine = Engine(model.to(device), tokenizer, service.sampler, service.engine)
        self.requests = [opening(config, str(index)) for index in range(number)]
        for request in self.requests:
            self.engine.open(request)
        self._step()

    def rate(self) -> float:
        """Return frames/s."""
        num_threads = torch.get_num_threads()
        torch.set_num_threads(self.num_threads)
        begin = time.perf_counter()
        for _ in range(self.config.num_frames):
            self._step()
        seconds = time.perf_counter() - begin
        torch.set_num_threads(num_threads)
        return len(self.requests) * self.config.scenes * self.config.num_frames / seconds

    def _step(self) -> None:
        self.frame += 1
        self.engine.step([step_of(request, self.frame) for request in self.requests])
