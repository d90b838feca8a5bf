"""The Grafana dashboard: which of the metrics that Ray exports are drawn together, and how.

`python -m cluster.dashboard` writes it to `cluster/grafana/drive.json`, for Grafana to import. The
metrics are those of `telemetry.py` and of `world_model/service.py`. A gauge is merged over the
processes that told it, one after the other, for a run that is resumed is told by several.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.telemetry import metric_name

PLACE = Path(__file__).parent / "grafana" / "drive.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 8, 7  # of a panel, of Grafana's 24 columns


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. curves: queries by what their lines are called, `{{label}}` for a label's value.

    unit: as Grafana names it. about: what a reader needs to know beyond the title.
    """

    title: str
    curves: dict[str, str]
    unit: str = "short"
    about: str = ""
    kind: Literal["timeseries", "stat"] = "timeseries"
    bounds: dict[str, float] = field(default_factory=lambda: {"min": 0.0})


def gauge(figure: str) -> str:
    """Query a figure of the loop or the score, of each run."""
    return f'max by (run) (ray_{metric_name(figure)}{{run=~"$run"}})'


def last(figure: str) -> str:
    """Query what a figure was last, of each run, also of one that is over."""
    metric = f'ray_{metric_name(figure)}{{run=~"$run"}}'
    return f"max by (run) (last_over_time({metric}[$__range]))"


def total(figure: str, *labels: str) -> str:
    """Query what was counted so far, of each run and of each value of the other labels."""
    by = ", ".join(("run", *labels))
    return f'sum by ({by}) (ray_{metric_name(figure)}_total{{run=~"$run"}})'


def a_minute(figure: str) -> str:
    """Query how fast a counter grows, of each run."""
    rate = f'rate(ray_{metric_name(figure)}_total{{run=~"$run"}}[$__rate_interval])'
    return f"60 * sum by (run) ({rate})"


def service(name: str) -> str:
    """Query a gauge of the world model's service, over all replicas."""
    return f"sum(ray_world_model_{name})"


def service_rate(name: str, by: str = "") -> str:
    """Query how fast a counter of the service grows."""
    return f"sum{by}(rate(ray_world_model_{name}[$__rate_interval]))"


def service_quantile(quantile: float, name: str) -> str:
    """Query a quantile of a histogram of the service."""
    return f"histogram_quantile({quantile}, {service_rate(f'{name}_bucket', ' by (le) ')})"


SHARE: dict[str, float] = {"min": 0.0, "max": 1.0}
BUCKETS = "From a histogram: as fine as its buckets."

