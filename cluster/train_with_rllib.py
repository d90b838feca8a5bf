"""`drive train-policy` with `learner.kind=rllib`: the same run, learnt by RLlib.

Data, simulator, environment, network and losses are the run's own. RLlib has its own queue and its
own minibatches: `queue`, `habits`, `precision` and `loop.publish_every` say nothing to it.
"""

import functools
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from cluster.config import dump
from cluster.kept import refuse_other
from cluster.progress import progress
from cluster.telemetry import Telemetry
from cluster.train_policy import (
    LEARNT,
    TrainPolicyRun,
    held_out_error,
    make_env,
    reporter,
    world_model_service,
)
from drive_envs.checkpoint import latest_checkpoint
from drive_learner.local_cluster import local_cluster
from drive_learner.rllib_config import RllibLearning
from drive_learner.rllib_env import RllibDrivingEnv

log = logging.getLogger(__name__)

SECONDS = 10.0  # of one iteration

HEADLINES = (
    "loss/plan",
    "loss/action",
    "rollout/reward",
    "rollout/return",
    "learner/gradient_steps",
    "learner/policy_lag",
)


def train_with_rllib(config: TrainPolicyRun, output: Path) -> dict[str, Any]:
    """Train, leaving `checkpoints/`, `rllib/` and `tensorboard/` in `output`; return figures."""
    assert isinstance(config.learner, RllibLearning)
    from drive_learner.rllib_backend import (
        algorithm,
        weights,
    )  # seconds, which only this run spends
    from drive_learner.rllib_loop import learn_with_rllib

    if not config.resume:
        for folder in ("checkpoints", "rllib"):
            shutil.rmtree(output / folder, ignore_errors=True)
    began, checkpoint = time.monotonic(), latest_checkpoint(output / "checkpoints")
    first = checkpoint.step if checkpoint else 0
    if checkpoint is not None:
        refuse_other(output / "checkpoints", checkpoint.run, config, LEARNT)
    figures: dict[str, Any] = {
        "mode": config.mode,
        "learner": f"rllib {config.learner.algorithm}",
        "steps": config.num_steps,
        "resumed_at": first,
    }
    if checkpoint is not None and first >= config.num_steps:
        return figures | {"trajectory_mae": held_out_error(config, checkpoint.tensors["policy"])}
    with (
        local_cluster(
            num_cpus=config.ray.num_cpus,
            object_store_mb=config.ray.object_store_mb,
            dashboard=config.ray.dashboard,
        ),
        world_model_service(config, output) as service,
        progress("gradient steps", config.num_steps, done=first) as meter,
    ):
        algo = algorithm(
            config.learner,
            functools.partial(make_rllib_env, config.for_actors, service),
            config.policy,
            loss=config.loss,
            optimizer=config.optimizer,
            actors=config.actors,
            num_scenes=config.num_scenes,
            seed=config.seed,
            num_gpus=1.0 if config.device != "cpu" and torch.cuda.is_available() else 0.0,
            seconds=SECONDS,
        )
        try:
            metrics = learn_with_rllib(
                algo,
                config.policy,
                config.loop,
                output,
                num_steps=config.num_steps,
                run=dump(config),
                on_step=reporter(meter, Telemetry(output.resolve().name, {})),
            )
            learnt = weights(algo)
        finally:
            algo.stop()
    figures |= {name: round(metrics[name], 4) for name in HEADLINES if name in metrics}
    figures["seconds"] = round(time.monotonic() - began, 1)
    figures["trajectory_mae"] = held_out_error(config, learnt)
    return figures


def make_rllib_env(config: TrainPolicyRun, service: str | None, num_scenes: int) -> RllibDrivingEnv:
    """Build the environment that one actor drives in."""
    return RllibDrivingEnv(
        make_env(config, service, num_scenes),
        num_actions=2 if config.env.longitudinal == "policy" else 1,
        is_taught=bool(config.loss.plan or config.loss.action),
    )
