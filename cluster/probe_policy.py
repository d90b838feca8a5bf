"""`drive probe-policy`: do a policy's features know how far the car is from the recorded pose?

A driver cannot know: the world says where the road is, not where somebody once drove on it. What
the features tell of p' - p from warped pictures, and not from true ones of the same poses, they
tell by the warp's artifacts, which the paper calls cheating:

    leak = R^2 of a probe on warped pictures - R^2 of a probe on true ones

Probes read what passes the bottleneck, noise and all, of one frame. Beside the leak stands what a
probe tells that knows the road: it is shown the warped picture's features less those of the true
one, behind the same noise (`known`). About as much could leak to one who has seen enough roads;
it is no strict bound, as a difference of features is not all that both say.

A control target, where the car is in its lane, says what a probe can tell when it should.
Intervals are of 95 %, over roads drawn again. `probe.png` shows pairs to look at, `results.json`
and `report.html` every figure.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.box import SIMPLE
from rich.table import Table as RichTable
from torch import Tensor

from cluster.contact_sheet import sheet
from cluster.evaluate_policy import BLIND, EvaluatePolicyRun, find_drivers, image_size
from cluster.leak_scenes import (
    KINDS,
    TARGETS,
    Images,
    LeakScenes,
    LeakScenesConfig,
    developed,
    leak_scenes,
)
from cluster.output import plain, write_text
from cluster.progress import CONSOLE, Meter, progress
from cluster.report import Part, Picture, Table, Text, write_report
from drive_actors.bottleneck import noise
from drive_actors.policy import Policy
from drive_actors.policy_file import load_policy
from drive_actors.probe import PROBES, ProbeConfig, held_out, r_squared, resampled
from drive_envs.allocator import keep_freed_memory
from drive_envs.camera import CAMERAS
from drive_envs.drawing import draw_views
from drive_envs.photometry import PhotometryConfig

log = logging.getLogger(__name__)

LEAKS = {"leak": "warped", "leak_aged": "aged"}  # each beyond what is told from true pictures
KNOWN = {"known": "warped", "known_aged": "aged"}  # less the features of true pictures
COLUMNS = (*KINDS, *LEAKS, *KNOWN)
NUM_SHOWN = 6
CHUNK = 256  # images encoded at once

Figure = list[float]  # R^2 or a difference of two, and the ends of its interval
Figures = dict[str, dict[str, dict[str, Figure]]]  # by target, by probe, by column


@dataclass(frozen=True, kw_only=True)
class ProbePolicyRun:
    """Which policies are probed, and on what.

    policy: a policy's folder, or a training run's; null is the shipped one. policies: several by a
    name of your own, in its place. folder: where pairs of pictures are kept, null for the output.
    photometry: how the cameras see both pictures of a pair. num_looks: draws of the bottleneck's
    noise that each picture is seen through. num_resamples: of the roads, for the intervals.
    """

    policy: str | None = None
    policies: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    pairs: LeakScenesConfig = field(default_factory=LeakScenesConfig)
    photometry: PhotometryConfig = field(default_factory=PhotometryConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    num_looks: int = 4
    num_resamples: int = 1000

    def __post_init__(self) -> None:
        for name in ("num_looks", "num_resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.policy is not None and self.policies:
            raise ValueError("give either policy or policies, not both")
        if self.pairs.num_roads < 2 * self.probe.num_folds:
            raise ValueError(
                f"pairs.num_roads is {self.pairs.num_roads}, too few for probe.num_folds "
                f"{self.probe.num_folds}: draw at least {2 * self.probe.num_folds}"
            )


def run(config: ProbePolicyRun, output: Path) -> dict[str, Any]:
    """Probe; return, by policy, target and probe, R^2 on each kind of picture, and leaks."""
    torch.set_num_threads(1)  # probes are too small to be worth a second
    keep_freed_memory()
    policies = find_policies(config)
    scenes = leak_scenes(config.pairs, config.folder or output)
    png = draw_pairs(scenes)
    (output / "probe.png").write_bytes(png)
    images = developed(scenes, config.photometry, config.pairs.seed)
    num_fits = len(policies) * len(TARGETS) * len(PROBES) * len((*KINDS, *KNOWN))
    with progress("probes", num_fits) as meter:
        found = {
            name: figures_of(policy, images, scenes, config, meter)
            for name, policy in policies.items()
        }
    write_text(output / "results.json", json.dumps(plain(found), indent=1) + "\n")
    write_page(output / "report.html", config, found, png)
    print_table(found)
    return {name: headline(figures) for name, figures in found.items()}


def find_policies(config: ProbePolicyRun) -> dict[str, Policy]:
    """Load the policies that are probed; ValueError when there are none, or of another size."""
    given = EvaluatePolicyRun(policy=config.policy, policies=config.policies)
    drivers = find_drivers(given)
    if blind := [name for name, driver in drivers.items() if driver in BLIND]:
        raise ValueError(f"{', '.join(blind)}: only a policy has features, give its folder")
    size = image_size(drivers, is_rendered=True)
    if size != (config.pairs.width, config.pairs.height):
        raise ValueError(
            f"the policy sees {size[0]} x {size[1]} pixels, pairs are of {config.pairs.width} x "
            f"{config.pairs.height}: make pairs.width and pairs.height equal to the policy's"
        )
    return {name: load_policy(Path(driver)) for name, driver in drivers.items()}


def figures_of(
    policy: Policy,
    images: Mapping[str, Images],
    scenes: LeakScenes,
    config: ProbePolicyRun,
    meter: Meter,
) -> Figures:
    """Probe one policy for every target, on every kind of picture."""
    roads = torch.from_numpy(scenes.roads).repeat(config.num_looks)
    targets = torch.from_numpy(scenes.targets).float().repeat(config.num_looks, 1)
    clean = {kind: features_of(policy, seen) for kind, seen in images.items()}
    clean |= {name: clean[kind] - clean["true"] for name, kind in KNOWN.items()}
    features = {kind: received(policy, sent, config.num_looks) for kind, sent in clean.items()}
    num_roads = config.pairs.num_roads
    counts = torch.cat(
        [torch.ones(1, num_roads), resampled(num_roads, config.num_resamples, config.probe.seed)]
    )
    found: Figures = {}
    for target, values in zip(TARGETS, targets.unbind(1), strict=True):
        found[target] = {}
        for probe in PROBES:
            scores = {}
            for kind, shown in features.items():
                told = held_out(probe, shown, values, roads, config.probe)
                scores[kind] = r_squared(values, told, roads, counts)
                meter.advance(note=f"{target}, {probe}, {kind}: {scores[kind][0].item():.2f}")
            scores |= {leak: scores[kind] - scores["true"] for leak, kind in LEAKS.items()}
            found[target][probe] = {name: with_interval(draws) for name, draws in scores.items()}
    return found


@torch.no_grad()
def features_of(policy: Policy, images: Images) -> Float[Tensor, "sample dim"]:
    """Return the features of some pictures, without noise."""
    seen = {camera: torch.from_numpy(images[camera]).split(CHUNK) for camera in CAMERAS}
    chunks = zip(*(seen[camera] for camera in CAMERAS), strict=True)
    return torch.cat([policy.features(dict(zip(CAMERAS, chunk, strict=True))) for chunk in chunks])


def received(
    policy: Policy, sent: Float[Tensor, "sample dim"], num_looks: int
) -> Float[Tensor, "look_sample dim"]:
    """Return what passes the bottleneck, behind `num_looks` draws of noise, look by look.

    The noise is the same for every kind of picture.
    """
    unit = noise(0, num_looks, *sent.shape)
    return (sent + policy.noise_std * unit).flatten(0, 1)


def with_interval(draws: Float[Tensor, " draw"]) -> Figure:
    """Return the first value, which is that of all roads, and the interval of the others."""
    low, high = np.quantile(draws[1:].numpy(), [0.025, 0.975])
    return [round(float(value), 4) for value in (draws[0], low, high)]


def headline(figures: Figures) -> dict[str, dict[str, dict[str, float]]]:
    """Leave the intervals out."""
    return {
        target: {
            probe: {name: round(figure[0], 3) for name, figure in row.items()}
            for probe, row in by_probe.items()
        }
        for target, by_probe in figures.items()
    }


def draw_pairs(scenes: LeakScenes) -> bytes:
    """Draw some pairs, those displaced farthest: warped, aged, true, and warped less true (x 4)."""
    lateral, heading, _ = scenes.targets.T
    pictures = []
    for row in spread_out(scenes):
        where = f"{lateral[row]:+.2f} m {np.degrees(heading[row]):+.1f} deg"
        views = {kind: {c: scenes.images[kind][c][row] for c in CAMERAS} for kind in KINDS}
        apart = {
            camera: difference(views["warped"][camera], views["true"][camera]) for camera in CAMERAS
        }
        for words, seen in (
            (f"warped, {where}", views["warped"]),
            ("aged", views["aged"]),
            ("true", views["true"]),
            ("warped - true, x 4", apart),
        ):
            pictures.append(draw_views(seen, caption=words, scale=3))
    return sheet(pictures, columns=4)


def spread_out(scenes: LeakScenes) -> list[int]:
    """Choose pairs on different roads, from the least displaced to the farthest."""
    lateral = np.abs(scenes.targets[:, 0])
    roads = np.unique(scenes.roads)
    shown = min(NUM_SHOWN, len(roads))
    found = []
    for number, rows in enumerate(np.array_split(np.argsort(lateral, kind="stable"), shown)):
        own = rows[scenes.roads[rows] == roads[number]]
        found.append(int((own if len(own) else rows)[-1]))
    return found


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return four times the difference of two images, around grey."""
    return np.clip(128 + 4 * (first.astype(int) - second), 0, 255).astype(np.uint8)


