"""What a service of the world model is to be; apart from it, as loading Ray Serve takes seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from world_model.engine import EngineConfig
from world_model.model_file import SHIPPED
from world_model.sampler import SamplerConfig
from world_model.scheduler import SchedulerConfig


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """The replicas, and what each of them holds.

    model: folder of a world model, readable on every node with a replica; null is the shipped one.
    num_cpus, num_gpus,
    resources: of a replica, as Ray counts them, fractions allowed. num_threads: of a replica on a
    CPU, null for num_cpus. drain: s that a replica which is to go may still take for its answers.
    """

    model: Path | None = None
    num_replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    num_threads: int | None = None
    drain: float = 10.0
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        if self.num_replicas < 1:
            raise ValueError(f"service.num_replicas is {self.num_replicas}, not 1 or more")
        if self.num_cpus < 0 or self.num_gpus < 0 or self.drain < 0:
            raise ValueError("service.num_cpus, num_gpus and drain must not be negative")

    @property
    def folder(self) -> Path:
        """Where the model is, absolute, as replicas may start elsewhere."""
        return (self.model or SHIPPED).resolve()
