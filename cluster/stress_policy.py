"""`drive stress-policy`: score policies while light, weather, camera and car are not as they were.

Every scenario is driven once as it is and once at each strength of each condition, one condition at
a time (`drive_envs.conditions` says what they are). `stress.png` shows passes over strength with
95 % intervals, `conditions.png` what the driver saw, `results.json` and `report.html` all figures.

Each drive is written down when it is done (`drives.jsonl`), so a run that is stopped goes on.
"""

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table as RichTable
from scipy.stats import binomtest

from cluster.evaluate_policy import (
    EvaluatePolicyRun,
    find_drivers,
    image_size,
    pictures_of,
    score_items,
)
from cluster.output import plain, write_text
from cluster.progress import CONSOLE, progress
from cluster.report import Part, Picture, Table, Text, write_report
from drive_actors.scorer import Scored
from drive_envs.conditions import CLEAR, Conditions
from drive_envs.metadrive_assets import ensure_assets
from drive_envs.scenarios import Scenario, find_scenarios, load_scenarios

log = logging.getLogger(__name__)

UNITS = {
    "light": "of daylight",
    "fog": "extinction, 1/m",
    "rain": "of the heaviest",
    "texture": "of the road's brightness, std",
    "camera_height": "m too high",
    "camera_pitch": "degrees too far down",
    "focal": "of the focal length",
    "latency": "s",
    "gain": "of the steering",
    "wind": "m/s^2 to the left",
}
COLUMNS = 4


@dataclass(frozen=True, kw_only=True)
class StressPolicyRun:
    """What is tried. policy, policies, scenarios, noise, num_processes, timeout: `evaluate-policy`.

    strengths: of each condition, by its name in `drive_envs.conditions.Conditions`; how it is on a
    clear day is driven once, for all. sight: the scenario whose first frame is shown in each.
    """

    policy: str | None = None
    policies: dict[str, str] = field(default_factory=dict)
    scenarios: Path | None = None
    noise: Literal["plain", "realistic"] = "plain"
    strengths: dict[str, tuple[float, ...]] = field(default_factory=dict)
    sight: str | None = None
    num_processes: int = 2
    timeout: float = 180.0

    def __post_init__(self) -> None:
        for name, values in self.strengths.items():
            if name not in UNITS:
                known = ", ".join(UNITS)
                raise ValueError(f"strengths.{name}: no such condition; there are {known}")
            if not values or len(set(values)) < len(values):
                raise ValueError(f"strengths.{name} must be one or more, each once, got {values}")
            if usual(name) in values:
                raise ValueError(
                    f"strengths.{name} has {usual(name):g}, which is a clear day and driven anyway"
                )
            for value in values:
                Conditions(**{name: value})
        assert self.score  # what it refuses is refused here

    @property
    def score(self) -> EvaluatePolicyRun:
        """The score of a clear day."""
        return EvaluatePolicyRun(
            policy=self.policy,
            policies=self.policies,
            scenarios=self.scenarios,
            noise=self.noise,
            num_processes=self.num_processes,
            timeout=self.timeout,
        )

    @property
    def points(self) -> dict[str, Conditions]:
        """All conditions by a name, the clear day first."""
        return {"clear": CLEAR} | {
            point(name, value): Conditions(**{name: value})
            for name, values in self.strengths.items()
            for value in values
        }


class Item(NamedTuple):
    """One drive."""

    driver: str
    point: str
    scenario: str


def usual(name: str) -> float:
    """Return the strength of a condition on a clear day."""
    return getattr(CLEAR, name)


def point(name: str, value: float) -> str:
    """Name one strength of a condition."""
    return "clear" if value == usual(name) else f"{name} {value:g}"


def run(config: StressPolicyRun, output: Path) -> dict[str, Any]:
    """Drive everything that has not been driven; return passes by driver, condition, strength."""
    if not config.strengths:
        raise ValueError("strengths is empty: name a condition, as cluster/runs/stress.yaml does")
    scenarios = load_scenarios(config.scenarios)
    sight = next((s for s in scenarios if s.name == config.sight), scenarios[0])
    if config.sight not in (None, sight.name):
        names = ", ".join(scenario.name for scenario in scenarios)
        raise ValueError(f"sight={config.sight}: no such scenario; there are {names}")
    drivers = find_drivers(config.score)
    size = image_size(drivers, is_rendered=True)
    ensure_assets()
    path = output / "drives.jsonl"
    settings = plain({"drivers": drivers, "noise": config.noise, "size": size})
    passed = driven_before(path, settings)
    if passed:
        log.info("%d drives are there already", len(passed))
    items = [
        Item(driver, name, scenario.name)
        for name in config.points
        for driver in drivers
        for scenario in scenarios
    ]
    shown = output / "conditions"
    shown.mkdir(exist_ok=True)
    waiting = [item for item in items if item not in passed]
    with progress("drives", len(items), done=len(items) - len(waiting)) as meter:
        for item, scored in drives(config, waiting, scenarios, sight, drivers, size):
            result = scored.result
            passed[item] = result.passed
            if result.figures is None:
                why = "; ".join(result.reasons)
                log.warning("%s: %s; counts as failed, until the same command drives it", item, why)
            else:
                row = {**item._asdict(), "passed": result.passed, "reasons": list(result.reasons)}
                row["mean_abs_lateral"] = round(result.figures.mean_abs_lateral, 4)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            if scored.filmed is not None and scored.filmed.views:
                view = pictures_of(scored.filmed)[0]
                cv2.imwrite(str(shown / f"{item.point}.png"), view[..., ::-1])
            meter.advance(note=f"{item.point}, {item.scenario}")
    counts = {
        driver: {
            name: sum(passed[Item(driver, name, scenario.name)] for scenario in scenarios)
            for name in config.points
        }
        for driver in drivers
    }
    suite = find_scenarios(config.scenarios).stem
    figures = {"scenarios": suite, "total": len(scenarios), "noise": config.noise, "passed": counts}
    write_text(output / "results.json", json.dumps(figures, indent=1) + "\n")
    write_page(output, config, counts, len(scenarios))
    CONSOLE.print(table_of(config, counts, len(scenarios)))
    return figures