def write_page(
    path: Path, config: ProbePolicyRun, found: Mapping[str, Figures], png: bytes
) -> None:
    """Write the report."""
    num = config.pairs.num_roads * config.pairs.pairs_per_road
    about = (
        f"{num} pairs on {config.pairs.num_roads} roads. R^2 on roads that the probe does not "
        "know: 0 is nothing, 1 is all. Leak is what is told from warped pictures, or from those "
        "warped from older frames (aged), beyond what is told from true ones, which is chance for "
        "lateral (m) and heading (rad); known is what is told by one who knows the true "
        "picture, too. lane is a control: how far (m) the car is from the middle "
        "of its lane, to be seen in each."
    )
    parts: list[Part] = [
        Text(text=about),
        Table(header=header(), rows=rows_of(found, whole_cell), heading="Probes"),
        Picture(png=png, heading="Pairs: warped, aged, true, and warped less true"),
    ]
    write_report(path, "What a policy's features know of the recorded pose", parts)


def header() -> list[str]:
    """Name the columns of the tables."""
    return ["policy", "target", "probe", *COLUMNS]


def rows_of(found: Mapping[str, Figures], cell: Callable[[Figure], str]) -> list[list[str]]:
    """Lay out every figure; `cell` writes one."""
    return [
        [name, target, probe, *(cell(row[column]) for column in COLUMNS)]
        for name, figures in found.items()
        for target, by_probe in figures.items()
        for probe, row in by_probe.items()
    ]


def whole_cell(figure: Figure) -> str:
    """Write a figure with its interval."""
    value, low, high = figure
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def short_cell(figure: Figure) -> str:
    """Write a figure as a console has room for."""
    return f"{figure[0]:.2f}"


def print_table(found: Mapping[str, Figures]) -> None:
    """Show every figure on the console."""
    title = "R^2 on roads that the probe does not know"
    table = RichTable(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for name in header():
        table.add_column(name.replace("_", " "))  # which may be broken there
    for row in rows_of(found, short_cell):
        table.add_row(*row)
    CONSOLE.print(table)