ROWS: dict[str, list[Panel]] = {
    "Runs": [
        Panel(
            title="Score: scenarios passed",
            curves={"{{run}}": last("score/passed"), "{{run}}, of": last("score/scenarios")},
            kind="stat",
            about="Of `drive evaluate-policy`, which is a run of its own.",
        ),
        Panel(title="Gradient step", curves={"{{run}}": gauge("learner/step")}),
        Panel(
            title="Imitation loss",
            curves={"{{run}} plan": gauge("loss/plan"), "{{run}} action": gauge("loss/action")},
            bounds={},
        ),
    ],
    "Actors": [
        Panel(
            title="Utilisation",
            curves={"{{run}}": gauge("actor/utilisation")},
            unit="percentunit",
            bounds=SHARE,
            about="Share of the actors' time spent in the environment.",
        ),
        Panel(
            title="Frames a second, all actors",
            curves={"{{run}}": gauge("actor/frames_per_second")},
        ),
        Panel(
            title="Actors",
            curves={
                "{{run}} alive": gauge("actor/alive"),
                "{{run}} restarted so far": total("actor/restarts"),
            },
        ),
        Panel(
            title="Distance from the recorded path",
            curves={"{{run}}": gauge("rollout/lateral_error")},
            unit="lengthm",
        ),
        Panel(title="Return of a scene", curves={"{{run}}": gauge("rollout/return")}, bounds={}),
    ],
    "Learner": [
        Panel(
            title="Idle: share of time without data",
            curves={"{{run}}": gauge("learner/idle_share")},
            unit="percentunit",
            bounds=SHARE,
        ),
        Panel(
            title="Gradient steps a second",
            curves={"{{run}}": gauge("learner/steps_per_second")},
        ),
        Panel(
            title="Policy lag",
            curves={
                "{{run}} mean": gauge("learner/policy_lag"),
                "{{run}} most": gauge("learner/max_policy_lag"),
            },
            about="Gradient steps between the weights that drove and those that learn.",
        ),
    ],
    "Queue": [
        Panel(
            title="Rollouts",
            curves={
                "{{run}} held": gauge("queue/rollouts"),
                "{{run}} in flight": gauge("queue/in_flight"),
            },
        ),
        Panel(
            title="Minibatches that it could give", curves={"{{run}}": gauge("queue/minibatches")}
        ),
        Panel(
            title="Rollouts a minute",
            curves={
                "{{run}} started": a_minute("rollouts/started"),
                "{{run}} learnt": a_minute("rollouts/learnt"),
            },
        ),
        Panel(
            title="Discarded so far, by cause",
            curves={"{{run}} {{cause}}": total("rollouts/discarded", "cause")},
        ),
    ],
    "World model": [
        Panel(
            title="Batch size: scenes of a pass",
            curves={
                "median": service_quantile(0.5, "batch_scenes"),
                "95 %": service_quantile(0.95, "batch_scenes"),
            },
            about=BUCKETS,
        ),
        Panel(
            title="Queue: wait of a request for its pass",
            curves={
                "median": service_quantile(0.5, "queue_seconds"),
                "95 %": service_quantile(0.95, "queue_seconds"),
            },
            unit="s",
            about=BUCKETS,
        ),
        Panel(
            title="Sessions and scenes",
            curves={"sessions": service("sessions"), "scenes": service("scenes")},
        ),
        Panel(title="Frames a second", curves={"all replicas": service_rate("frames_total")}),
        Panel(
            title="Where the time goes",
            curves={"{{phase}}": service_rate("seconds_total", " by (phase) ")},
            unit="s",
            about="Seconds a second, all replicas.",
        ),
        Panel(title="Memory of open scenes", curves={"": service("memory_bytes")}, unit="bytes"),
    ],
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place, "panels": []}
        )
        for index, panel in enumerate(row):
            line, column = divmod(index, 24 // WIDTH)
            place = {"x": column * WIDTH, "y": top + 1 + line * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(drawn(panel, len(panels) + 1, place))
        top = panels[-1]["gridPos"]["y"] + HEIGHT
    return {
        "uid": "drive",
        "title": "drive",
        "tags": ["ray"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source_variable(), run_variable()]},
        "panels": panels,
    }


def drawn(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    """Return one panel as Grafana's JSON."""
    is_stat = panel.kind == "stat"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, **panel.bounds}, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}} if is_stat else {},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": name,
                "instant": is_stat,
                "range": not is_stat,
            }
            for index, (name, expression) in enumerate(panel.curves.items())
        ],
    }


def source_variable() -> dict[str, Any]:
    """Let the reader choose among several Prometheus servers."""
    return {"name": "datasource", "type": "datasource", "query": "prometheus"}


def run_variable() -> dict[str, Any]:
    """Let the reader choose runs, all by default."""
    metrics = "|".join(f"ray_{metric_name(name)}" for name in ("learner/step", "score/scenarios"))
    return {
        "name": "run",
        "type": "query",
        "datasource": SOURCE,
        "query": f'label_values({{__name__=~"{metrics}"}}, run)',
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def text() -> str:
    """Return the dashboard as it is shipped."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    PLACE.parent.mkdir(exist_ok=True)
    PLACE.write_text(text())
