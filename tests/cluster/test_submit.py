import asyncio
import io
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster.main import CommandError, main, parse
from cluster.submit import SubmitError, SubmitRun, entrypoint, follow, start
from drive_envs.checkpoint import checkpoints

log = logging.getLogger(__name__)


class FlakyClient:
    """A cluster whose logs break off; its job is over when it was asked for it often enough."""

    def __init__(self, num_asked, *, is_there=True):
        self.left, self.is_there = num_asked, is_there

    def get_job_status(self, name):
        if not self.is_there:
            raise RuntimeError("no connection")
        self.left -= 1
        return JobStatus.SUCCEEDED if self.left <= 0 else JobStatus.RUNNING

    async def tail_job_logs(self, name):
        yield "begun\n"
        if self.left > 0:
            raise RuntimeError("the connection was closed")
        yield "done\n"


@pytest.fixture
def hurried(monkeypatch):
    """Let 40 s go by whenever `follow` looks at the clock, and nothing while it sleeps."""

    async def at_once(seconds):
        return None

    clock = SimpleNamespace(monotonic=itertools.count(0.0, 40.0).__next__)
    monkeypatch.setattr("cluster.submit.asyncio", SimpleNamespace(sleep=at_once))
    monkeypatch.setattr("cluster.submit.time", clock)


def test_a_job_is_followed_however_often_its_log_breaks_off(hurried):
    file = io.StringIO()
    client: Any = FlakyClient(4)
    assert asyncio.run(follow(client, "job", file)) == "done"
    assert file.getvalue() == "begun\ndone\n"


def test_a_cluster_that_does_not_answer_is_given_up(hurried):
    client: Any = FlakyClient(4, is_there=False)
    with pytest.raises(SubmitError, match="does not answer any more"):
        asyncio.run(follow(client, "job", io.StringIO()))


def test_a_submission_is_a_command_with_keys_of_its_own():
    line = ["submit", "mine.yaml", "seed=1", "--address", "http://127.0.0.1:1", "submit.num_gpus=1"]
    command = parse(line)
    assert command.overrides == (
        "address=http://127.0.0.1:1",
        "num_gpus=1",
        'command=["train-policy", "mine.yaml", "seed=1"]',
    )
    assert command.output == Path("runs/submit-mine")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["submit"], "nothing to submit"),
        (["submit", "trian-policy"], "did you mean 'train-policy'"),
        (["submit", "demo", "one", "two"], "'one' is not understood"),
    ],
)
def test_what_cannot_be_submitted_is_said_before_a_cluster_is_asked(line, words):
    with pytest.raises(CommandError, match=words):
        parse(line)


