import json

import pytest
import torch

from cluster.bench_learner import LearnerBench, bench_learner, sensible
from cluster.train_policy import TrainPolicyRun
from drive_actors.fastvit import FastVit
from drive_actors.policy import PolicyConfig
from drive_envs.environment import EnvConfig
from drive_envs.precision import has_bf16
from drive_envs.reprojective import ReprojectiveConfig
from drive_learner.queue import QueueConfig

TRAINING = TrainPolicyRun(
    policy=PolicyConfig(width=32, height=16, channels=(4, 8, 8), num_features=16, model_dim=16),
    env=EnvConfig(width=32, height=16),
    world=ReprojectiveConfig(width=32, height=16),
    queue=QueueConfig(num_sequences=3, sequence_length=4),
    num_scenes=2,
    rollout_steps=6,
)


def test_emulated_products_are_measured_only_if_nothing_else_is_asked_for(monkeypatch, caplog):
    monkeypatch.setattr("cluster.bench_learner.has_bf16", lambda kind: False)
    assert sensible(("fp32", "bf16"), "cpu") == ["fp32"]
    assert "bf16 is left out" in caplog.text
    assert sensible(("bf16",), "cpu") == ["bf16"]


@pytest.mark.slow
def test_every_way_is_measured_and_threads_are_left_alone(tmp_path):
    before = torch.get_num_threads()
    bench = LearnerBench(training=TRAINING, num_steps=1, num_repeats=2, fastvit=None)
    figures = bench_learner(bench, tmp_path)
    assert torch.get_num_threads() == before
    assert set(figures["steps_per_second"]) == {
        f"{precision}, {threads}"
        for precision in (("fp32", "bf16") if has_bf16("cpu") else ("fp32",))
        for threads in ("1 thread", "2 threads")
    }
    best = max(figures["steps_per_second"].values())
    assert figures["learnt_frames_per_second"] == pytest.approx(12 * best, rel=0.05)
    assert figures["encoders"] == {}
    json.dumps(figures)


def test_encoders_are_compared_in_the_runs_own_network():
    policies = LearnerBench().policies
    assert list(policies) == ["convolutional", "fastvit_t8"]
    assert policies["convolutional"] == TrainPolicyRun().policy
    with pytest.raises(ValueError, match="2 x 1 cells"):
        LearnerBench(training=TRAINING, fastvit=FastVit())


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="threads"):
        LearnerBench(training=TRAINING, fastvit=None, threads=())
