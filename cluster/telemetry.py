"""What a job knows of itself, told to Ray's metrics: Prometheus fetches them, Grafana draws them.

A figure `area/name` is the gauge `drive_area_name`, exported by Ray as `ray_drive_area_name`. What
only ever grows is a counter, exported as `..._total`: it counts from the process's own beginning,
as Prometheus expects, so that a run that is resumed adds to what it had told before and counts
nothing twice. The labels are `run`, the name of the output directory, and of discards `cause`.

`dashboard.py` draws what is told here.
"""

import re
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

GROWING = ("rollouts/started", "rollouts/learnt", "actor/restarts")
DISCARDED = "discarded/"  # and the cause
DISCARDS = "rollouts/discarded"  # all causes are one metric


def metric_name(figure: str) -> str:
    """Name the metric of a figure, as Ray is told it: `area/name` becomes `drive_area_name`."""
    return "drive_" + re.sub(r"\W", "_", figure)


def totals(counts: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that are in a feed's counts (`drive_learner.queue`), as a dict."""
    fates = {f"rollouts/{name}": counts[name] for name in ("started", "learnt")}
    return fates | {f"{DISCARDED}{cause}": n for cause, n in counts["discarded"].items()}


class Telemetry:
    """Tells the figures of one run, by its name; Ray is connected.

    before: totals that an earlier process of the run has told.
    """

    def __init__(self, run: str, before: Mapping[str, float] | None = None) -> None:
        self.run = run
        self._told = dict(before or {})
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}

    def tell(self, figures: Mapping[str, float]) -> None:
        """Tell the newest figures."""
        for figure, value in figures.items():
            if figure.startswith(DISCARDED):
                labels = {"run": self.run, "cause": figure.removeprefix(DISCARDED)}
                self._grow(figure, DISCARDS, value, labels)
            elif figure in GROWING:
                self._grow(figure, figure, value, {"run": self.run})
            else:
                self._set(figure, value)

    def _set(self, figure: str, value: float) -> None:
        if figure not in self._gauges:
            self._gauges[figure] = Gauge(metric_name(figure), figure, tag_keys=("run",))
        self._gauges[figure].set(value, {"run": self.run})

    def _grow(self, figure: str, metric: str, total: float, labels: dict[str, str]) -> None:
        if metric not in self._counters:
            self._counters[metric] = Counter(metric_name(metric), metric, tag_keys=tuple(labels))
        if (more := total - self._told.get(figure, 0)) > 0:
            self._counters[metric].inc(more, labels)
            self._told[figure] = total