def test_a_missing_cluster_is_said_in_one_line(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    assert main(["submit", "demo", "--address", "http://127.0.0.1:9"]) == 2
    words = capfd.readouterr().err
    assert "no cluster takes jobs at http://127.0.0.1" in words
    assert "ray dashboard" in words


@pytest.mark.parametrize(
    ("codes", "attempts", "code"),
    [
        ((0,), 1, 0),
        ((137, 1, 0), 3, 0),
        ((2,), 1, 2),  # the user's to mend
        ((137, 137, 137, 137), 3, 137),  # the first and two more
    ],
)
def test_a_job_that_dies_is_begun_again(tmp_path, codes, attempts, code):
    python = tmp_path / "a python"
    python.write_text(
        '#!/bin/sh\necho "$PWD|$PYTHONPATH|$*" >> "$HOME/log"\n'
        'n=$(wc -l < "$HOME/log"); set -- '
        f"{' '.join(map(str, codes))}; shift $((n-1)); exit $1\n"
    )
    python.chmod(0o755)
    config = SubmitRun(command=("demo",), python=str(python), storage="~/a store", max_restarts=2)
    code_folder = tmp_path / "the code"
    code_folder.mkdir()
    done = subprocess.run(
        ["bash", "-c", entrypoint(config, ["demo", "demo.yaml", "output=a b"])],
        cwd=code_folder,
        env=os.environ | {"HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == code
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == attempts * [
        f"{tmp_path}/a store|{code_folder}|-P -m cluster demo {code_folder}/demo.yaml output=a b"
    ]


class Refusing:
    """A cluster that takes no jobs, and says why."""

    def __init__(self, words):
        self.words = words

    def submit_job(self, **job):
        raise RuntimeError(self.words)


def test_a_head_whose_agent_has_no_port_is_told_from_other_refusals():
    def refused(words):
        cluster: Any = Refusing(words)
        with pytest.raises(SubmitError, match=f"refused the job: {words}") as caught:
            start(cluster, SubmitRun(command=("demo",)), "mine", ["demo", "demo.yaml"], "{}")
        return str(caught.value)

    assert "agent-listen-port" in refused("500: No available agent to submit job, try later")
    assert "agent-listen-port" not in refused("400: no such thing")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_job_goes_through_a_cluster_that_grows_and_shrinks(nodes, recordings, tiny, tmp_path):
    """From a YAML to figures over three nodes: two that drive come and one of them goes."""
    nodes.start_head()
    first = nodes.start_worker()
    storage = tmp_path / "storage"
    command = [
        *(sys.executable, "-m", "cluster", "submit", "train-policy"),
        *("--address", nodes.address, f"submit.python={sys.executable}"),
        *(f"submit.storage={storage}", "submit.id=grows", "submit.num_cpus=0"),
        *(f"data={recordings}", *tiny, "num_steps=100000", "output=there", "device=cpu"),
        *("actors={max_actors: 3, num_cpus: 0, resources: {sim: 1}}", "loop.checkpoint_every=20"),
    ]
    follower = subprocess.Popen(command, env=nodes.env, cwd=tmp_path)
    folder = storage / "there" / "checkpoints"
    wait_until(lambda: bool(checkpoints(folder)), 240, "a first checkpoint")
    assert nodes.num_actors() == 1

    nodes.give_way()
    begin = time.monotonic()
    nodes.start_worker()
    wait_until(lambda: nodes.num_driving() == 2, 120, "the new node's actor")
    log.info("a node that joins is used after %.1f s", time.monotonic() - begin)
    assert time.monotonic() - begin < 15

    nodes.lose(first)
    last = checkpoints(folder)[-1]
    wait_until(lambda: checkpoints(folder)[-1] > last, 120, "steps after a node was lost")
    wait_until(lambda: nodes.num_actors() == 1, 120, "the lost node's actor to be counted out")

    (learner,) = nodes.called("-m cluster train-policy")
    last, begin = checkpoints(folder)[-1], time.monotonic()
    learner.kill()
    wait_until(lambda: checkpoints(folder)[-1] > last, 120, "a learner that was killed")
    log.info("a learner that is killed learns again after %.1f s", time.monotonic() - begin)
    assert time.monotonic() - begin < 30

    # The follower ends and the job does not; who asks for it again follows it to its end.
    follower.send_signal(signal.SIGINT)
    assert follower.wait(timeout=60) == 130
    last = checkpoints(folder)[-1]
    wait_until(lambda: checkpoints(folder)[-1] > last, 120, "steps without a follower")
    followed = tmp_path / "runs" / "submit-reprojective" / "job.txt"
    followed.unlink()
    follower = subprocess.Popen(command, env=nodes.env, cwd=tmp_path)
    wait_until(lambda: followed.exists() and followed.stat().st_size, 120, "the log told again")
    assert nodes.run("job", "stop", "grows").returncode == 0
    assert follower.wait(timeout=60) not in (0, 2)

    # The same run, as long as it has become and ten steps more: it goes on and ends well.
    step = int(checkpoints(folder)[-1].name.removeprefix("step_"))
    command[command.index("submit.id=grows")] = "submit.id=ends"
    command[command.index("num_steps=100000")] = f"num_steps={step + 10}"
    done = subprocess.run(
        command, env=nodes.env, cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=240
    )
    assert done.returncode == 0
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["status"] == "SUCCEEDED"
    assert figures["resumed_at"] == step
    rollouts = figures["rollouts"]
    assert rollouts["started"] == rollouts["learnt"] + sum(rollouts["discarded"].values())
    assert json.loads((storage / "there" / "result.json").read_text())["job"] == "train-policy"


def wait_until(is_so, seconds, what):
    """Wait for something to become true; fail after a while."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.5)
