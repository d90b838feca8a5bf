"""The run of an RLlib algorithm: train, write figures and checkpoints, stop after enough steps.

Two checkpoints are written side by side: ours in `checkpoints/`, with the policy alone, which
`drive_actors.policy_file` reads, and RLlib's own in `rllib/`, from which a run goes on.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ray.rllib.algorithms.algorithm import Algorithm
from torch.utils.tensorboard import SummaryWriter

from drive_actors.policy import PolicyConfig
from drive_envs.checkpoint import Checkpoint, write_checkpoint
from drive_learner.loop import LoopConfig, Metrics
from drive_learner.rllib_backend import Dropped, dropped_by_group, metrics, weights

log = logging.getLogger(__name__)

PATIENCE = 300.0  # seconds without a gradient step after which a run is given up


def learn_with_rllib(
    algo: Algorithm,
    policy: PolicyConfig,
    config: LoopConfig,
    output: Path,
    *,
    num_steps: int,
    run: str,
    on_step: Callable[[int, Metrics], None] = lambda step, metrics: None,
) -> Metrics:
    """Train until `num_steps` gradient steps; return the last figures.

    Goes on from `output`/rllib where that is. One `train()` takes seconds: a run may overshoot.
    Raises RuntimeError when no gradient step came for PATIENCE seconds: where an actor's
    environment fails RLlib starts it again, for ever, and says so in its actors' log only.
    """
    resume(algo, output / "rllib")
    writer = SummaryWriter(str(output / "tensorboard"))
    step, saved, progressed, news = 0, 0, time.monotonic(), Metrics()
    dropped = Dropped()
    try:
        while step < num_steps:
            result = algo.train()
            news = news | metrics(result)
            news["learner/steps_dropped"] = dropped.add(result, dropped_by_group(algo))
            now = int(news.get("learner/gradient_steps", 0))
            if now > step:
                step, progressed = now, time.monotonic()
            elif time.monotonic() - progressed > PATIENCE:
                raise RuntimeError(
                    f"RLlib took no gradient step for {PATIENCE:g} s, at step {step}: its actors "
                    "may be failing, see worker-*.err in the logs of the Ray session"
                )
            for name, value in news.items():
                writer.add_scalar(name, value, step)
            if step - saved >= config.checkpoint_every or step >= num_steps:
                save(algo, policy, config, output, step, run)
                saved = step
            on_step(min(step, num_steps), news)
    finally:
        writer.close()
    return news


def resume(algo: Algorithm, place: Path) -> None:
    """Restore the algorithm from its own checkpoint, if there is one."""
    if place.exists():
        algo.restore_from_path(str(place.resolve()))
        log.info("going on from %s", place)


def save(
    algo: Algorithm, policy: PolicyConfig, config: LoopConfig, output: Path, step: int, run: str
) -> None:
    """Write the policy as ours, and the algorithm as RLlib's, aside first."""
    tensors = {"policy": weights(algo)}
    checkpoint = Checkpoint(step=step, tensors=tensors, state={"policy": asdict(policy)}, run=run)
    write_checkpoint(output / "checkpoints", checkpoint, keep=config.keep_checkpoints)
    place, aside = output / "rllib", output / "rllib.writing"
    shutil.rmtree(aside, ignore_errors=True)
    algo.save_to_path(str(aside.resolve()))
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)
