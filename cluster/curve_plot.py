"""Small panels of curves side by side, as a PNG. It does not know what the curves are."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

COLUMNS = 4


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves over `x`, or over 1, 2, 3, ..., under one title; `label` names the axis."""

    title: str
    label: str
    curves: Mapping[str, np.ndarray]
    x: Sequence[float] | None = None


def draw_curves(panels: Sequence[Panel]) -> bytes:
    """Draw all panels, four a row; the legend is in the first, and a name's colour the same in all.

    Not every panel has every curve, so that colours cannot go by their order in it.
    """
    names = dict.fromkeys(name for panel in panels for name in panel.curves)
    colours = {name: f"C{number}" for number, name in enumerate(names)}
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        for name, curve in panel.curves.items():
            x = np.arange(1, len(curve) + 1) if panel.x is None else panel.x
            axis.plot(x, curve, color=colours[name], label=name, linewidth=1.5)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.label, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
