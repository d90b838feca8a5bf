import json
from dataclasses import replace

import pytest

from cluster import evaluate_policy, probe_policy, sweep_bottleneck, train_policy
from cluster.config import load
from cluster.evaluate_policy import EvaluatePolicyRun
from cluster.jobs import RUNS
from cluster.leak_scenes import LeakScenesConfig
from cluster.probe_policy import ProbePolicyRun
from cluster.sweep_bottleneck import SweepBottleneckRun, run
from cluster.train_policy import TrainPolicyRun
from drive_actors.policy_file import load_policy
from drive_actors.probe import ProbeConfig
from drive_envs.metadrive_assets import assets_missing

FIGURE = [0.2, 0.1, 0.3]
COLUMNS = ("true", "warped", "aged", "leak", "leak_aged", "known", "known_aged")


@pytest.fixture
def config(recordings, tiny):
    training = load(
        TrainPolicyRun,
        None,
        [
            *tiny,
            "mode=off_policy",
            "num_steps=2",
            f"data={recordings}",
            "loss={policy_gradient: 0, value: 0}",
        ],
    )
    probe = ProbePolicyRun(
        pairs=LeakScenesConfig(num_roads=4, pairs_per_road=2, width=32, height=16),
        probe=ProbeConfig(num_folds=2, max_epochs=2),
        num_resamples=20,
    )
    return SweepBottleneckRun(capacities=(40.0, None), training=training, probe=probe)


def scored(run, output):
    return {"lane_centering": {"passed": 3, "total": 24}, "noise": "plain", "mean_abs_lateral": 0.5}


def never(*args):
    raise AssertionError("this was done already")


@pytest.mark.slow
@pytest.mark.skipif(assets_missing(), reason="MetaDrive's assets: run cluster/setup.sh")
@pytest.mark.filterwarnings("ignore")
def test_policies_are_trained_and_probed_and_what_is_done_stays_done(config, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_policy, "run", scored)  # a minute of its own
    first = run(config, tmp_path)
    assert list(first) == ["bits_40-seed_0", "bits_none-seed_0"]
    for name, bits in (("bits_40-seed_0", 40.0), ("bits_none-seed_0", None)):
        (checkpoint,) = (tmp_path / name / "checkpoints").iterdir()
        assert load_policy(checkpoint).config.bottleneck_bits == bits
        assert first[name].keys() == {"passed", "total", "leak_linear", "leak_mlp"}
        assert (tmp_path / name / "probe" / "report.html").exists()
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(one["bits"], one["seed"]) for one in results.values()] == [(40.0, 0), (None, 0)]
    assert (tmp_path / "leak.png").read_bytes()[1:4] == b"PNG"
    for job in (train_policy, evaluate_policy, probe_policy):
        monkeypatch.setattr(job, "run", never)
    monkeypatch.setattr(sweep_bottleneck, "leak_scenes", lambda *args: None)
    assert run(config, tmp_path) == first
    # Another seed is one more policy, the others stay.
    with pytest.raises(AssertionError, match="done already"):
        run(replace(config, seeds=(0, 1)), tmp_path)
    assert (tmp_path / "bits_40-seed_1" / "training.yaml").exists()
    assert json.loads((tmp_path / "results.json").read_text()) == results
    with pytest.raises(ValueError, match="training with other settings: choose another output"):
        run(replace(config, training=replace(config.training, num_steps=3)), tmp_path)


@pytest.mark.slow
def test_every_seed_is_a_point_in_the_report(config, tmp_path, monkeypatch):
    probed = {
        target: {probe: dict.fromkeys(COLUMNS, FIGURE) for probe in ("linear", "mlp")}
        for target in ("lateral", "heading", "lane")
    }

    def figures_of(training, score, probe, folder):
        return {
            "bits": training.policy.bottleneck_bits,
            "seed": training.seed,
            "trajectory_mae": None,
            "passed": 10 + training.seed,
            "total": 24,
            "mean_abs_lateral": 0.25,
            "probe": probed,
        }

    monkeypatch.setattr(sweep_bottleneck, "figures_of", figures_of)
    monkeypatch.setattr(sweep_bottleneck, "leak_scenes", lambda *args: None)
    found = run(replace(config, seeds=(0, 3)), tmp_path)
    assert list(found)[1:3] == ["bits_none-seed_0", "bits_40-seed_3"]
    assert found["bits_40-seed_3"] == {
        "passed": 13,
        "total": 24,
        "leak_linear": 0.2,
        "leak_mlp": 0.2,
    }
    page = (tmp_path / "report.html").read_text()
    for part in ("13 of 24", "none", "0.200 (0.100 to 0.300)", "data:image/png"):
        assert part in page
    told = (tmp_path / "leak.md").read_text()
    shown = "0.200 (0.100 to 0.300)"
    assert f"| none | 3 | 13 of 24 | 0.250 |  | {shown} |" in told
    assert f"| lateral | 40 | 0 | linear | {shown} | {shown} | {shown} |" in told
    assert told.count("\n| heading |") == 2 * 2 * 2


def test_the_shipped_sweep_trains_and_probes_as_the_shipped_runs_do():
    config = load(SweepBottleneckRun, RUNS / "bottleneck.yaml")
    shipped = load(TrainPolicyRun, RUNS / "reprojective.yaml")
    assert config.training == replace(shipped, num_steps=2000)
    assert config.probe == load(ProbePolicyRun, RUNS / "probe.yaml")
    assert [run.policy.bottleneck_bits for run in config.points.values()] == [
        200,
        500,
        700,
        1000,
        None,
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"capacities": ()}, "capacities must be one or more"),
        ({"seeds": (1, 1)}, "seeds must be one or more, each once"),
        ({"score": EvaluatePolicyRun(policy="teacher")}, "score names a policy"),
        (
            {"probe": ProbePolicyRun(pairs=LeakScenesConfig(width=64, height=32))},
            "pictures must have one size",
        ),
    ],
)
def test_impossible_sweeps_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        SweepBottleneckRun(**changes)
