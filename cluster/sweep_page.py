"""A sweep as people read it: a table with intervals for a page and a README, and a picture.

Passes are pooled over seeds, with Wilson's 95 % interval; of other figures it is the mean over
seeds, with Student's. The scenarios of a suite are the same for every seed, so the first interval
says what chance there is in so many drives, not what other scenarios would give.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from cluster.output import write_text
from cluster.report import Part, Picture, Table, Text, decimal, write_report

CONFIDENCE = 0.95
ABBREVIATED = 10  # digits of a commit


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trained policy: passed of total and mean |d| in m by score, off-policy error in m.

    seconds_in_lane: by score, of a drive on average: tells who fails late from who fails at once.
    commit: of the code that trained it last, for a training may be resumed by another. machine:
    where that was, in words.
    """

    policy: str
    seed: int
    steps: int
    minutes: float
    trajectory_mae: float | None
    passed: dict[str, int]
    total: dict[str, int]
    mean_abs_lateral: dict[str, float | None]
    seconds_in_lane: dict[str, float | None]
    commit: str | None
    machine: str


def write_page(
    output: Path, rows: Sequence[Row], scores: Sequence[str], tables: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Write `report.html`, and `NAME.md` and `NAME.png` for each of the `tables` of policies.

    A policy that has no row yet is left out. Returns passes and error of each policy.
    """
    by_policy: dict[str, list[Row]] = {}
    for row in rows:
        by_policy.setdefault(row.policy, []).append(row)
    parts: list[Part] = []
    for table, names in tables.items():
        of = {name: by_policy[name] for name in names if name in by_policy}
        compared, png = table_of(table, of, scores), draw(of, scores[0])
        said = f"\n{made_by([row for rows in of.values() for row in rows])}\n" if of else ""
        write_text(output / f"{table}.md", compared.markdown + said)
        (output / f"{table}.png").write_bytes(png)
        heading = f"{table}: closed loop against off-policy error"
        parts += [compared, Picture(png=png, heading=heading)]
    note = Text(
        text="Passes of each seed; in brackets all of them, with Wilson's 95 % interval. "
        f"Distances and times are of {scores[0]}; of means over seeds it is Student's interval."
    )
    parts = [note, *parts, every_seed(rows, scores)]
    write_report(output / "report.html", "Policies compared", parts)
    return {
        name: {score: [row.passed[score] for row in of] for score in scores}
        | {"trajectory_mae": [row.trajectory_mae for row in of]}
        for name, of in by_policy.items()
    }


def table_of(heading: str, by_policy: Mapping[str, Sequence[Row]], scores: Sequence[str]) -> Table:
    """Compare policies, all seeds of one in a row."""
    return Table(
        header=[
            *("policy", "seeds", *scores, "mean distance at the end, m"),
            *("seconds in its lane", "off-policy error, m"),
        ],
        rows=[
            [
                name,
                ", ".join(str(row.seed) for row in of),
                *(passes(of, score) for score in scores),
                mean_of(of, lambda row: row.mean_abs_lateral[scores[0]]),
                mean_of(of, lambda row: row.seconds_in_lane[scores[0]]),
                mean_of(of, lambda row: row.trajectory_mae),
            ]
            for name, of in by_policy.items()
        ],
        heading=heading,
    )


def every_seed(rows: Sequence[Row], scores: Sequence[str]) -> Table:
    """List every seed of every policy."""
    return Table(
        header=[
            "policy",
            "seed",
            *scores,
            *(f"mean |d|, m, {score}" for score in scores),
            *(f"seconds in its lane, {score}" for score in scores),
            "off-policy error, m",
            "gradient steps",
            "minutes since its last start",
            "code",
        ],
        rows=[
            [
                row.policy,
                row.seed,
                *(f"{row.passed[score]} of {row.total[score]}" for score in scores),
                *(decimal(row.mean_abs_lateral[score]) for score in scores),
                *(decimal(row.seconds_in_lane[score]) for score in scores),
                decimal(row.trajectory_mae),
                row.steps,
                f"{row.minutes:.0f}",
                (row.commit or "")[:ABBREVIATED],
            ]
            for row in rows
        ],
        heading="Every seed",
    )


def made_by(rows: Sequence[Row]) -> str:
    """Say whose code trained these policies last, and on what."""
    by_code: dict[str, list[str]] = {}
    for row in rows:
        code = f"commit {row.commit[:ABBREVIATED]}" if row.commit else "code of no repository"
        by_code.setdefault(code, []).append(f"{row.policy} {row.seed}")
    trained = "; ".join(f"{', '.join(names)} by {code}" for code, names in by_code.items())
    return f"Last trained on {', '.join(sorted({row.machine for row in rows}))}: {trained}."


def passes(rows: Sequence[Row], score: str) -> str:
    """Write the passes of every seed, and their share with its interval."""
    passed = [row.passed[score] for row in rows]
    total = sum(row.total[score] for row in rows)
    share = stats.binomtest(sum(passed), total).proportion_ci(CONFIDENCE, method="wilson")
    of = f"{', '.join(map(str, passed))} of {rows[0].total[score]}"
    return f"{of} ({sum(passed) / total:.0%}, {share.low:.0%} to {share.high:.0%})"


def mean_of(rows: Sequence[Row], value: Callable[[Row], float | None]) -> str:
    """Write the mean over seeds of what was measured, with its interval where there are several."""
    values = np.array([v for row in rows if (v := value(row)) is not None])
    if not len(values):
        return ""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return f"{values.mean():.3f} ± {half:.3f}"


def draw(by_policy: Mapping[str, Sequence[Row]], score: str) -> bytes:
    """Draw passes over off-policy error, a point for each seed."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, (name, rows) in enumerate(by_policy.items()):
        axes.plot(
            np.array([row.trajectory_mae for row in rows], float),
            [row.passed[score] for row in rows],
            "osD^v<>"[index // 10 % 7],
            color=f"C{index % 10}",
            alpha=0.7,
            label=name,
        )
    most = max((row.total[score] for rows in by_policy.values() for row in rows), default=1)
    axes.set_ylim(-0.03 * most, 1.03 * most)
    axes.set_xlabel("off-policy error on held-out drives, m")
    axes.set_ylabel(f"passes of {most}, {score}")
    axes.grid(alpha=0.3)
    if by_policy:
        figure.legend(loc="outside right upper", fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
