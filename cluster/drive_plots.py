"""Plots of recordings as PNGs: speeds, curvatures, paths from above. It draws what it is given."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cluster.drive_statistics import Statistics

MOST_PATHS = 200
MAX_CURVATURE = 0.1  # 1/m: what is more counts as this much


def draw_statistics(found: Sequence[Statistics]) -> bytes:
    """Draw histograms of speed and curvature, and the paths, each from its own start."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    speeds, bends, above = figure.subplots(1, 3)
    speed = np.concatenate([one.speed for one in found])
    speeds.hist(speed, bins=np.linspace(0, max(1.0, float(speed.max(initial=0.0))), 31))
    speeds.set(title="speed", xlabel="m/s", ylabel="frames")
    bend = np.concatenate([one.curvature for one in found]).clip(-MAX_CURVATURE, MAX_CURVATURE)
    bends.hist(bend, bins=60, log=True)
    bends.set(title="curvature, positive left", xlabel="1/m", ylabel="frames")
    for one in found[:MOST_PATHS]:
        colour = "tab:orange" if one.split == "held_out" else "tab:blue"
        above.plot(-one.path[:, 1], one.path[:, 0], color=colour, linewidth=0.8, alpha=0.7)
    above.set(title="paths from above (orange: held out)", xlabel="m right", ylabel="m ahead")
    above.set_aspect("equal", adjustable="datalim")
    for axis in (speeds, bends, above):
        axis.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
