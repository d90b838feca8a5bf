"""A closed-loop score as people read it: headline figures, JSON, a table, a page.

It does not know how the drives were made. `Results` are by driver, then by scenario.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table as RichTable

from cluster.output import plain
from cluster.report import Mark, Picture, Table, Text, Video, write_report
from drive_actors.scoring import Noise, Result
from drive_envs.scenarios import Scenario

Results = Mapping[str, Mapping[str, Result]]

HEADINGS = {
    "lateral": "Lateral position, m left of the lane centre",
    "pace": "Speed, m/s (dotted: a good driver's), and gap to the car ahead, m (thin)",
}
WHY = "why not"
# lateral distances in m, off lane in s; turns of the lateral movement
LATERAL = ("mean |d|", "max |d|", "off lane", "turns")
# least gap in m and headway in s, share of a good driver's way, of what is comfortable
PACE = ("gap", "headway", "way", "effort")


def headline(suite: str, noise: Noise, results: Results) -> dict[str, Any]:
    """Return the figures that matter, those of each driver by its label when there are several.

    `lost` are drives whose process died, if there are any: they have not passed, and say nothing.
    """
    counts = {
        label: {"passed": sum(r.passed for r in by_name.values()), "total": len(by_name)}
        | ({"lost": lost} if (lost := sum(r.figures is None for r in by_name.values())) else {})
        for label, by_name in results.items()
    }
    means = {label: mean_abs_lateral(by_name) for label, by_name in results.items()}
    if len(results) == 1:
        (label,) = results
        return {suite: counts[label], "noise": noise, "mean_abs_lateral": means[label]}
    return {suite: counts, "noise": noise, "mean_abs_lateral": means}


def whole(score: dict[str, Any]) -> dict[str, Any]:
    """Return the headline of one driver as it is.

    RuntimeError where drives were lost: these are no failures of the policy.
    """
    for suite, counts in score.items():
        if isinstance(counts, dict) and counts.get("lost"):
            raise RuntimeError(f"{counts['lost']} drives of {suite} were lost: score it again")
    return score


def mean_abs_lateral(results: Mapping[str, Result]) -> float | None:
    """Average mean |d| at the end over the scenarios that were driven, m."""
    values = [r.figures.mean_abs_lateral for r in results.values() if r.figures]
    return round(float(np.mean(values)), 4) if values else None


def write_results(path: Path, noise: Noise, results: Results, seconds: float) -> None:
    """Write every figure of every drive as JSON, with its lateral position over time."""
    content = {
        "noise": noise,
        "seconds": round(seconds, 1),
        "drivers": {
            label: [asdict(result) for result in by_name.values()]
            for label, by_name in results.items()
        },
    }
    path.write_text(json.dumps(plain(content), indent=1) + "\n")


def lateral_cells(result: Result) -> tuple[str, ...]:
    """Return the cells of one drive under `LATERAL`."""
    if (f := result.figures) is None:
        return ("",) * len(LATERAL)
    return (
        f"{f.mean_abs_lateral:.2f}",
        f"{f.max_abs_lateral:.2f}",
        f"{f.off_lane_time:.1f}",
        str(f.num_reversals),
    )


def pace_cells(result: Result) -> tuple[str, ...]:
    """Return the cells of one drive under `PACE`; a dash where no car was ahead."""
    if (p := result.pace) is None:
        return ("",) * len(PACE)
    gap, headway = (
        f"{value:.1f}" if np.isfinite(value) else "-" for value in (p.min_gap, p.min_headway)
    )
    return gap, headway, f"{p.progress:.2f}", f"{p.discomfort:.2f}"


def verdict(result: Result) -> str:
    """Say in a word how a drive went."""
    return "pass" if result.passed else "FAIL"


def grid(scenarios: Sequence[Scenario], results: Results) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: all figures of one driver, or verdict and mean of several."""
    if len(results) == 1:
        (by_name,) = results.values()
        drives = [by_name[scenario.name] for scenario in scenarios]
        columns, cells = [*LATERAL], [lateral_cells(drive) for drive in drives]
        if any(drive.pace is not None for drive in drives):
            # In a terminal there is room for one of the other columns.
            columns = [LATERAL[0], *PACE]
            cells = [(c[0], *pace_cells(drive)) for c, drive in zip(cells, drives, strict=True)]
        return ["scenario", "verdict", *columns, WHY], [
            [drive.scenario, verdict(drive), *some, "; ".join(drive.reasons)]
            for drive, some in zip(drives, cells, strict=True)
        ]
    rows = [
        [
            s.name,
            *(f"{verdict(r[s.name])} {lateral_cells(r[s.name])[0]}" for r in results.values()),
        ]
        for s in scenarios
    ]
    return ["scenario", *results], rows


def table_of(scenarios: Sequence[Scenario], results: Results, title: str) -> RichTable:
    """Return the table for the terminal; the reasons, which are long, are `failures_of`."""
    header, rows = grid(scenarios, results)
    table = RichTable(title=title)
    columns = [index for index, name in enumerate(header) if name != WHY]
    for index in columns:
        table.add_column(header[index], no_wrap=True)
    for row in rows:
        is_bad = any(cell.startswith("FAIL") for cell in row)
        table.add_row(*(row[index] for index in columns), style="red" if is_bad else "")
    counts = {label: sum(r.passed for r in rs.values()) for label, rs in results.items()}
    table.caption = ", ".join(f"{k}: {n} of {len(scenarios)}" for k, n in counts.items())
    return table


def failures_of(results: Results) -> list[str]:
    """Return a line for each drive that failed: which, and why."""
    return [
        f"{label}, {name}: {'; '.join(result.reasons)}"
        for label, by_name in results.items()
        for name, result in by_name.items()
        if not result.passed
    ]


def write_page(
    path: Path,
    figures: Mapping[str, Any],
    scenarios: Sequence[Scenario],
    results: Results,
    pictures: Mapping[str, bytes],
    videos: Sequence[Path],
) -> None:
    """Write `report.html`; `pictures` are named as in `HEADINGS`."""
    header, rows = grid(scenarios, results)
    marks: list[Mark] = [
        "bad" if any(cell.startswith("FAIL") for cell in row) else "good" for row in rows
    ]
    films = [Video(source=f"videos/{video.name}", heading=video.stem) for video in videos]
    parts = [
        Text(text=json.dumps(figures), kind="code"),
        *(Picture(png=png, heading=HEADINGS[name]) for name, png in pictures.items()),
        Table(header=header, rows=rows, marks=marks, heading="Scenarios"),
        Text(text="\n".join(failures_of(results)) or "none", heading="Failures", kind="code"),
        *films,
    ]
    write_report(path, "Closed-loop score", parts)
