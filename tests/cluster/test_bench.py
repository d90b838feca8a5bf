import json

import pytest
import torch

from cluster.bench import BenchRun
from cluster.bench_rollout import RolloutBench, bench_rollout, phases
from cluster.config import load

SMALL = ("num_rollouts=1", "num_repeats=2", "num_warmup=1", "num_functions=3")


@pytest.fixture
def small_bench(recordings, tiny):
    training = [f"training.{override}" for override in (f"data={recordings}", *tiny)]
    return lambda *overrides: load(RolloutBench, None, [*training, *SMALL, *overrides])


def test_a_real_drive_is_for_the_warp_alone(tmp_path):
    with pytest.raises(ValueError, match=r"say `drive bench reprojection data=\.\.\.`"):
        BenchRun(data=tmp_path)


@pytest.mark.slow
def test_rollouts_are_timed_and_the_phases_add_up(small_bench, tmp_path):
    threads = torch.get_num_threads()
    figures = bench_rollout(small_bench("actors=[]"), tmp_path)
    assert torch.get_num_threads() == threads
    rate = figures["steps_per_second"]["process"]
    low, high = figures["spread"]["process"]
    assert 0 < low <= rate <= high
    per_step = figures["milliseconds_per_step"]
    assert {"render", "decode", "vehicle", "teacher", "policy", "collate"} <= set(per_step)
    # All that is timed happens inside the rollouts, whose wall time gives the rate.
    assert 1000 / high * 0.7 < sum(per_step.values()) < 1000 / low * 1.1
    assert len(figures["profile"]) == 3
    assert "tottime" in (tmp_path / "profile.txt").read_text()
    json.dumps(figures)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_actors_are_measured_beside_the_process(small_bench, tmp_path):
    figures = bench_rollout(small_bench("actors=[1]", "num_functions=0"), tmp_path)
    assert set(figures["steps_per_second"]) == {"process", "ray_1"}
    assert figures["steps_per_second"]["ray_1"] > 0
    assert "profile" not in figures


def test_phases_add_up_to_the_total():
    spent = {
        "total": 10.0,
        "env": 7.0,
        "policy": 2.0,
        "env/render": 4.0,
        "env/decode": 1.0,
        "env/teacher": 1.5,
    }
    parts = phases(spent)
    assert parts == {
        "render": 3.0,
        "policy": 2.0,
        "teacher": 1.5,
        "other": 1.5,
        "decode": 1.0,
        "collate": 1.0,
    }
    assert list(parts.values()) == sorted(parts.values(), reverse=True)


@pytest.mark.parametrize("override", ["num_repeats=0", "actors=[0]"])
def test_nothing_to_measure_is_refused(override):
    with pytest.raises(ValueError, match=override.split("=")[0]):
        load(RolloutBench, None, [override])
