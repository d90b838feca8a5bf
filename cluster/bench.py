"""`drive bench [TOPIC]`: how fast the parts are on this machine.

Every figure comes with the machine that it was measured on. Close other programs first.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from cluster.bench_learner import LearnerBench, bench_learner
from cluster.bench_peers import PeersBench, bench_peers
from cluster.bench_real_views import bench_real_views
from cluster.bench_reprojection import ReprojectionBench, bench_reprojection, lpips_or_none
from cluster.bench_rollout import RolloutBench, bench_rollout
from cluster.bench_service import ServiceBench, bench_service
from cluster.bench_world_model import WorldModelBench, bench_world_model
from cluster.output import machine
from drive_envs.allocator import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class BenchRun:
    """What to measure: one topic or all, each with its own settings.

    `peers` is no part of all: it takes longer than the others together. data: a stereo drive's
    folder (`cluster/bench_real_views.py`), on which `reprojection` is then measured in place of
    MetaDrive.
    """

    topic: Literal[
        "all", "reprojection", "rollout", "learner", "world-model", "service", "peers"
    ] = "all"
    data: Path | None = None
    reprojection: ReprojectionBench = field(default_factory=ReprojectionBench)
    rollout: RolloutBench = field(default_factory=RolloutBench)
    learner: LearnerBench = field(default_factory=LearnerBench)
    world_model: WorldModelBench = field(default_factory=WorldModelBench)
    service: ServiceBench = field(default_factory=ServiceBench)
    peers: PeersBench = field(default_factory=PeersBench)

    def __post_init__(self) -> None:
        if self.data is not None and self.topic != "reprojection":
            raise ValueError(
                f"data={self.data} is for the topic reprojection, not {self.topic}: "
                "say `drive bench reprojection data=...`"
            )


def run(config: BenchRun, output: Path) -> dict[str, Any]:
    """Measure one topic after the other; return the figures by topic, and the machine."""
    keep_freed_memory()
    figures: dict[str, Any] = {
        "machine": machine() | {"load": round(os.getloadavg()[0], 2), "torch": torch.__version__}
    }
    if config.topic == "reprojection" and config.data is not None:
        network = lpips_or_none(config.reprojection.lpips_weights)
        every, height = config.reprojection.every, config.reprojection.camera_height
        figures |= bench_real_views(config.data, output, network, every, height)
    elif config.topic in ("all", "reprojection"):
        figures["reprojection"] = bench_reprojection(output, config.reprojection)
    if config.topic in ("all", "rollout"):
        figures["rollout"] = bench_rollout(config.rollout, output)
    if config.topic in ("all", "learner"):
        figures["learner"] = bench_learner(config.learner, output)
    if config.topic in ("all", "world-model"):
        figures["world_model"] = bench_world_model(config.world_model, output)
    if config.topic in ("all", "service"):
        figures["service"] = bench_service(config.service, output)
        figures["service_over_in_process"] = figures["service"]["service_over_in_process"]
    if config.topic == "peers":
        figures["peers"] = bench_peers(config.peers, output)
        for name in ("least_ratio", "rllib_200kb_0ms", "utilisation_50ms"):
            figures[name] = figures["peers"].pop(name)
    return figures
