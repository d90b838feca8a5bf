import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.config import dump, load
from cluster.jobs import RUNS
from cluster.record import RecordRun
from cluster.train_policy import RayConfig, TrainPolicyRun, actor_feed, held_out_error, resumed, run
from drive_actors.policy import Policy, PolicyConfig
from drive_actors.policy_file import load_policy
from drive_envs.checkpoint import checkpoints, latest_checkpoint
from drive_envs.environment import EnvConfig
from drive_envs.reprojective import ReprojectiveConfig
from drive_envs.scenes import SamplerConfig
from drive_envs.segments import write_segments
from drive_learner.learner import Learner
from drive_learner.loop import LoopConfig, learn
from drive_learner.losses import LossConfig
from drive_learner.queue import QueueConfig
from drive_learner.rllib_config import RllibLearning
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModel, WorldModelConfig
from world_model.engine import EngineConfig
from world_model.model_file import save_world_model
from world_model.sampler import SamplerConfig as EulerConfig
from world_model.service_config import ServiceConfig
from world_model.tokenizer import Tokenizer

WIDTH, HEIGHT = 32, 16
SHOWN = {
    "loss/plan",
    "loss/action",
    "loss/policy_gradient",
    "loss/value",
    "loss/entropy",
    "rollout/return",
    "rollout/lateral_error",
    "rollouts/started",
    "learner/policy_lag",
    "learner/steps_per_second",
    "learner/idle_share",
    "actor/frames_per_second",
    "actor/utilisation",
}


@pytest.fixture(scope="module")
def tiny(synthetic, tmp_path_factory):
    """A run of 12 small gradient steps on a recording of a textured plane."""
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
        num_steps=12,
        precision="fp32",
        num_scenes=2,
        rollout_steps=8,
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
        sampler=SamplerConfig(num_steps=(5, 8)),
        queue=QueueConfig(
            capacity=4,
            window=2,
            reuse=2,
            min_minibatches=1,
            num_sequences=4,
            sequence_length=4,
        ),
        loop=LoopConfig(log_every=2, publish_every=2, checkpoint_every=4, video_every=6),
        ray=RayConfig(num_cpus=2, object_store_mb=100),
    )


def off_policy(config: TrainPolicyRun, **changes: Any) -> TrainPolicyRun:
    loss = LossConfig(policy_gradient=0.0, value=0.0)
    return replace(config, mode="off_policy", loss=loss, **changes)


def accounts(state: dict[str, Any]) -> int:
    """Rollouts that the counters know the fate of."""
    known = sum(state["discarded"].values()) + state["learnt"]
    return known + state["in_flight"] + state["waiting"]


def driving_processes() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if drives(process)]


def drives(process: psutil.Process) -> bool:
    try:
        # A zombie drives nothing: Ray does not reap all of its processes at once.
        is_alive = process.status() != psutil.STATUS_ZOMBIE
        return is_alive and "".join(process.cmdline()).startswith("ray::RolloutActor")
    except psutil.Error:  # it has ended meanwhile
        return False


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_on_policy_run_leaves_a_policy_and_its_figures(tiny, tmp_path):
    figures = run(tiny, tmp_path)
    rollouts = figures["rollouts"]
    assert rollouts["started"] == rollouts["learnt"] + sum(rollouts["discarded"].values())
    assert figures["trajectory_mae"] > 0
    assert 0 < figures["actor/utilisation"] < 1
    json.dumps(figures)
    place = checkpoints(tmp_path / "checkpoints")[-1]
    assert place.name == "step_000012"
    assert load_policy(place).config == tiny.policy
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= SHOWN
    assert [event.step for event in events.Images("rollout/video")] == [6, 12]
    assert (tmp_path / "videos" / "step_000012.mp4").stat().st_size > 0
    again = run(tiny, tmp_path)  # nothing is left to do, and no Ray is started for it
    assert (again["resumed_at"], again["trajectory_mae"]) == (12, figures["trajectory_mae"])


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_an_actor_killed_in_mid_run_is_counted_and_replaced(tiny, tmp_path):
    # More room than is ever filled: the actor is always driving when it is hit.
    config = replace(tiny, num_steps=12, queue=replace(tiny.queue, capacity=1000))
    learner = Learner(Policy(config.policy), config.learner_config)
    with actor_feed(config, None, tmp_path) as feed:

        def kill_once(step, metrics):
            if step == 3:
                for process in driving_processes():
                    os.kill(process.pid, signal.SIGKILL)
                wait_until(lambda: feed.pool.num_restarts == 1)
            if step == 6:
                wait_until(lambda: feed.pool.num_actors == 1)

        learn(learner, feed, config.loop, tmp_path, run="", on_step=kill_once)
        counts = feed.close()
    assert learner.step == 12
    assert counts.discarded["actor_lost"] == 1
    counts.check()


def wait_until(happened, seconds=150.0):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


