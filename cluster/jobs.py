"""The jobs that `drive` knows, and doing one of them: resolve its run, do it, leave the result.

A job is a module of this package with a frozen run dataclass and `run(config, output) -> figures`.
It is imported only when it is done; the table itself costs nothing to read.
"""

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNS = Path(__file__).parent / "runs"

OURS = ("cluster", "drive_actors", "drive_envs", "drive_learner", "world_model")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the jobs table. `runs` are the shipped YAMLs, the first is the default."""

    module: str
    schema: str
    runs: tuple[str, ...]
    summary: str
    topics: tuple[str, ...] = ()


JOBS = {
    "demo": Job(
        module="cluster.demo",
        schema="DemoRun",
        runs=("demo",),
        summary="from the shipped sample to a trained, scored driver, in ten minutes",
    ),
    "record": Job(
        module="cluster.record",
        schema="RecordRun",
        runs=("record", "record_highway", "record_traffic", "record_sample"),
        summary="drive MetaDrive as a person would and write segments",
    ),
    "import": Job(
        module="cluster.import_drives",
        schema="ImportRun",
        runs=("import",),
        summary="make segments of real drives: comma2k19, KITTI raw, or your own",
    ),
    "inspect": Job(
        module="cluster.inspect_drives",
        schema="InspectRun",
        runs=("inspect",),
        summary="look at recordings: figures, plots, frames with the path drawn on the road",
    ),
    "train-policy": Job(
        module="cluster.train_policy",
        schema="TrainPolicyRun",
        runs=(
            "reprojective",
            "reprojective_demo",
            "off_policy",
            "longitudinal",
            "world_model",
            "laptop",
            "one_gpu",
            "eight_gpus",
            "nodes_64",
        ),
        summary="train a driving policy, on-policy in a simulator or off-policy on recordings",
    ),
    "evaluate-policy": Job(
        module="cluster.evaluate_policy",
        schema="EvaluatePolicyRun",
        runs=("lane_centering",),
        summary="score a policy in closed loop in MetaDrive",
    ),
    "stress-policy": Job(
        module="cluster.stress_policy",
        schema="StressPolicyRun",
        runs=("stress",),
        summary="score a policy under other light, weather, cameras and cars",
    ),
    "probe-policy": Job(
        module="cluster.probe_policy",
        schema="ProbePolicyRun",
        runs=("probe",),
        summary="measure whether a policy reads the warp's artifacts instead of the road",
    ),
    "sweep": Job(
        module="cluster.sweep",
        schema="SweepRun",
        runs=("table2", "paper"),
        summary="train policies that differ in what you name, with seeds, and compare their scores",
    ),
    "sweep-bottleneck": Job(
        module="cluster.sweep_bottleneck",
        schema="SweepBottleneckRun",
        runs=("bottleneck",),
        summary="train policies of several capacities, score and probe each",
    ),
    "train-tokenizer": Job(
        module="cluster.train_tokenizer",
        schema="TrainTokenizerRun",
        runs=("tokenizer",),
        summary="train the autoencoder whose latents a world model works in",
    ),
    "train-world-model": Job(
        module="cluster.train_world_model",
        schema="TrainWorldModelRun",
        runs=("nano",),
        summary="train a world model on recordings, as a Ray Train job",
    ),
    "evaluate-world-model": Job(
        module="cluster.evaluate_world_model",
        schema="EvaluateWorldModelRun",
        runs=("world_model_report",),
        summary="measure what a world model shows, where it goes and where it leads",
    ),
    "evaluate-reactions": Job(
        module="cluster.evaluate_reactions",
        schema="EvaluateReactionsRun",
        runs=("reactions",),
        summary="measure what generated cars do when ours holds its speed, brakes or swerves",
    ),
    "sweep-world-model": Job(
        module="cluster.sweep_world_model",
        schema="SweepWorldModelRun",
        runs=("world_model_noise", "world_model_sizes", "world_model_data"),
        summary="train variants of a world model and compare them, with a power law",
    ),
    "serve-world-model": Job(
        module="cluster.serve_world_model",
        schema="ServeWorldModelRun",
        runs=("world_model_service",),
        summary="keep a world model up that jobs of the same cluster share",
    ),
    "play": Job(
        module="cluster.play",
        schema="PlayRun",
        runs=("play",),
        summary="steer through a world in a web page, or watch a policy drive",
    ),
    "submit": Job(
        module="cluster.submit",
        schema="SubmitRun",
        runs=("submit",),
        summary="do any of these on a Ray cluster: drive submit COMMAND --address URL",
    ),
    "status": Job(
        module="cluster.status",
        schema="StatusRun",
        runs=("status",),
        summary="show what the runs here are doing, and the Ray cluster",
    ),
    "bench": Job(
        module="cluster.bench",
        schema="BenchRun",
        runs=("bench",),
        summary="measure speed: reprojection, rollout, learner, world-model, service, peers",
        topics=("reprojection", "rollout", "learner", "world-model", "service", "peers"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A job with its run: the configuration, and the YAML that says the same."""

    job: str
    config: Any
    text: str


def resolve(name: str, path: Path, overrides: Sequence[str]) -> Resolved:
    """Load the run of the job `name`. Raises `cluster.config.ConfigError`."""
    from cluster.config import dump, load

    job = JOBS[name]
    config = load(getattr(importlib.import_module(job.module), job.schema), path, overrides)
    return Resolved(job=name, config=config, text=f"# drive {name}\n{dump(config)}")


def do(resolved: Resolved, directory: Path, command: Sequence[str]) -> Mapping[str, Any]:
    """Do the job in a directory that exists, write `result.json` there and return the figures."""
    from cluster.heartbeat import beating
    from cluster.output import write_result

    started = time.monotonic()
    with beating(directory, resolved.job, command):
        figures = importlib.import_module(JOBS[resolved.job].module).run(resolved.config, directory)
        seconds = time.monotonic() - started
        write_result(directory, resolved.job, command, figures, seconds)
    return figures
