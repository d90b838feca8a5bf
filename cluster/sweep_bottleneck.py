"""`drive sweep-bottleneck`: what the bottleneck's capacity is worth, in leaks and on the road.

A policy is trained for every capacity and seed, scored in closed loop, and probed for what it knows
of the recorded pose by the warp's artifacts (`drive probe-policy`); all see the same pairs of
pictures. `leak.png` shows leak and score over capacity, `leak.md` has both as tables,
`results.json` and `report.html` all figures, after every policy.

Each is in a folder of its own. What was trained, scored or probed is not done again, so a sweep can
be interrupted, and capacities and seeds can be added to it (`output=PATH` names the same folder).
"""

import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster import evaluate_policy, probe_policy, train_policy
from cluster.evaluate_policy import EvaluatePolicyRun
from cluster.kept import claim, kept
from cluster.leak_scenes import LeakScenesConfig, leak_scenes
from cluster.output import write_text
from cluster.probe_policy import ProbePolicyRun
from cluster.report import Part, Picture, Table, Text, decimal, write_report
from cluster.score_report import whole
from cluster.train_policy import TrainPolicyRun
from drive_actors.probe import PROBES
from drive_envs.scenarios import find_scenarios

log = logging.getLogger(__name__)

AS_TRAINED = "leak_aged"  # the leak in pictures as policies are trained on
SHOWN = {"lateral": "p' - p, lateral", "heading": "p' - p, heading"}
LABELS = {"leak": "same time", AS_TRAINED: "older frame", "known_aged": "older, road known"}
CONTROL = ("lane", "mlp", "true")  # what must be known: where the car is in its lane
MARKS = {"leak": "o", AS_TRAINED: "o", "known_aged": "x"}
SPREAD = 0.08  # between the points of one capacity


@dataclass(frozen=True, kw_only=True)
class SweepBottleneckRun:
    """What is compared.

    capacities: bits a frame, null for no noise. seeds: each trains all capacities before the next
    does. training, score, probe: the runs that all have in common.
    """

    capacities: tuple[float | None, ...] = (200.0, 500.0, 700.0, 1000.0, None)
    seeds: tuple[int, ...] = (0,)
    training: TrainPolicyRun = field(default_factory=TrainPolicyRun)
    score: EvaluatePolicyRun = field(default_factory=EvaluatePolicyRun)
    probe: ProbePolicyRun = field(default_factory=ProbePolicyRun)

    def __post_init__(self) -> None:
        for name in ("capacities", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} must be one or more, each once, got {list(given)}")
        for name in ("score", "probe"):
            run = getattr(self, name)
            if run.policy is not None or run.policies:
                raise ValueError(f"{name} names a policy: leave it out, those trained are meant")
        seen = {
            name: (part.width, part.height)
            for name, part in (("training.policy", self.training.policy), ("pairs", self.pairs))
        }
        if len(set(seen.values())) > 1:
            raise ValueError(f"pictures must have one size, got {seen}: make them equal")

    @property
    def pairs(self) -> LeakScenesConfig:
        """The pairs of pictures."""
        return self.probe.pairs

    @property
    def points(self) -> dict[str, TrainPolicyRun]:
        """The training runs by the name of their folder, in the order in which they are done."""
        return {
            f"bits_{'none' if bits is None else f'{bits:g}'}-seed_{seed}": replace(
                self.training,
                seed=seed,
                policy=replace(self.training.policy, bottleneck_bits=bits),
            )
            for seed in self.seeds
            for bits in self.capacities
        }


def run(config: SweepBottleneckRun, output: Path) -> dict[str, Any]:
    """Train, score and probe each policy; return passes and lateral leaks of each."""
    points = config.points
    for name, training in points.items():
        claim(output / name, training)
    pictures = config.probe.folder or output / "pairs"
    leak_scenes(config.pairs, pictures)  # a machine that cannot draw says so before training
    found: dict[str, dict[str, Any]] = {}
    for number, (name, training) in enumerate(points.items(), 1):
        log.info("policy %d of %d: %s", number, len(points), name)
        probe = replace(config.probe, folder=pictures)
        found[name] = figures_of(training, config.score, probe, output / name)
        write_text(output / "results.json", json.dumps(found, indent=1) + "\n")
        write_page(output, config, found)
    return {name: headline(figures) for name, figures in found.items()}


def figures_of(
    training: TrainPolicyRun, score: EvaluatePolicyRun, probe: ProbePolicyRun, folder: Path
) -> dict[str, Any]:
    """Train, score and probe one policy, as far as that is not done."""
    driven = trained_and_scored(training, score, folder)
    probe = replace(probe, policy=str(folder))

    def probed() -> dict[str, Any]:
        pages = folder / "probe"
        pages.mkdir(exist_ok=True)
        probe_policy.run(probe, pages)
        return json.loads((pages / "results.json").read_text())["policy"]

    return {
        "bits": training.policy.bottleneck_bits,
        "seed": training.seed,
        **driven,
        "probe": kept(folder / "probed.json", probe, probed),
    }


