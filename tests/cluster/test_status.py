"""Runs are real: small trainings that end, fail, are stopped, killed, or still go on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from cluster.main import main
from cluster.run_state import find_runs, run_state
from cluster.status import score_of

# Interrupts are ignored by what a shell starts in the background, tests perhaps among it.
DRIVE = (
    *(sys.executable, "-c"),
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from cluster.main import main; raise SystemExit(main())",
)
OFF_POLICY = ("cluster/runs/off_policy.yaml", "device=cpu", "precision=fp32")


def words(tiny, recordings, folder, *more):
    return ["train-policy", *OFF_POLICY, *tiny, f"data={recordings}", f"output={folder}", *more]


def wait_until(happened, seconds=150.0):
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


def last_beat(folder, process):
    """Return the last sign of life of this process, empty while there is none."""
    beat = json.loads((folder / "progress.json").read_text())
    return beat if beat["pid"] == process.pid else {}


@pytest.fixture(scope="module")
def finished(tiny, recordings, tmp_path_factory):
    """The directory of a training that has ended well."""
    folder = tmp_path_factory.mktemp("finished") / "good"
    assert main(words(tiny, recordings, folder, "num_steps=3")) == 0
    return folder


@pytest.fixture(scope="module")
def under_way(tiny, recordings, tmp_path_factory):
    """A training in a process of its own that does not end by itself, and its directory."""
    folder = tmp_path_factory.mktemp("under_way") / "long"
    more = ("num_steps=1000000", "loop.log_every=1", "loop.checkpoint_every=2", "num_threads=1")
    process = subprocess.Popen(
        [*DRIVE, *words(tiny, recordings, folder, *more)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield process, folder
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_run_that_has_ended_well(finished):
    state = run_state(finished)
    assert (state.job, state.state, state.problem) == ("train-policy", "done", None)
    assert state.work is not None
    assert (state.work["done"], state.work["total"]) == (3, 3)
    assert state.work["what"] == "gradient steps"
    assert state.checkpoint is not None
    assert state.checkpoint.step == 3
    assert state.figures is not None
    assert state.figures["trajectory_mae"] > 0
    assert state.silent is not None
    assert 0 <= state.silent < 600


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_goes_on_and_is_killed_and_resumed_and_interrupted(
    under_way,
):
    process, folder = under_way
    running: Any = wait_until(
        lambda: (s := run_state(folder)).checkpoint and s.work and s.work["per_second"] and s
    )
    assert process.poll() is None
    assert running.state == "running"
    assert running.work["total"] == 1_000_000
    # Signs of life come once a second, in which this training saves more than once.
    saved = running.checkpoint.step
    assert saved > 0
    assert wait_until(lambda: (w := run_state(folder).work) and w["done"] >= saved, seconds=10)
    assert running.work["per_second"] > 0
    assert running.work["seconds_left"] > 0
    assert "plan" in running.work["note"]
    done = running.work["done"]
    assert wait_until(lambda: (w := run_state(folder).work) and w["done"] > done)

    process.kill()
    process.wait()
    assert run_state(folder).state == "killed"

    other = subprocess.Popen(process.args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        checkpoint = run_state(folder).checkpoint
        assert checkpoint is not None
        saved = checkpoint.step
        wait_until(lambda: (w := last_beat(folder, other).get("work")) and w["done"] > saved)
        assert run_state(folder).state == "running"
        other.send_signal(signal.SIGINT)
        assert other.wait(timeout=150) == 130
    finally:
        other.kill()
    assert run_state(folder).state == "interrupted"


@pytest.mark.slow
def test_a_run_that_failed(tiny, recordings, tmp_path):
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(recordings.read_bytes()[:1000])
    assert main(words(tiny, damaged, tmp_path / "bad")) == 2
    assert run_state(tmp_path / "bad").state == "failed"


@pytest.mark.slow
def test_torn_and_foreign_directories_are_told_and_harm_nothing(finished, tmp_path, capfd):
    def copy(name):
        shutil.copytree(finished, tmp_path / name)
        return tmp_path / name

    (copy("torn") / "result.json").write_text('{"job": "train-po')
    (copy("older") / "progress.json").unlink()  # from before there were signs of life
    (copy("no beat") / "progress.json").write_bytes(b"\xff\x00")
    (copy("other host") / "progress.json").write_text('{"host": "far", "updated": 5}')
    (copy("binary") / "run.yaml").write_bytes(b"\xff\xfe\x00")
    for name, content in (("list", "[1, 2]"), ("foreign", '{"figures": null}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(content)
    (tmp_path / "photos").mkdir()
    shutil.rmtree(copy("no checkpoint") / "checkpoints")

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["status", f"folder={tmp_path}", f"output={finished.parent / 'status'}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    out, err = capfd.readouterr()
    runs = {run["directory"].split("/")[-1]: run for run in json.loads(out)["runs"]}
    assert {name: run["state"] for name, run in runs.items()} == {
        "binary": "done",
        "foreign": "done",
        "list": "unknown",
        "no beat": "done",
        "no checkpoint": "done",
        "older": "done",
        "other host": "elsewhere",
        "torn": "done",
    }
    problems = {name: run["problem"] for name, run in runs.items() if run["problem"]}
    assert problems["torn"].startswith("result.json is damaged")
    assert problems["no beat"].startswith("progress.json is damaged")
    assert problems["list"].startswith("result.json is not of a job")
    assert problems["binary"].startswith("run.yaml cannot be read")
    assert problems.keys() == {"torn", "no beat", "list", "binary", "foreign"}
    assert runs["no checkpoint"]["checkpoint"] is None
    assert runs["older"]["checkpoint"]["step"] == 3
    for words in ("step 3 saved", "3/3 gradient steps", "trajectory_mae", "damaged"):
        assert words in err


def test_a_folder_without_runs_is_said_and_a_missing_one_too(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    output = f"output={tmp_path / 'out'}"
    (tmp_path / "empty").mkdir()
    assert main(["status", f"folder={tmp_path / 'empty'}", output]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"runs": [], "cluster": None}
    assert "no job has left anything" in err
    assert main(["status", f"folder={tmp_path / 'none'}", output]) == 2
    assert "there is no folder" in capfd.readouterr().err


def test_the_search_does_not_go_into_what_jobs_leave(tmp_path):
    for name in ("a", "a/b", "a/checkpoints/step_000001", "a/tune/trial"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "run.yaml").write_text("# drive record\n")
    assert list(find_runs(tmp_path)) == [tmp_path / "a", tmp_path / "a" / "b"]


@pytest.mark.parametrize(
    ("figures", "score"),
    [
        (
            {"lane_centering": {"passed": 23, "total": 24}, "noise": "plain"},
            "lane_centering 23 of 24",
        ),
        (
            {"lane": {"on": {"passed": 2, "total": 2}, "off": {"passed": 0, "total": 2}}},
            "lane on 2 of 2, lane off 0 of 2",
        ),
        ({"mode": "on", "steps": 3, "trajectory_mae": 0.72416}, "trajectory_mae 0.7242"),
        ({}, ""),
    ],
)
def test_a_score_is_found_in_the_figures(figures, score):
    assert score_of(figures) == score


def test_a_cluster_that_does_not_answer_is_said_soon(tmp_path, capfd, monkeypatch):
    for address, said in (
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        ("http://127.0.0.1:9", "give the head's"),
    ):
        monkeypatch.setenv("RAY_ADDRESS", address)
        begun = time.monotonic()
        assert main(["status", f"folder={tmp_path}", f"output={tmp_path / 'out'}"]) == 0
        assert time.monotonic() - begun < 30
        assert said in json.loads(capfd.readouterr().out)["cluster"]


ACTORS = """
import ray

@ray.remote(num_cpus=1)
class Parked:
    def here(self):
        return True

ray.init(log_to_driver=False)
stays = Parked.options(lifetime="detached", name="stays").remote()
assert ray.get(stays.here.remote())
Parked.options(lifetime="detached", name="waits").remote()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_is_shown_with_its_actors(nodes, tmp_path):
    nodes.start_head()
    env = nodes.env | {"RAY_ADDRESS": f"127.0.0.1:{nodes.port}"}
    subprocess.run([sys.executable, "-c", ACTORS], env=env, check=True, timeout=300)
    (tmp_path / "runs").mkdir()
    shown = subprocess.run(
        [
            *(*DRIVE, "status", "patience=60"),
            *(f"folder={tmp_path / 'runs'}", f"output={tmp_path / 'status'}"),
        ],
        env=env,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    cluster = json.loads(shown.stdout)["cluster"]
    assert [node["alive"] for node in cluster["nodes"]] == [True]
    assert cluster["used"]["CPU"] == [1.0, 1.0]
    assert cluster["actors"]["Parked"] == {"ALIVE": 1, "PENDING_CREATION": 1}
    for word in ("CPU", "1 of 1", "Parked", "1 alive", "127.0.0.1"):
        assert word in shown.stderr, word
