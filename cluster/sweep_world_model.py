"""`drive sweep-world-model`: train variants of a world model one after the other, and compare them.

A variant is a name and overrides of the training run. Where they differ in size or in the amount of
data, a power law is fitted to what is above the autoencoder's floor,

    LPIPS - floor = a x^-b

so such a sweep has one of the LPIPS as its metric.

What a model is worth as a simulator is what a policy learns in it: where `policy` is given, one is
trained inside each variant, and scored on the road.

Every variant is trained into its own folder and goes on where it stopped; what is evaluated is not
evaluated again with the same settings. So a sweep can be interrupted, and variants can be added.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from cluster import evaluate_world_model, train_world_model
from cluster.config import dump, load
from cluster.evaluate_policy import EvaluatePolicyRun
from cluster.evaluate_world_model import EvaluateWorldModelRun, headline_names, load_perceptual
from cluster.kept import claim, kept
from cluster.output import write_text
from cluster.report import Part, Picture, Table, Text, write_report
from cluster.sweep import as_said
from cluster.sweep_bottleneck import trained_and_scored
from cluster.train_policy import TrainPolicyRun
from cluster.train_world_model import TrainWorldModelRun
from drive_envs.scenarios import load_scenarios
from world_model.latents import LatentFile

log = logging.getLogger(__name__)

FLOOR = "autoencoder_lpips"
COLUMNS = (
    FLOOR,
    "next_frame_lpips",
    "sequential_lpips_10",
    "sequential_lpips_25",
    "sequential_lpips_35",
    "deviation_realised",
    "anchored_recovery_m",
    "unanchored_recovery_m",
)

OVER = {"parameters": "denoiser_parameters", "drives": "drives"}  # what a law is fitted over


@dataclass(frozen=True, kw_only=True)
class SweepWorldModelRun:
    """What is compared.

    training, report: the runs that all variants have in common. variants: by name, overrides of
    training as on the command line. against: what a power law is fitted over, `parameters` (those
    that make frames: without the plan head) or `drives`, or `none`. metric: what it is fitted to.
    policy: what would stand after `drive train-policy`, of the policy that is trained inside each
    variant; empty for none. score: what it is scored on.
    """

    training: TrainWorldModelRun = field(default_factory=TrainWorldModelRun)
    report: EvaluateWorldModelRun = field(default_factory=EvaluateWorldModelRun)
    variants: dict[str, tuple[str, ...]] = field(default_factory=dict)
    against: Literal["none", "parameters", "drives"] = "none"
    metric: str = "sequential_lpips_25"
    policy: tuple[str, ...] = ()
    score: EvaluatePolicyRun = field(default_factory=EvaluatePolicyRun)

    def __post_init__(self) -> None:
        if not self.variants:
            raise ValueError("variants is empty: name at least one, such as {p0: [...]}")
        if self.score.policy is not None or self.score.policies:
            raise ValueError("score names a policy: leave it out, those trained are meant")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What the figures of one variant depend on."""

    training: TrainWorldModelRun
    report: EvaluateWorldModelRun


def run(config: SweepWorldModelRun, output: Path) -> dict[str, Any]:
    """Train and evaluate every variant, leaving `report.html`; return the metric of each."""
    base = output / "training.yaml"
    write_text(base, dump(config.training))
    # What would go wrong is said before the first hour is spent.
    runs = {name: load(TrainWorldModelRun, base, given) for name, given in config.variants.items()}
    check_metric(config)
    load_scenarios(config.score.scenarios)
    policies = {name: policy_in(config, output / name) for name in runs} if config.policy else {}
    for name, training in runs.items():
        claim(output / name, training)
    figures = {}
    for number, (name, training) in enumerate(runs.items(), 1):
        log.info("variant %d of %d: %s", number, len(runs), name)
        figures[name] = figures_of(training, config.report, output / name)
        if config.policy:
            log.info("a policy in it")
            driven = trained_and_scored(policies[name], config.score, output / name / "policy")
            figures[name] |= {
                "policy_passed": f"{driven['passed']} of {driven['total']}",
                "policy_trajectory_mae": driven["trajectory_mae"],
            }
    law = fitted(config, figures)
    write_page(output, config, figures, law)
    result: dict[str, Any] = {name: found.get(config.metric) for name, found in figures.items()}
    if config.policy:
        result["policies"] = {name: found["policy_passed"] for name, found in figures.items()}
    return result | ({"power_law": law} if law else {})


def policy_in(config: SweepWorldModelRun, variant: Path) -> TrainPolicyRun:
    """Return the training of the policy inside a variant; ValueError for one that asks no model."""
    training = as_said(TrainPolicyRun, config.policy)
    if not training.needs_model or training.service_name is not None:
        raise ValueError(
            "policy asks no world model, or one that is up already: say policy=[world_model, ...] "
            "and no service_name, and it is trained inside each variant"
        )
    service = replace(training.service, model=variant / "world_model")
    return replace(training, service=service)


