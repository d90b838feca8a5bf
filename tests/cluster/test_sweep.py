import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cluster import sweep, sweep_trial
from cluster.config import load
from cluster.evaluate_policy import EvaluatePolicyRun
from cluster.jobs import RUNS
from cluster.progress import progress
from cluster.record import RecordRun
from cluster.sweep import (
    SweepRun,
    as_said,
    record_once,
    run,
    seconds_in_lane,
    spelt_out,
    watching,
)
from cluster.sweep_page import Row, write_page
from cluster.sweep_trial import JobError, do, train_and_score
from cluster.train_policy import TrainPolicyRun
from drive_actors.policy_file import load_policy
from drive_envs.metadrive_assets import assets_missing
from drive_envs.plan import STEP
from drive_envs.protocol import NUM_CONTEXT

SCENARIOS = """
- name: short
  road: [{straight: 80}]
  station: 20
  speed: 8
  duration: 1.0
"""


@pytest.fixture
def config(recordings, tiny, tmp_path):
    scenarios = tmp_path / "short.yaml"
    scenarios.write_text(SCENARIOS)
    words = (*tiny, "mode=off_policy", "num_steps=2", "loss={policy_gradient: 0, value: 0}")
    return SweepRun(
        policies={
            "small": (*words, f"data={recordings}"),
            "lost": (*words, f"data={tmp_path / 'nowhere.parquet'}"),
        },
        seeds=(3,),
        scores=(EvaluatePolicyRun(scenarios=scenarios),),
        side_by_side=2,
    )


def never(*args, **kwargs):
    raise AssertionError("this was done already")


@pytest.mark.slow
@pytest.mark.skipif(assets_missing(), reason="MetaDrive's assets: run cluster/setup.sh")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("shared_ray")
def test_policies_are_trained_scored_and_compared(config, tmp_path, monkeypatch):
    output = tmp_path / "sweep"
    with pytest.raises(ValueError, match=r"^lost-seed_3: .*nowhere.parquet"):
        run(config, output)
    (checkpoint,) = (output / "small-seed_3" / "checkpoints").iterdir()
    assert load_policy(checkpoint).config.width == 32
    results = json.loads((output / "results.json").read_text())
    assert list(results) == ["small-seed_3"]
    assert results["small-seed_3"]["total"] == {"short-plain": 1}
    assert (output / "small-seed_3" / "scores" / "short-plain" / "report.html").exists()
    for name in ("policies.md", "report.html"):
        assert "small" in (output / name).read_text()
    # What is done stays done: with the lost one given up there is nothing for Ray to do.
    monkeypatch.setattr(sweep, "local_cluster", never)
    good = replace(config, policies={"small": config.policies["small"]})
    passed = results["small-seed_3"]["passed"]["short-plain"]
    error = results["small-seed_3"]["trajectory_mae"]
    expected = {"small": {"short-plain": [passed], "trajectory_mae": [error]}}
    assert run(good, output) == expected
    longer = {"small": (*config.policies["small"], "num_steps=3")}
    with pytest.raises(ValueError, match="training with other settings: choose another output"):
        run(replace(config, policies=longer), output)


def test_the_table_is_written_after_every_policy(tmp_path, monkeypatch):
    folders, done, written = [tmp_path / "a", tmp_path / "b"], set(), []
    monkeypatch.setattr(sweep, "is_done", lambda folder, scores: folder in done)
    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_LOOKS", 0.01)
    with (
        progress("policies", 2) as meter,
        watching(meter, folders, {}, lambda: written.append(len(done))),
    ):
        for folder in folders:
            done.add(folder)
            end = time.monotonic() + 30
            while written[-1:] != [len(done)]:
                assert time.monotonic() < end
                time.sleep(0.01)
    assert written == [1, 2]
    assert meter.done == 2


@pytest.fixture
def told(monkeypatch):
    """Stand in for Ray, which a trial asks where it is."""
    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    fake = SimpleNamespace(
        get_runtime_context=lambda: context,
        util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.7"),
    )
    monkeypatch.setattr(sweep_trial, "ray", fake)