JOB = """
import sys
from pathlib import Path
from cluster.config import load
from cluster.train_policy import TrainPolicyRun, run
run(load(TrainPolicyRun, Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_job_killed_in_mid_run_goes_on_from_its_checkpoint(tiny, tmp_path):
    config = replace(tiny, num_steps=100_000)
    (tmp_path / "run.yaml").write_text(dump(config))
    folder = tmp_path / "checkpoints"
    process = subprocess.Popen([sys.executable, "-c", JOB, tmp_path / "run.yaml", tmp_path])
    try:
        wait_until(lambda: len(checkpoints(folder)) >= 2 or process.poll() is not None)
        assert process.poll() is None
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        psutil.wait_procs(family, timeout=20)
    left = latest_checkpoint(folder)
    assert left is not None
    assert accounts(left.state["feed"]["counts"]) == left.state["feed"]["counts"]["started"]
    figures = run(replace(config, num_steps=left.step + 6), tmp_path)
    assert figures["resumed_at"] == left.step
    assert figures["rollouts"]["started"] > left.state["feed"]["counts"]["started"]
    assert figures["rollouts"]["discarded"]["restart"] > 0
    finished = latest_checkpoint(folder)
    assert finished is not None
    assert finished.step == left.step + 6
    assert not driving_processes()


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [replace, off_policy])
def test_a_policy_that_remembers_longer_than_a_drive_is_old(tiny, tmp_path, prepare):
    config = prepare(tiny, num_steps=4, policy=replace(tiny.policy, context=14))
    figures = run(config, tmp_path)
    assert figures["steps"] == 4
    assert figures["trajectory_mae"] > 0
    assert load_policy(tmp_path / "checkpoints/step_000004").config.context == 14


class Interrupted(Exception):
    pass


@pytest.mark.slow
def test_interrupted_and_resumed_equals_uninterrupted(tiny, tmp_path, monkeypatch):
    config = off_policy(tiny)
    run(config, tmp_path / "straight")

    def interrupt(meter):
        def show(step, metrics):
            if step == 7:
                raise Interrupted

        return show

    with monkeypatch.context() as patch:
        patch.setattr("cluster.train_policy.reporter", interrupt)
        with pytest.raises(Interrupted):
            run(config, tmp_path / "stopped")
    assert run(config, tmp_path / "stopped")["resumed_at"] == 4
    straight = latest_checkpoint(tmp_path / "straight" / "checkpoints")
    stopped = latest_checkpoint(tmp_path / "stopped" / "checkpoints")
    assert straight is not None
    assert stopped is not None
    for name, tensors in straight.tensors.items():
        for key, value in tensors.items():
            assert torch.equal(value, stopped.tensors[name][key]), (name, key)


@pytest.mark.slow
def test_resume_false_begins_again(tiny, tmp_path):
    config = off_policy(tiny, num_steps=4)
    run(config, tmp_path)
    assert run(config, tmp_path)["resumed_at"] == 4
    assert run(replace(config, resume=False), tmp_path)["resumed_at"] == 0


@pytest.mark.slow
def test_another_network_is_not_resumed(tiny, tmp_path):
    config = off_policy(tiny, num_steps=4)
    run(config, tmp_path)
    other = replace(config, policy=replace(config.policy, model_dim=32))
    learner = Learner(Policy(other.policy), other.learner_config)
    with pytest.raises(ValueError, match="of another network"):
        resumed(other, learner, tmp_path / "checkpoints")


@pytest.mark.slow
def test_a_run_that_learns_from_something_else_is_not_resumed(tiny, tmp_path):
    config = off_policy(tiny, num_steps=2)
    run(config, tmp_path)
    others = {
        "seed": replace(config, seed=config.seed + 1),
        "env, world": replace(
            config,
            env=replace(config.env, lateral_rate=0.7),
            world=replace(config.world, max_age=3),
        ),
        "mode": replace(config, mode="on_policy"),
        "mode, learner, loss": replace(tiny, learner=RllibLearning()),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=rf"other settings \({name}\): choose another"):
            run(other, tmp_path)
    assert run(replace(config, num_threads=2, num_steps=3), tmp_path)["resumed_at"] == 2


@pytest.fixture(scope="module")
def in_world_model(tiny, tmp_path_factory):
    """The run, in a small world model with random weights and with its plans for a teacher."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = WorldModelConfig(size="femto", width=WIDTH, height=HEIGHT, latent_channels=4)
    coder = AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)
    save_world_model(WorldModel(model), Tokenizer(coder), folder)
    return replace(
        tiny,
        num_steps=4,
        simulator="world_model",
        env=replace(tiny.env, teacher="plan"),
        sampler=replace(tiny.sampler, rows_after=5),
        service=ServiceConfig(
            model=folder,
            num_cpus=0.5,
            sampler=EulerConfig(num_steps=1),
            engine=EngineConfig(capacity=8),
        ),
        actors=replace(tiny.actors, seats=2, num_cpus=0.5),
        loop=replace(tiny.loop, video_every=4),
    )


