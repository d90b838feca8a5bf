"""Everything that can die dies, at random and again, while a policy is trained in a world model.

Bounded by CHAOS_SECONDS of the environment (an hour of it is as good as ten minutes); the order of
events comes from CHAOS_SEED.
"""

import json
import logging
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from drive_envs.checkpoint import latest_checkpoint
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModel, WorldModelConfig
from world_model.model_file import save_world_model
from world_model.tokenizer import Tokenizer

log = logging.getLogger(__name__)

SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))

# Puts more into the object store than it holds, keeps it for a while and goes.
HOARDER = """
import time, numpy, ray
ray.init(address="{address}", log_to_driver=False)
kept = [ray.put(numpy.ones(20_000_000, numpy.uint8)) for _ in range(12)]
time.sleep(3)
"""


class Chaos:
    """What may happen to a cluster, by name."""

    def __init__(self, nodes, workers):
        self.nodes, self.workers = nodes, workers

    def kill_actor(self, rng):
        """Kill one of the processes that drive."""
        return self._kill("RolloutActor", rng)

    def kill_replica(self, rng):
        """Kill one of the processes that hold the world model."""
        return self._kill("ServeReplica", rng)

    def kill_learner(self, rng):
        """Kill the job's own process."""
        return self._kill("-m cluster train-policy", rng)

    def lose_node(self, rng):
        """End a node at once; another one comes."""
        if (node := self._pop_node(rng)) is None:
            return False
        self.nodes.lose(node)
        self.workers.append(self.nodes.start_worker())
        return True

    def drain_node(self, rng):
        """Have a node taken back with a warning of some seconds; another one comes."""
        if (node := self._pop_node(rng)) is None:
            return False
        self.workers.append(self.nodes.start_worker())
        try:
            self.nodes.drain(node, 5)
        except subprocess.TimeoutExpired:
            self.nodes.lose(node)  # the head had no time for the warning
            return False
        return True

    def fill_store(self, rng):
        """Put more into the object store than fits."""
        script = HOARDER.format(address=f"127.0.0.1:{self.nodes.port}")
        command = [sys.executable, "-c", script]
        try:
            done = subprocess.run(command, env=self.nodes.env, check=False, timeout=60)
        except subprocess.TimeoutExpired:
            return False  # it came in by a node that was about to be lost
        return done.returncode == 0

    def _pop_node(self, rng):
        """Take one of the nodes that are left: where processors are scarce, Ray gives some up."""
        for _ in range(len(self.workers)):
            node = self.workers.pop(rng.integers(len(self.workers)))
            if node.poll() is None:
                return node
            self.workers.append(self.nodes.start_worker())
        return None

    def _kill(self, title, rng):
        found = self.nodes.called(title)
        if not found:
            return False
        found[rng.integers(len(found))].kill()
        return True


@pytest.fixture
def model(tmp_path):
    """Return the folder of a small world model with random weights."""
    torch.manual_seed(0)
    size = WorldModelConfig(size="femto", width=32, height=16, latent_channels=4)
    coder = AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)
    save_world_model(WorldModel(size), Tokenizer(coder), tmp_path / "model")
    return tmp_path / "model"


def train(tiny, recordings, model, num_steps):
    """Return the command line of the run, after `drive`."""
    return [
        *("train-policy", "cluster/runs/world_model.yaml", f"data={recordings}", *tiny),
        *(f"num_steps={num_steps}", "device=cpu", "loop.checkpoint_every=10", "loop.video_every=0"),
        *("env.photometry=null", "sampler.lateral_offset=0.5", "ray.num_cpus=2"),
        f"service={{model: {model}, num_cpus: 0, num_replicas: 2, sampler: {{num_steps: 1}}, "
        "engine: {capacity: 8}}",
    ]


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 2400)
def test_a_run_outlives_whatever_dies(nodes, recordings, tiny, model, tmp_path):
    num_steps = int(60 + 15 * SECONDS)
    nodes.start_head()
    workers = [nodes.start_worker(), nodes.start_worker()]
    chaos, rng = Chaos(nodes, workers), np.random.default_rng(SEED)
    # Seldom what costs half a minute to come back from.
    events = [chaos.kill_actor, chaos.kill_replica, chaos.fill_store] * 2
    events += [chaos.kill_learner, chaos.lose_node, chaos.drain_node]

    command = train(tiny, recordings, model, num_steps)
    command += ["actors={max_actors: 2, num_cpus: 0, resources: {sim: 1}}", "output=there"]
    follower = subprocess.Popen(
        [
            *(sys.executable, "-m", "cluster", "submit", *command, "--address", nodes.address),
            *(f"submit.python={sys.executable}", "submit.id=chaos", "submit.num_cpus=0"),
            *(f"submit.storage={tmp_path}", "submit.max_restarts=1000"),
        ],
        env=nodes.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    checkpoints = tmp_path / "there" / "checkpoints"
    wait_for_checkpoint(checkpoints, follower, 300)
    happened, begin = [], time.monotonic()
    end = begin + SECONDS
    while time.monotonic() < end and follower.poll() is None:
        event = events[rng.integers(len(events))]
        if event(rng):
            happened.append(event.__name__)
        time.sleep(rng.uniform(2, 8))
    log.info("%d events in %.0f s: %s", len(happened), time.monotonic() - begin, happened)
    assert len(happened) >= SECONDS / 30
    out, _ = follower.communicate(timeout=1200)
    assert follower.returncode == 0, happened
    figures = json.loads(out.splitlines()[-1])
    assert figures["steps"] == num_steps
    rollouts = figures["rollouts"]
    assert rollouts["started"] == rollouts["learnt"] + sum(rollouts["discarded"].values()), figures

    # Nothing is left: nobody drives, nobody serves, and the service's name is free.
    deadline = time.monotonic() + 60
    while left := nodes.called("RolloutActor", "ServeReplica"):
        assert time.monotonic() < deadline, left
        time.sleep(1)
    assert not list(tmp_path.glob("there/checkpoints/*.part*"))

    # What was learnt is as good as without any of it.
    calm = subprocess.run(
        [sys.executable, "-m", "cluster", *command[:-2], f"output={tmp_path / 'calm'}"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    other = json.loads(calm.stdout.splitlines()[-1])
    assert figures["trajectory_mae"] < 1.5 * other["trajectory_mae"]
    log.info("%s: %s, without: %s", happened, figures, other)


def wait_for_checkpoint(folder, process, seconds):
    """Wait until a run has begun for good."""
    end = time.monotonic() + seconds
    while latest_checkpoint(folder) is None:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(1)