def test_a_job_that_died_is_not_a_mistake(told, tmp_path, monkeypatch):
    """The first is tried again from its checkpoint, the second would fail again."""
    with pytest.raises(JobError, match="there is no job 'drain'"):
        do(["drain"], tmp_path, tmp_path, tmp_path)
    code = tmp_path / "code" / "cluster"
    code.mkdir(parents=True)
    (code / "__init__.py").touch()
    (code / "__main__.py").write_text(
        "import os, sys\n"
        "sys.stderr.write('so far\\n')\n"
        "if sys.argv[1] == 'die': os.kill(os.getpid(), 9)\n"
        "print('words'); print('{\"steps\": 2}')\n"
    )
    monkeypatch.setattr(sweep_trial, "CODE", code.parent)
    with pytest.raises(RuntimeError, match=r"die ended with -9 \(so far\); see .*output.txt"):
        do(["die"], tmp_path, tmp_path, code.parent)
    assert do(["go"], tmp_path, tmp_path, code.parent) == {"steps": 2}


def test_a_node_that_does_not_share_the_folder_says_so(told, tmp_path):
    point = {"folder": str(tmp_path / "elsewhere"), "scores": {}, "directory": str(tmp_path)}
    assert "is not there on 10.0.0.7" in train_and_score(point)["problem"]


def test_recordings_are_made_once(tmp_path, monkeypatch):
    calls = []

    def recorded(config, output):
        calls.append(config.seed)
        config.path.touch()
        return {"segments": 1}

    monkeypatch.setattr(sweep.record, "run", recorded)
    config = RecordRun(path=tmp_path / "drives.parquet")
    for _ in range(2):
        record_once(config, tmp_path / "recordings")
    other = replace(config, seed=1)
    record_once(other, tmp_path / "recordings")  # `record` refuses it, if the path has others
    config.path.unlink()
    record_once(other, tmp_path / "recordings")
    assert calls == [0, 1, 1]


def test_the_time_in_the_lane_is_that_before_it_is_left(tmp_path):
    drives = [
        {"time": [0.0, 6.0, 12.0], "figures": {"off_lane_time": 0.0}},
        {"time": [0.0, 5.0], "figures": {"off_lane_time": 1.0}},
        {"time": [], "figures": None},  # whose process died
    ]
    (tmp_path / "results.json").write_text(json.dumps({"drivers": {"policy": drives}}))
    assert seconds_in_lane(tmp_path) == pytest.approx(8.0)
    (tmp_path / "results.json").write_text(json.dumps({"drivers": {"policy": drives[2:]}}))
    assert seconds_in_lane(tmp_path) is None