@pytest.mark.slow
def test_a_policy_is_trained_in_a_world_model(in_world_model, tmp_path):
    figures = run(in_world_model, tmp_path)
    rollouts = figures["rollouts"]
    assert rollouts["started"] == rollouts["learnt"] + sum(rollouts["discarded"].values())
    assert figures["steps"] == 4
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shares = {tag for tag in events.Tags()["scalars"] if tag.startswith("actor/share_")}
    assert "actor/share_env/service" in shares
    assert not driving_processes()


def test_without_held_out_drives_there_is_no_error(
    tiny, synthetic, synthetic_segment, tmp_path, caplog
):
    write_segments(tmp_path / "few.parquet", [synthetic_segment])
    few = replace(tiny, data=str(tmp_path / "few.parquet"))
    assert held_out_error(few, Policy(few.policy).state_dict()) is None
    assert "no segment of split 'held_out'" in caplog.text
    short = synthetic.segment_from_path(synthetic.arc_path(num_rows=8), split="held_out")
    write_segments(tmp_path / "few.parquet", [short])
    assert held_out_error(few, Policy(few.policy).state_dict()) is None
    assert "no held-out segment is long enough" in caplog.text


def test_damaged_held_out_drives_are_left_out_of_the_error(
    tiny, synthetic, synthetic_segment, tmp_path
):
    whole, damaged = tmp_path / "whole.parquet", tmp_path / "damaged.parquet"
    held_out = replace(synthetic_segment, split="held_out")
    faster = replace(held_out, name="faster", velocity=2 * held_out.velocity)
    write_segments(whole, [held_out])
    write_segments(damaged, [held_out, faster])
    weights = Policy(tiny.policy).state_dict()
    both = held_out_error(replace(tiny, data=str(damaged)), weights)
    synthetic.damage(damaged, group=1, column="image_wide")
    alone = held_out_error(replace(tiny, data=str(whole)), weights)
    assert held_out_error(replace(tiny, data=str(damaged)), weights) == alone != both


def test_runs_that_cannot_work_are_refused(tiny):
    with pytest.raises(ValueError, match="frames after a scene's end"):
        replace(tiny, simulator="world_model")
    with pytest.raises(ValueError, match="one size"):
        replace(tiny, policy=replace(tiny.policy, width=64, height=32))
    with pytest.raises(ValueError, match="no reward"):
        replace(tiny, mode="off_policy", loss=LossConfig())
    with pytest.raises(ValueError, match="num_scenes"):
        replace(tiny, num_scenes=0)
    with pytest.raises(ValueError, match=r"300 gradient steps late: .* which is 300"):
        replace(tiny, loop=LoopConfig(publish_lag=30), queue=QueueConfig(max_lag=300))
    with pytest.raises(ValueError, match="teacher_share must be 0 to 1, got 2"):
        replace(tiny, teacher_share=2)
    with pytest.raises(ValueError, match=r"teacher_share needs .* loss.policy_gradient=0"):
        replace(tiny, teacher_share=0.5, loss=LossConfig(policy_gradient=0.1))


def test_the_baseline_differs_in_nothing_but_what_it_learns_from():
    ours, theirs = (
        load(TrainPolicyRun, RUNS / f"{name}.yaml") for name in ("reprojective", "off_policy")
    )
    for name in ("data", "num_steps", "precision", "policy", "optimizer", "habits"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.loss == replace(theirs.loss, policy_gradient=0.1, value=0.1)
    for name in ("num_sequences", "sequence_length"):
        assert getattr(ours.queue, name) == getattr(theirs.queue, name), name
    assert ours.env.photometry == theirs.env.photometry
    for name in ("mirrored_share", "lane_change_share"):
        assert getattr(ours.sampler, name) == getattr(theirs.sampler, name), name


def test_who_chooses_the_speed_differs_in_nothing_but_that():
    ours, theirs = (
        load(TrainPolicyRun, RUNS / f"{name}.yaml") for name in ("longitudinal", "reprojective")
    )
    assert ours.learner_config.is_longitudinal
    like_theirs = replace(
        ours,
        data=theirs.data,
        env=replace(ours.env, longitudinal="recorded"),
        sampler=replace(ours.sampler, lane_change_share=theirs.sampler.lane_change_share),
    )
    assert like_theirs == theirs
    recorded = load(RecordRun, RUNS / "record_traffic.yaml")
    assert ours.data_path in recorded.path.resolve().parents


def test_data_is_found_from_anywhere(tiny):
    assert replace(tiny, data="drives").data_path == Path.cwd() / "drives"
    sample = replace(tiny, data="sample")
    assert sample.data_path.name == "sample.parquet"
    assert replace(tiny, data="drives").for_actors.data == str(Path.cwd() / "drives")
    assert sample.for_actors == sample  # each machine has its own
