"""The pictures of a score, one small panel a scenario: lateral position, and speed and gap.

With one driver a line is green where it passed and red where it failed; with several, each driver
has its own colour and a failed line is dashed. It does not know how the drives were made.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drive_actors.scoring import Result
from drive_envs.scenarios import Scenario

NUM_COLUMNS = 6
PASSED, FAILED = "#2a8f4a", "#c0392b"
FAR = 60.0  # m, gaps beyond which are not drawn

Results = Mapping[str, Mapping[str, Result]]  # by driver, then by scenario
Style = dict[str, Any]  # of a line


def draw_lateral(scenarios: Sequence[Scenario], results: Results) -> bytes:
    """Return a PNG of the lateral position over time.

    Lane edges are solid grey, the mean's threshold is a dotted line over the window it counts in.
    """

    def draw(panel: Axes, result: Result, style: Style) -> None:
        panel.plot(result.time, result.lateral, **style)

    return _draw_panels(scenarios, results, _draw_limits, draw, "left of centre (m)")


def draw_pace(scenarios: Sequence[Scenario], results: Results) -> bytes:
    """Return a PNG of the speed over time, a good driver's dotted, and below it of the gap ahead.

    Both on one axis, m/s and m; the gap is the thin line, and is not drawn where it is over 60 m.
    """

    def draw(panel: Axes, result: Result, style: Style) -> None:
        gap = np.where(result.gap < FAR, result.gap, np.nan)
        panel.plot(result.time, gap, **{**style, "linewidth": 0.6})
        panel.plot(result.time, result.speed, **style)

    return _draw_panels(scenarios, results, _draw_good_driver, draw, "speed (m/s), gap (m)")


def _draw_panels(
    scenarios: Sequence[Scenario],
    results: Results,
    draw_ground: Callable[[Axes, Scenario], None],
    draw: Callable[[Axes, Result, Style], None],
    label: str,
) -> bytes:
    """Return a PNG: a panel for each scenario, on its ground a drive of each driver."""
    num_rows = -(-len(scenarios) // NUM_COLUMNS)
    columns = min(NUM_COLUMNS, len(scenarios))
    figure = Figure(figsize=(2.6 * columns, 1.9 * num_rows + 0.6), layout="constrained", dpi=110)
    grid = figure.subplots(num_rows, columns, squeeze=False, sharey=True).flatten()
    colours = {driver: f"C{index}" for index, driver in enumerate(results)}
    for panel in grid[len(scenarios) :]:
        panel.set_axis_off()
    for panel, scenario in zip(grid, scenarios, strict=False):
        panel.set_xlim(0, scenario.duration)
        draw_ground(panel, scenario)
        for driver, by_name in results.items():
            result = by_name[scenario.name]
            draw(panel, result, _style(result, colours[driver] if len(results) > 1 else ""))
        _name(panel, scenario, [by_name[scenario.name] for by_name in results.values()])
    for row in range(num_rows):
        grid[row * columns].set_ylabel(label)
    for panel in grid[-columns:]:
        panel.set_xlabel("time (s)")
    for driver, by_name in results.items():
        passed = sum(result.passed for result in by_name.values())
        color = colours[driver] if len(results) > 1 else "black"
        grid[0].plot([], [], color=color, label=f"{driver}: {passed} of {len(by_name)}")
    figure.legend(loc="outside upper center", ncols=len(results), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_limits(panel: Axes, scenario: Scenario) -> None:
    """Draw the edges of the lane, its centre and the threshold of the mean."""
    half = scenario.road.lane_width / 2
    limits = scenario.thresholds
    start = max(0.0, scenario.duration - limits.centering_window)
    for side in (-1, 1):
        panel.axhline(side * half, color="0.6", linewidth=1)
        level = side * limits.max_mean_lateral
        panel.plot([start, scenario.duration], [level, level], ":", color="0.3", linewidth=1)
    panel.axhline(0, color="0.85", linewidth=0.8)
    panel.set_ylim(-1.3 * half, 1.3 * half)


def _draw_good_driver(panel: Axes, scenario: Scenario) -> None:
    """Draw the speed of a good driver, and the ground."""
    time = np.arange(0.0, scenario.duration, 0.1)
    panel.plot(time, scenario.reference.at(time)[1], ":", color="0.3", linewidth=1)
    panel.axhline(0, color="0.85", linewidth=0.8)
    panel.set_ylim(-1, FAR)


def _style(result: Result, colour: str) -> Style:
    """Return how a drive is drawn; `colour` is empty where it says whether the drive passed."""
    if colour:
        return {"linestyle": "-" if result.passed else "--", "color": colour, "linewidth": 1.2}
    return {"color": PASSED if result.passed else FAILED, "linewidth": 1.4}


def _name(panel: Axes, scenario: Scenario, results: Sequence[Result]) -> None:
    """Put the scenario's name above its panel, red where every driver failed."""
    colour = "black" if any(result.passed for result in results) else FAILED
    panel.set_title(f"{scenario.name}, {scenario.speed:g} m/s", fontsize=8, color=colour)
    panel.tick_params(labelsize=7)