def driven_before(path: Path, settings: Mapping[str, Any]) -> dict[Item, bool]:
    """Read what was driven, or begin the file; ValueError when it is of other policies."""
    if not path.exists():
        write_text(path, json.dumps(settings) + "\n")
        return {}
    first, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if json.loads(first) != settings:
        raise ValueError(f"{path} is of other policies or another noise: choose another output")
    whole = [json.loads(row) for row in rows if row.endswith("\n")]  # the last may be cut off
    if len(whole) < len(rows):
        write_text(path, first + "".join(rows[: len(whole)]))
    return {Item(row["driver"], row["point"], row["scenario"]): row["passed"] for row in whole}


def drives(
    config: StressPolicyRun,
    items: Sequence[Item],
    scenarios: Sequence[Scenario],
    sight: Scenario,
    drivers: Mapping[str, str],
    size: tuple[int, int],
) -> Iterator[tuple[Item, Scored]]:
    """Yield every drive as it is done; those that begin with the view to be shown are filmed."""
    by_name = {scenario.name: scenario for scenario in scenarios}
    points = config.points

    def ask(process: Any, item: Item) -> Any:
        is_shown = item.scenario == sight.name and item.driver == next(iter(drivers))
        film = "always" if is_shown else "never"
        driver, scenario = drivers[item.driver], by_name[item.scenario]
        return process.score.remote(driver, scenario, film, points[item.point])

    return score_items(config.score, items, ask, lambda item: by_name[item.scenario], size)


def curve(config: StressPolicyRun, name: str) -> list[float]:
    """Return the strengths of a condition in order, the clear day's among them."""
    return sorted([usual(name), *config.strengths[name]])


def table_of(
    config: StressPolicyRun, counts: Mapping[str, Mapping[str, int]], total: int
) -> RichTable:
    """Return the table for the terminal: a row a condition, passes by strength."""
    table = RichTable("condition", "driver", "passes by strength", title=f"Passes of {total}")
    for name in config.strengths:
        for driver, by_point in counts.items():
            cells = [f"{value:g}: {by_point[point(name, value)]}" for value in curve(config, name)]
            table.add_row(name, driver, "  ".join(cells))
    return table


def write_page(
    output: Path, config: StressPolicyRun, counts: Mapping[str, Mapping[str, int]], total: int
) -> None:
    """Write the report and its two pictures."""
    png = draw_curves(config, counts, total)
    (output / "stress.png").write_bytes(png)
    parts: list[Part] = [
        Text(text=f"Passes of {total} scenarios, {config.noise}; bars are 95 % Wilson intervals."),
        Picture(png=png, heading="Passes over strength"),
    ]
    if sheet := sight_sheet(config, output / "conditions"):
        (output / "conditions.png").write_bytes(sheet)
        parts.append(Picture(png=sheet, heading="What the driver sees at the start"))
    header = ("condition", "strength", "", *counts)
    rows = [
        (name, f"{value:g}", UNITS[name], *(by[point(name, value)] for by in counts.values()))
        for name in config.strengths
        for value in curve(config, name)
    ]
    parts.append(Table(header=header, rows=rows, heading="Passes"))
    write_report(output / "report.html", "Under stress", parts)


def draw_curves(
    config: StressPolicyRun, counts: Mapping[str, Mapping[str, int]], total: int
) -> bytes:
    """Draw a panel for each condition: passes over strength, a colour a driver."""
    names = list(config.strengths)
    rows, columns = -(-len(names) // COLUMNS), min(COLUMNS, len(names))
    figure = Figure(figsize=(3.2 * columns, 2.5 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes, names, strict=False):
        strengths = curve(config, name)
        for driver, by_point in counts.items():
            passes = np.array([by_point[point(name, value)] for value in strengths])
            low, high = np.array([interval(count, total) for count in passes.tolist()]).T
            error = np.clip([passes - low, high - passes], 0, None)
            axis.errorbar(strengths, passes, yerr=error, marker="o", markersize=4, label=driver)
        axis.axvline(usual(name), color="0.7", linewidth=1, linestyle=":")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(UNITS[name], fontsize=8)
        axis.set_ylim(-0.5, total + 0.5)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def interval(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a count."""
    found = binomtest(count, total).proportion_ci(method="wilson")
    return total * found.low, total * found.high


def sight_sheet(config: StressPolicyRun, folder: Path) -> bytes | None:
    """Put the pictures of all conditions below each other, four a row; None without any."""
    found = [(name, cv2.imread(str(folder / f"{name}.png"))) for name in config.points]
    pictures = [(name, picture) for name, picture in found if picture is not None]
    if not pictures:
        return None
    cells = []
    for name, picture in pictures:
        cell = cv2.copyMakeBorder(picture, 24, 0, 0, 4, cv2.BORDER_CONSTANT, value=(255,) * 3)
        cv2.putText(cell, name, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        cells.append(cell)
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % COLUMNS)
    rows = [np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    done, png = cv2.imencode(".png", np.vstack(rows))
    assert done
    return png.tobytes()