def trained_and_scored(
    training: TrainPolicyRun, score: EvaluatePolicyRun, folder: Path
) -> dict[str, Any]:
    """Train and score one policy, as far as that is not done.

    Returns seconds, trajectory_mae, passed, total and mean_abs_lateral.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = kept(folder / "trained.json", training, lambda: train_policy.run(training, folder))
    score = replace(score, policy=str(folder))

    def scored() -> dict[str, Any]:
        pages = folder / "score"
        pages.mkdir(exist_ok=True)
        suite = find_scenarios(score.scenarios).stem
        figures = whole(evaluate_policy.run(score, pages))
        return {**figures[suite], "mean_abs_lateral": figures["mean_abs_lateral"]}

    return {
        "seconds": trained["seconds"],
        "trajectory_mae": trained["trajectory_mae"],
        **kept(folder / "scored.json", score, scored),
    }


def headline(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that matter of one policy."""
    leaks = {f"leak_{probe}": figures["probe"]["lateral"][probe][AS_TRAINED][0] for probe in PROBES}
    return {"passed": figures["passed"], "total": figures["total"], **leaks}


def write_page(
    output: Path, config: SweepBottleneckRun, found: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the comparison, and its picture and tables on their own."""
    png = draw_leaks(config.capacities, list(found.values()))
    (output / "leak.png").write_bytes(png)
    policies, leaks = policies_table(found), leaks_table(found)
    write_text(output / "leak.md", f"{policies.markdown}\n{leaks.markdown}")
    parts: list[Part] = [
        Text(
            text="Leak: R^2 of a probe that tells p' - p from features of warped pictures, less "
            "that from true pictures of the same poses; with 95 % intervals over roads. Pictures "
            "are warped from the frame of the same time, or from older ones, as in training. Road "
            "known: what a probe tells that knows the true picture, too. The place in the lane is "
            "a control: it is to be seen in true pictures, and to be known."
        ),
        Picture(png=png, heading="Leak and score over the bottleneck's capacity"),
        policies,
        leaks,
    ]
    write_report(output / "report.html", "What the bottleneck is worth", parts)


def policies_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """List how each policy drives, and how well it knows its place in the lane."""
    target, probe, kind = CONTROL
    return Table(
        header=(
            "bits",
            "seed",
            "passes",
            "mean distance at the end, m",
            "off-policy error, m",
            "R² of the place in the lane",
        ),
        rows=[
            [
                title(figures["bits"]),
                figures["seed"],
                f"{figures['passed']} of {figures['total']}",
                decimal(figures["mean_abs_lateral"]),
                decimal(figures["trajectory_mae"]),
                interval(figures["probe"][target][probe][kind]),
            ]
            for figures in found.values()
        ],
        heading="Policies",
    )


def leaks_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """List what a policy's features know of p' - p, a row for each target and probe."""
    return Table(
        header=("p' - p", "bits", "seed", "probe", *LABELS.values()),
        rows=[
            [
                target,
                title(figures["bits"]),
                figures["seed"],
                probe,
                *(interval(figures["probe"][target][probe][column]) for column in LABELS),
            ]
            for target in SHOWN
            for figures in found.values()
            for probe in PROBES
        ],
        heading="Leaks",
    )


def title(bits: float | None) -> str:
    """Write a capacity."""
    return "none" if bits is None else f"{bits:g}"


def interval(figure: Sequence[float]) -> str:
    """Write a leak with its interval."""
    value, low, high = figure
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def draw_leaks(capacities: Sequence[float | None], found: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw leaks and passes over capacity, a point for each seed, beside each other."""
    figure = Figure(figsize=(4.2 * (len(SHOWN) + 1), 3.8), layout="constrained")
    *panels, last = figure.subplots(1, len(SHOWN) + 1)
    places = np.array([capacities.index(one["bits"]) for one in found], float)
    for panel, (target, words) in zip(panels, SHOWN.items(), strict=True):
        draw_target(panel, places, [one["probe"][target] for one in found])
        panel.set_title(words, fontsize=10)
        panel.set_ylabel("R² beyond that of true pictures")
    # Below: points may be anywhere in the panels.
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8
    )
    passed = np.array([one["passed"] for one in found])
    last.plot(places, passed, "o", color="C2", alpha=0.7)
    known = np.unique(places)
    last.plot(known, [passed[places == place].mean() for place in known], "-", color="C2")
    last.set_ylim(-0.5, max(one["total"] for one in found) + 0.5)
    last.set_title("closed loop", fontsize=10)
    last.set_ylabel(f"passes of {max(one['total'] for one in found)}")
    for panel in (*panels, last):
        panel.set_xticks(range(len(capacities)), [title(bits) for bits in capacities])
        panel.set_xlim(-0.5, len(capacities) - 0.5)
        panel.set_xlabel("bottleneck, bits a frame")
        panel.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def draw_target(panel: Axes, places: np.ndarray, found: Sequence[Mapping[str, Any]]) -> None:
    """Draw what is told of one target: a colour for each probe, a mark for each kind of figure."""
    panel.axhline(0.0, color="0.6", linewidth=1)
    kinds = [(probe, column) for probe in PROBES for column in LABELS]
    for index, (probe, column) in enumerate(kinds):
        value, low, high = np.array([one[probe][column] for one in found]).T
        colour = f"C{PROBES.index(probe)}"
        panel.errorbar(
            places + SPREAD * (index - (len(kinds) - 1) / 2),
            value,
            yerr=np.clip([value - low, high - value], 0, None),
            fmt=MARKS[column],
            color=colour,
            markerfacecolor="white" if column == "leak" else colour,
            markersize=5,
            linewidth=1,
            label=f"{probe}, {LABELS[column]}",
        )