def check_metric(config: SweepWorldModelRun) -> None:
    """Raise ValueError where the reports would have no such figure, or no law is fitted to it."""
    names = headline_names(config.report.evaluation)
    if config.metric not in names:
        raise ValueError(f"metric is {config.metric!r}, not one of {', '.join(names)}")
    is_lpips = "lpips" in config.metric
    if config.against != "none" and (not is_lpips or config.metric == FLOOR):
        raise ValueError(
            f"metric is {config.metric!r} and against {config.against!r}: a power law is fitted to "
            f"LPIPS above {FLOOR}, so say metric=sequential_lpips_N, or against=none"
        )
    if is_lpips and not load_perceptual(config.report.lpips_weights):
        raise ValueError(
            f"{config.metric} takes LPIPS' weights: name a folder of them, "
            "report.lpips_weights=FOLDER, or another metric"
        )


def figures_of(
    training: TrainWorldModelRun, report: EvaluateWorldModelRun, output: Path
) -> dict[str, Any]:
    """Train and evaluate one variant, or read what an earlier sweep found."""

    def make() -> dict[str, Any]:
        trained = train_world_model.run(training, output)
        pages = output / "report"
        pages.mkdir(exist_ok=True)
        seen = evaluate_world_model.run(replace(report, model=output / "world_model"), pages)
        return {
            "parameters": trained["parameters"],
            "denoiser_parameters": trained["denoiser_parameters"],
            "drives": num_drives(training),
            "seconds": trained["seconds"],
            **seen,
        }

    return kept(output / "figures.json", Variant(training=training, report=report), make)


def num_drives(training: TrainWorldModelRun) -> int:
    """Count the drives that a run learns from."""
    available = LatentFile(training.latents).splits.count("train")
    return min(available, training.trainer.windows.num_drives or available)


def fitted(
    config: SweepWorldModelRun, figures: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """Fit the power law; empty without one, or where it cannot be had."""
    if config.against == "none":
        return {}
    rows = points(config, figures).values()
    if len({x for x, _ in rows}) < 2 or min(y for _, y in rows) <= 0:
        log.warning("no power law: it takes LPIPS above the floor of two variants or more")
        return {}
    return power_law(*zip(*rows, strict=True))


def points(
    config: SweepWorldModelRun, figures: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[float, float]]:
    """Return, of each variant with both figures, where it is and its LPIPS above the floor."""
    return {
        name: (found[OVER[config.against]], found[config.metric] - found[FLOOR])
        for name, found in figures.items()
        if found.get(config.metric) is not None and found.get(FLOOR) is not None
    }


def power_law(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Fit y = a x^-b by least squares of the logarithms; `r2` is the share that it explains."""
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    rest = np.log(y) - (slope * np.log(x) + intercept)
    spread = np.var(np.log(y))
    r2 = 1 - np.var(rest) / spread if spread else 1.0
    return {"a": float(np.exp(intercept)), "b": float(-slope), "r2": float(r2)}


def write_page(
    output: Path,
    config: SweepWorldModelRun,
    figures: Mapping[str, Mapping[str, Any]],
    law: Mapping[str, float],
) -> None:
    """Write the comparison, linking each variant's own report."""

    def cell(value: Any) -> str:
        return "none" if value is None else f"{value:.3f}"

    driven = ("policy_passed", "policy_trajectory_mae") if config.policy else ()
    rows = [
        [
            name,
            f"{found['parameters'] / 1e6:.2f} M",
            f"{found['denoiser_parameters'] / 1e6:.2f} M",
            str(found["drives"]),
            f"{found['seconds'] / 60:.0f} min",
            *(cell(found.get(column)) for column in COLUMNS),
            *(value if isinstance(value := found[of], str) else cell(value) for of in driven),
        ]
        for name, found in figures.items()
    ]
    parts: list[Part] = [
        Table(
            header=(
                *("variant", "parameters", "without the plan head", "drives"),
                *("training since its last start", *COLUMNS, *driven),
            ),
            rows=rows,
            heading="Variants",
        ),
        Text(
            text="\n".join(f"{name}: {' '.join(v)}" for name, v in config.variants.items()),
            heading="Overrides",
            kind="code",
        ),
    ]
    if law:
        png = draw_law(config, figures, law)
        (output / "power_law.png").write_bytes(png)
        words = f"{config.metric} - floor = {law['a']:.3g} x^-{law['b']:.3f} (r2 {law['r2']:.2f})"
        over = OVER[config.against].replace("_", " ")
        parts.append(Picture(png=png, heading=f"Over {over}: {words}"))
    write_report(output / "report.html", "World models compared", parts)


def draw_law(
    config: SweepWorldModelRun,
    figures: Mapping[str, Mapping[str, Any]],
    law: Mapping[str, float],
) -> bytes:
    """Draw the variants that it is fitted to and the line, both axes logarithmic."""
    rows = points(config, figures)
    x, y = np.array(list(rows.values()), float).T
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.loglog(x, y, "o")
    for name, place in rows.items():
        axis.annotate(name, place, fontsize=8)
    line = np.geomspace(x.min(), x.max(), 50)
    axis.loglog(line, law["a"] * line ** -law["b"], "-", linewidth=1)
    axis.set_xlabel(OVER[config.against].replace("_", " "))
    axis.set_ylabel(f"{config.metric} above the floor")
    axis.grid(alpha=0.3, which="both")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
