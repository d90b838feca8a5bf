"""`drive demo`: from the shipped sample to a trained, scored driver, in ten minutes.

Every stage is a command of its own, printed as it begins, and leaves what that command leaves, in
`data/`, `training/`, `baseline/` and `score/` of the output directory.

1. What the sample shows.
2. A policy learns on-policy: it drives the recorded roads, and learns what a teacher would have
   done from where it got to.
3. Its baseline learns as long off-policy, from the recordings alone.
4. Both drive 24 scenarios in MetaDrive that neither has seen, beside the policy that ships.
"""

import json
import logging
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cluster.evaluate_policy import EvaluatePolicyRun, find_drivers
from cluster.jobs import RUNS, do, resolve
from cluster.output import choose_directory
from cluster.progress import CONSOLE, clock
from drive_envs.path import path_from_segment
from drive_envs.segment import Segment
from drive_envs.segments import SegmentDataset, open_dataset, sample_path

logger = logging.getLogger(__name__)

STRAIGHT = 1e-3  # 1/m, a radius of 1 km


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """What the stages are told, each as the overrides of its command."""

    training: tuple[str, ...] = ()
    """Of `drive train-policy cluster/runs/reprojective_demo.yaml`."""
    baseline: tuple[str, ...] | None = (
        "mode=off_policy",
        "loss.policy_gradient=0",
        "loss.value=0",
        "num_threads=2",  # nobody drives beside it
    )
    """What makes the same run the off-policy baseline, after `training`; null leaves it out."""
    evaluation: tuple[str, ...] = ("video=curve-080-left",)
    """Of `drive evaluate-policy`."""
    has_shipped: bool = True  # score the shipped policy too


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One line of the list at the end."""

    title: str
    seconds: float


def run(config: DemoRun, output: Path) -> dict[str, Any]:
    """Run the stages; return the score and the seconds of each."""
    stages: list[Stage] = []
    with stage(stages, "look at the shipped sample"):
        figures: dict[str, Any] = {"sample": show(open_dataset(sample_path()))}
    with stage(stages, "train on-policy"):
        figures["training"] = train(output / "training", config.training)
    policies = {"on_policy": str(output / "training")}
    if config.baseline is not None:
        with stage(stages, "train the off-policy baseline"):
            overrides = (*config.training, *config.baseline)
            figures["baseline"] = train(output / "baseline", overrides)
        policies["off_policy"] = str(output / "baseline")
    if config.has_shipped:
        policies["shipped"] = find_drivers(EvaluatePolicyRun())["policy"]
    with stage(stages, "score in MetaDrive"):
        overrides = (f"policies={json.dumps(policies)}", *config.evaluation)
        score = command("evaluate-policy", "lane_centering", overrides, output / "score")
    tell(stages, output)
    return {**score, **figures, "seconds": {each.title: each.seconds for each in stages}}


@contextmanager
def stage(stages: list[Stage], title: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    logger.info("%d. %s", len(stages) + 1, title)
    begin = time.monotonic()
    yield
    stages.append(Stage(title=title, seconds=round(time.monotonic() - begin, 1)))
    logger.info("%d. took %s", len(stages), clock(stages[-1].seconds))


def train(directory: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Train and keep the figures that fit on a line."""
    figures = command("train-policy", "reprojective_demo", overrides, directory)
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}


def command(job: str, run: str, overrides: tuple[str, ...], directory: Path) -> Mapping[str, Any]:
    """Do what `drive JOB RUN.yaml OVERRIDES output=DIRECTORY` does."""
    path = RUNS / f"{run}.yaml"
    words = [job, str(path), *overrides, f"output={directory}"]
    logger.info("   drive %s", shlex.join(words))
    resolved = resolve(job, path, overrides)
    return do(resolved, choose_directory(run, resolved, directory), words)


def show(dataset: SegmentDataset) -> dict[str, Any]:
    """Print what the recordings show; return their number, length and how curved they are."""
    table = Table(title="The shipped sample: drives of a person, recorded in MetaDrive")
    for column in ("segment", "split", "seconds", "metres", "m/s", "radius m", "lane changes"):
        table.add_column(column, justify="left" if column in ("segment", "split") else "right")
    seconds = metres = changes = 0.0
    for segment in dataset:
        facts = describe(segment)
        seconds += facts["seconds"]
        metres += facts["metres"]
        changes += facts["changes"]
        radius = "straight" if facts["curvature"] < STRAIGHT else f"{1 / facts['curvature']:.0f}"
        table.add_row(
            segment.name,
            segment.split,
            f"{facts['seconds']:.0f}",
            f"{facts['metres']:.0f}",
            f"{facts['metres'] / facts['seconds']:.1f}",
            radius,
            f"{facts['changes']:.0f}",
        )
    CONSOLE.print(table)
    return {
        "segments": len(dataset),
        "minutes": round(seconds / 60, 1),
        "kilometres": round(metres / 1000, 1),
        "lane_changes": int(changes),
    }


def describe(segment: Segment) -> dict[str, float]:
    """Measure one drive: seconds, metres, the largest curvature in 1/m, lane changes."""
    path = path_from_segment(segment)
    steps = np.diff(segment.position[:, :2], axis=0)
    return {
        "seconds": float(segment.time[-1] - segment.time[0]),
        "metres": float(np.hypot(*steps.T).sum()),
        "curvature": float(path.curvature.abs().max()),
        "changes": float(np.count_nonzero(segment.desire)),
    }


def tell(stages: list[Stage], output: Path) -> None:
    """Print the list of stages and where to look."""
    table = Table(title="The demo")
    table.add_column("stage")
    table.add_column("took", justify="right")
    for each in stages:
        table.add_row(each.title, clock(each.seconds))
    table.add_row("in all", clock(sum(each.seconds for each in stages)), style="bold")
    CONSOLE.print(table)
    for what, where in (
        ("the score, with plots and videos", output / "score" / "report.html"),
        ("videos alone", output / "score" / "videos"),
        ("training curves and videos", f"tensorboard --logdir {output}"),
    ):
        CONSOLE.print(f"{what}: {where}", soft_wrap=True)
