"""A run learnt by RLlib: what it leaves is a policy like any other, and it goes on from there."""

from dataclasses import replace

import pytest
import torch

from cluster.config import ConfigError, dump, load
from cluster.train_policy import RayConfig, TrainPolicyRun, run
from drive_actors.policy import PolicyConfig
from drive_actors.policy_file import load_policy
from drive_envs.checkpoint import checkpoints, latest_checkpoint
from drive_envs.environment import EnvConfig
from drive_envs.reprojective import ReprojectiveConfig
from drive_envs.scenes import SamplerConfig
from drive_envs.segments import write_segments
from drive_learner.loop import LoopConfig
from drive_learner.losses import LossConfig
from drive_learner.rllib_config import OwnLearning, RllibLearning

WIDTH, HEIGHT = 32, 16


@pytest.fixture(scope="module")
def tiny(synthetic, tmp_path_factory):
    """A run of a few small gradient steps on a recording of a textured plane."""
    path = tmp_path_factory.mktemp("data") / "drives.parquet"
    road = synthetic.winding_path(num_rows=60)
    write_segments(
        path,
        [
            synthetic.segment_from_path(road, name=split, width=WIDTH, height=HEIGHT, split=split)
            for split in ("train", "held_out")
        ],
    )
    return TrainPolicyRun(
        data=str(path),
        num_steps=6,
        num_scenes=2,
        learner=RllibLearning(
            algorithm="ppo", fragment_length=17, num_sequences=2, minibatches=2, num_epochs=1
        ),
        policy=PolicyConfig(
            width=WIDTH,
            height=HEIGHT,
            channels=(4, 8, 8),
            num_features=16,
            bottleneck_bits=20.0,
            model_dim=16,
            num_layers=1,
            num_heads=2,
            num_hypotheses=2,
        ),
        env=EnvConfig(width=WIDTH, height=HEIGHT),
        world=ReprojectiveConfig(width=WIDTH, height=HEIGHT),
        sampler=SamplerConfig(num_steps=(8, 8)),
        loop=LoopConfig(checkpoint_every=1, keep_checkpoints=2),
        ray=RayConfig(num_cpus=3, object_store_mb=200),
    )


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # RLlib's own, of all kinds
def test_a_run_leaves_a_policy_and_goes_on_from_where_it_was(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cluster.train_with_rllib.SECONDS", 0.1)
    figures = run(tiny, tmp_path)
    assert figures["learner"] == "rllib ppo"
    assert figures["learner/gradient_steps"] >= 6
    assert figures["trajectory_mae"] > 0
    first = latest_checkpoint(tmp_path / "checkpoints")
    assert first is not None
    assert first.step >= 6
    policy = load_policy(checkpoints(tmp_path / "checkpoints")[-1])
    assert policy.config == tiny.policy
    for name, value in policy.state_dict().items():
        torch.testing.assert_close(value, first.tensors["policy"][name])

    further = run(replace(tiny, num_steps=first.step + 2), tmp_path)
    assert further["learner/gradient_steps"] >= first.step + 2
    last = latest_checkpoint(tmp_path / "checkpoints")
    assert last is not None
    assert last.step == further["learner/gradient_steps"]
    again = run(replace(tiny, num_steps=1), tmp_path)  # nothing is left to do
    assert again["trajectory_mae"] == further["trajectory_mae"]
    assert "learner/gradient_steps" not in again


def test_the_learner_is_chosen_by_its_kind(tmp_path) -> None:
    assert load(TrainPolicyRun).learner == OwnLearning()
    chosen = load(TrainPolicyRun, None, ["learner.kind=rllib", "learner.algorithm=appo"])
    assert chosen.learner == RllibLearning(algorithm="appo")
    (tmp_path / "run.yaml").write_text(dump(chosen))
    assert load(TrainPolicyRun, tmp_path / "run.yaml") == chosen


def test_what_rllib_cannot_be_told_of_is_an_error(tiny) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'learner\.algorithm'"):
        load(TrainPolicyRun, None, ["learner.algorithm=ppo"])
    with pytest.raises(ValueError, match="must be above 0"):
        replace(tiny, loss=LossConfig(policy_gradient=0.0))
    with pytest.raises(ValueError, match="mode=on_policy"):
        replace(tiny, mode="off_policy", loss=LossConfig(policy_gradient=0.0, value=0.0))
    with pytest.raises(ValueError, match="c_max 1"):
        replace(tiny, loss=LossConfig(c_max=0.5))
