import re
import time
from urllib.request import urlopen

import pytest
import ray

from cluster.telemetry import Telemetry, metric_name, totals
from drive_learner.local_cluster import local_cluster
from drive_learner.queue import Counts


@pytest.mark.parametrize(
    ("figure", "metric"),
    [
        ("learner/steps_per_second", "drive_learner_steps_per_second"),
        ("actor/share_env/service", "drive_actor_share_env_service"),
        ("queue/in flight", "drive_queue_in_flight"),
    ],
)
def test_one_rule_names_all_metrics(figure, metric):
    assert metric_name(figure) == metric
    assert re.fullmatch(r"[a-z_]+", metric)


def test_a_feeds_counts_are_totals():
    counts = Counts(started=7, learnt=3)
    counts.discarded["stale"] += 2
    assert totals(vars(counts)) == {
        "rollouts/started": 7,
        "rollouts/learnt": 3,
        "discarded/stale": 2,
    }


def exported():
    """Fetch what this node exports for Prometheus, by name and our labels."""
    (port,) = [node["MetricsExportPort"] for node in ray.nodes()]
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("ray_drive_"):
            parts = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
            assert parts is not None, line
            name, labels, value = parts.groups()
            ours = re.findall(r'\b([a-z]+)="([^"]*)"', labels)
            found[name, *sorted(ours)] = float(value)
    return found


def wait_for(expected):
    end = time.monotonic() + 120
    while not expected.items() <= (found := exported()).items():
        assert time.monotonic() < end, found
        time.sleep(0.5)
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_counters_only_grow_also_when_a_run_is_resumed(monkeypatch):
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    run = ("run", "mine")
    started = ("ray_drive_rollouts_started_total", run)
    lost = ("ray_drive_rollouts_discarded_total", ("cause", "actor_lost"), run)
    with local_cluster(num_cpus=1, object_store_mb=100):
        telemetry = Telemetry("mine")
        telemetry.tell({"rollouts/started": 4, "discarded/actor_lost": 1, "loss/plan": 0.5})
        telemetry.tell({"rollouts/started": 6, "discarded/actor_lost": 1, "loss/plan": 0.25})
        found = wait_for({started: 6.0, lost: 1.0, ("ray_drive_loss_plan", run): 0.25})
        assert {key[0] for key in found} == {started[0], lost[0], "ray_drive_loss_plan"}

        # It was killed; its last checkpoint knew of 5 rollouts, of which one was under way.
        resumed = Telemetry("mine", {"rollouts/started": 5, "discarded/actor_lost": 1})
        resumed.tell({"rollouts/started": 5, "discarded/actor_lost": 1, "discarded/restart": 1})
        resumed.tell({"rollouts/started": 8})
        restart = ("ray_drive_rollouts_discarded_total", ("cause", "restart"), run)
        wait_for({started: 9.0, lost: 1.0, restart: 1.0})

        other = Telemetry("other")
        other.tell({"score/passed": 3})
        wait_for({("ray_drive_score_passed", ("run", "other")): 3.0})
