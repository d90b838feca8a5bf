"""The picture of a score: lateral position over time, one small panel a scenario.

Lane edges are solid grey, the mean's threshold is a dotted line over the window it counts in. With
one driver a line is green where it passed and red where it failed; with several, each driver has
its own colour and a failed line is dashed. It does not know how the drives were made.
"""

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drive_actors.scoring import Result
from drive_envs.scenarios import Scenario

NUM_COLUMNS = 6
PASSED, FAILED = "#2a8f4a", "#c0392b"


def draw_lateral(
    scenarios: Sequence[Scenario], results: Mapping[str, Mapping[str, Result]]
) -> bytes:
    """Return a PNG; `results` is by driver, then by scenario name."""
    num_rows = -(-len(scenarios) // NUM_COLUMNS)
    columns = min(NUM_COLUMNS, len(scenarios))
    figure = Figure(figsize=(2.6 * columns, 1.9 * num_rows + 0.6), layout="constrained", dpi=110)
    grid = figure.subplots(num_rows, columns, squeeze=False, sharey=True).flatten()
    colours = {label: f"C{index}" for index, label in enumerate(results)}
    for panel in grid[len(scenarios) :]:
        panel.set_axis_off()
    for panel, scenario in zip(grid, scenarios, strict=False):
        _draw_limits(panel, scenario)
        for driver, by_name in results.items():
            _draw_drive(panel, by_name[scenario.name], colours[driver] if len(results) > 1 else "")
        _name(panel, scenario, [by_name[scenario.name] for by_name in results.values()])
    for row in range(num_rows):
        grid[row * columns].set_ylabel("left of centre (m)")
    for panel in grid[-columns:]:
        panel.set_xlabel("time (s)")
    for driver, by_name in results.items():
        passed = sum(result.passed for result in by_name.values())
        label = f"{driver}: {passed} of {len(by_name)}"
        grid[0].plot([], [], color=colours[driver] if len(results) > 1 else "black", label=label)
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
    panel.set_xlim(0, scenario.duration)


def _draw_drive(panel: Axes, result: Result, colour: str) -> None:
    """Draw one drive; `colour` is empty where it says whether the drive passed."""
    if colour:
        panel.plot(
            result.time, result.lateral, "-" if result.passed else "--", color=colour, lw=1.2
        )
    else:
        panel.plot(result.time, result.lateral, color=PASSED if result.passed else FAILED, lw=1.4)


def _name(panel: Axes, scenario: Scenario, results: Sequence[Result]) -> None:
    """Put the scenario's name above its panel, red where every driver failed."""
    colour = "black" if any(result.passed for result in results) else FAILED
    panel.set_title(f"{scenario.name}, {scenario.speed:g} m/s", fontsize=8, color=colour)
    panel.tick_params(labelsize=7)
