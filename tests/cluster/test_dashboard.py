"""The dashboard on a real Prometheus, which fetches from a real Ray cluster where things happen."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import psutil
import pytest
import torch
import yaml

from cluster.dashboard import PLACE, ROWS, dashboard, text
from tests.ports import free_port
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModel, WorldModelConfig
from world_model.model_file import save_world_model
from world_model.tokenizer import Tokenizer

# Interrupts are ignored by what a shell starts in the background, tests perhaps among it.
DRIVE = (
    *(sys.executable, "-c"),
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from cluster.main import main; raise SystemExit(main())",
)
HERE = Path(sys.executable).with_name("prometheus")  # where set-up puts it
PROMETHEUS = str(HERE) if HERE.exists() else shutil.which("prometheus")
CURVES = [
    (panel.title, name, query)
    for row in ROWS.values()
    for panel in row
    for name, query in panel.curves.items()
]


def test_the_shipped_file_is_what_is_generated():
    assert PLACE.read_text() == text(), "run python -m cluster.dashboard"


def test_panels_lie_side_by_side_and_each_has_its_own_number():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


def wait_until(happened, seconds, what):
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(1.0)
    return found


class Prometheus:
    """A server on a port of its own, which fetches what Ray's service discovery file names."""

    def __init__(self, folder, discovery, port):
        self.address = f"http://127.0.0.1:{port}"
        job = {"job_name": "ray", "file_sd_configs": [{"files": [str(discovery)]}]}
        settings = {"global": {"scrape_interval": "2s"}, "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        assert PROMETHEUS is not None
        self.process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=error",
            ]
        )

    def is_ready(self):
        try:
            return urlopen(f"{self.address}/-/ready", timeout=5).status == 200
        except OSError:
            return False

    def ask(self, query):
        """Answer as Grafana's variables would have it asked; labels and values."""
        for name, value in (("$run", ".*"), ("$__rate_interval", "30s"), ("$__range", "1h")):
            query = query.replace(name, value)
        with urlopen(f"{self.address}/api/v1/query?{urlencode({'query': query})}") as answer:
            found = json.load(answer)["data"]["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def labels(self, metric):
        """Labels of a metric that are not Ray's or Prometheus's own."""
        (labels,) = [set(found) for found, _ in self.ask(metric)][-1:]
        return {label for label in labels if re.fullmatch(r"[a-z]+", label)} - {"job", "instance"}


@pytest.fixture
def prometheus(nodes, tmp_path):
    if PROMETHEUS is None:
        pytest.skip("there is no prometheus here: cluster/setup.sh --dev brings it")
    nodes.start_head()
    discovery = nodes.folder / "prom_metrics_service_discovery.json"
    wait_until(discovery.exists, 120, "Ray's list of what to fetch")
    server = Prometheus(tmp_path, discovery, free_port())
    try:
        wait_until(server.is_ready, 120, "Prometheus")
        yield server
    finally:
        server.process.terminate()
        server.process.wait(timeout=60)


def tiny_world_model(folder):
    torch.manual_seed(0)
    model = WorldModelConfig(size="femto", width=32, height=16, latent_channels=4)
    coder = AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)
    save_world_model(WorldModel(model), Tokenizer(coder), folder)
    return folder


def start_drive(nodes, folder, *words):
    """Start `drive` on the cluster; what it says goes to a file."""
    with (folder / f"{words[0]}.log").open("w") as log:
        return subprocess.Popen(
            [*DRIVE, *words],
            env=nodes.env | {"RAY_ADDRESS": f"127.0.0.1:{nodes.port}"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def end(process):
    """Ask a job to end, as Ctrl-C does."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def actors(nodes):
    family = psutil.Process(nodes.processes[0].pid).children(recursive=True)
    return [p for p in family if "".join(p.cmdline()).startswith("ray::RolloutActor")]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_curve_is_drawn_from_what_a_training_and_a_score_tell(
    prometheus, nodes, recordings, tiny, tmp_path
):
    """A policy learns in a world model's service, one of its actors dies, and another is scored."""
    (tmp_path / "scenarios.yaml").write_text(
        "- {name: near, road: [{straight: 100}], lane_count: 1, speed: 10, duration: 4.0,"
        " station: 25, lateral_offset: 0.4}\n"
    )
    training = start_drive(
        nodes,
        tmp_path,
        *("train-policy", "cluster/runs/world_model.yaml", f"output={tmp_path / 'trained'}"),
        *(f"data={recordings}", *tiny, "num_steps=1000000", "precision=fp32", "device=cpu"),
        *("sampler.rows_after=5", "loop={log_every: 2, publish_every: 2, video_every: 0}"),
        *("queue={capacity: 4, window: 2, reuse: 2, min_minibatches: 1}",),
        *("queue.num_sequences=2", "queue.sequence_length=3"),
        *(f"service.model={tiny_world_model(tmp_path / 'model')}", "service.num_cpus=0"),
        *("service.sampler.num_steps=1", "service.engine.capacity=8"),
        *("actors={max_actors: 1, seats: 2, num_cpus: 0}",),
    )

    def is_up(process):
        assert nodes.processes[0].poll() is None, (nodes.folder / "node0.log").read_text()
        assert process.poll() is None, (tmp_path / "train-policy.log").read_text()
        return True

    try:
        step = 'ray_drive_learner_step{run="trained"}'
        wait_until(lambda: is_up(training) and prometheus.ask(step), 400, "learning")
        for process in actors(nodes):
            os.kill(process.pid, signal.SIGKILL)
        scoring = start_drive(
            nodes,
            tmp_path,
            *("evaluate-policy", f"output={tmp_path / 'scored'}", "policy=straight"),
            *("render=false", "num_processes=1", f"scenarios={tmp_path / 'scenarios.yaml'}"),
        )
        missing = dict.fromkeys(CURVES)

        def all_drawn():
            assert is_up(training)
            for curve in list(missing):
                if prometheus.ask(curve[-1]):
                    del missing[curve]
            return not missing

        try:
            wait_until(all_drawn, 400, "all curves")
        except AssertionError as error:
            said = (tmp_path / "evaluate-policy.log").read_text()
            raise AssertionError(f"{error}: {list(missing)}; {said}") from None
        finally:
            end(scoring)
        assert prometheus.labels("ray_drive_loss_plan") == {"run"}
        discards = "ray_drive_rollouts_discarded_total"
        assert prometheus.labels(discards) == {"run", "cause"}
        causes = {labels["cause"] for labels, _ in prometheus.ask(discards)}
        assert "actor_lost" in causes
        (score,) = prometheus.ask("max by (run) (last_over_time(ray_drive_score_driven[1h]))")
        assert score == ({"run": "scored"}, 1.0)
        ((_, started),) = prometheus.ask('ray_drive_rollouts_started_total{run="trained"}')
        assert started > 0
    finally:
        end(training)