def test_a_run_is_said_as_on_the_command_line(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("num_steps: 7\n")
    assert as_said(TrainPolicyRun, ("off_policy", "seed=2")) == load(
        TrainPolicyRun, RUNS / "off_policy.yaml", ["seed=2"]
    )
    assert as_said(TrainPolicyRun, (str(mine), "seed=2")).num_steps == 7
    assert as_said(TrainPolicyRun, ("num_steps=9",)).num_steps == 9


def row(policy, seed, passed, error):
    return Row(
        policy=policy,
        seed=seed,
        steps=4000,
        minutes=50.0,
        trajectory_mae=error,
        passed={"a": passed, "b": passed - 1},
        total={"a": 24, "b": 20},
        mean_abs_lateral={"a": 0.1 * (seed + 1), "b": None},
        seconds_in_lane={"a": 11.5, "b": None},
        commit="0123456789abcdef" if policy == "on" else None,
        machine="2 cores of a kind",
    )


def test_the_table_has_seeds_and_intervals(tmp_path):
    rows = [row("on", 0, 20, 0.8), row("on", 1, 16, 0.9), row("off", 0, 2, 0.6)]
    tables = {"both": ["on", "off", "later"], "one": ["off"], "none": ["later"]}
    figures = write_page(tmp_path, rows, ["a", "b"], tables)
    assert figures["on"] == {"a": [20, 16], "b": [19, 15], "trajectory_mae": [0.8, 0.9]}
    lines = (tmp_path / "both.md").read_text().splitlines()
    # Wilson's interval of 36 in 48, and Student's of two values: 12.706 times 0.05.
    assert "| on | 0, 1 | 20, 16 of 24 (75%, 61% to 85%) |" in lines[2]
    assert lines[2].endswith("| 0.150 ± 0.635 | 11.500 ± 0.000 | 0.850 ± 0.635 |")
    assert lines[3].endswith("| 0.100 | 11.500 | 0.600 |")
    assert (tmp_path / "both.png").read_bytes()[1:4] == b"PNG"
    alone = (tmp_path / "one.md").read_text().splitlines()
    assert [alone[0], alone[2]] == [lines[0], lines[3]]
    trained = "Last trained on 2 cores of a kind: "
    assert alone[3:] == ["", f"{trained}off 0 by code of no repository."]
    by_both = "on 0, on 1 by commit 0123456789; off 0 by code of no repository."
    assert lines[4:] == ["", trained + by_both]


def test_tables_choose_policies_and_those_may_begin_with_another():
    policies = {
        "off_policy": ("off_policy", "num_steps=7"),
        "short": ("off_policy", "seed=3"),
        "shorter": ("short", "num_steps=2"),
    }
    tables = {"a": ("short", "off_policy"), "b": ("shorter",)}
    sweep = SweepRun(policies=policies, seeds=(0,), tables=tables)
    steps = {name: training.num_steps for (name, _), training in sweep.points.items()}
    assert steps == {"off_policy": 7, "short": 7, "shorter": 2}
    assert list(replace(sweep, only=("b",)).points) == [("shorter", 0)]
    assert list(replace(sweep, tables={}).points) == [(name, 0) for name in policies]
    assert spelt_out(policies, "shorter") == ("off_policy", "num_steps=7", "seed=3", "num_steps=2")
    with pytest.raises(ValueError, match="a begins with b begins with a: that has no beginning"):
        spelt_out({"a": ("b",), "b": ("a",)}, "a")


def test_every_table_of_the_paper_takes_no_longer_than_it_says():
    sweep = load(SweepRun, RUNS / "paper.yaml")
    assert list(sweep.tables) == [
        *("simulators", "teacher", "imitation", "copying", "mixtures", "signals", "lag"),
        "context",
    ]
    assert {name for names in sweep.tables.values() for name in names} == set(sweep.policies)
    for table in sweep.tables:
        # 25 minutes a policy, twice as many in the world model, 8 minutes a recording.
        points = replace(sweep, only=(table,)).points.values()
        minutes = {"reprojective": 25, "world_model": 50}
        assert sum(minutes[training.simulator] for training in points) + 5 * 8 <= 4 * 60
    lags = [training for (name, _), training in sweep.points.items() if "lag" in name]
    assert {training.loop.publish_lag for training in lags} == {1, 4, 16}
    assert {training.loss.is_corrected for training in lags} == {True, False}
    contexts = [training for (name, _), training in sweep.points.items() if "context" in name]
    assert [training.policy.context * STEP for training in contexts] == [2, 5, 10]
    assert all((NUM_CONTEXT + training.rollout_steps) * STEP > 10 for training in contexts)


@pytest.mark.parametrize("name", ["table2", "paper"])
def test_the_shipped_sweeps_are_of_one_length_and_learn_from_what_is_recorded(name):
    config = load(SweepRun, RUNS / f"{name}.yaml")
    recorded = {
        str(as_said(RecordRun, spelt_out(config.recordings, name)).path)
        for name in config.recordings
    }
    recorded.add("runs/data/train")
    assert len({training.num_steps for training in config.points.values()}) == 1
    assert {training.data for training in config.points.values()} <= recorded


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policies": {}}, "policies is empty"),
        ({"seeds": (1, 1)}, "seeds must be one or more, each once"),
        ({"scores": (EvaluatePolicyRun(policy="teacher"),)}, "scores name a policy"),
        ({"scores": (EvaluatePolicyRun(), EvaluatePolicyRun(video="all"))}, "scores must be one"),
        ({"side_by_side": 0}, "side_by_side is 0"),
        ({"only": ("a",)}, "only names a, the tables are none"),
        ({"tables": {"a": ("yours",)}}, "tables.a names yours, which is no policy"),
        ({"tables": {"a": ()}}, "mine: in none of the tables"),
    ],
)
def test_impossible_sweeps_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        SweepRun(**({"policies": {"mine": ("reprojective",)}} | changes))
