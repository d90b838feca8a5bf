"""The learning loop: minibatch in, gradient step, and now and then weights, figures, checkpoints.

The same loop learns on-policy, fed by actors, and off-policy, fed by recordings: where a minibatch
comes from is the feed's affair. Figures go to TensorBoard, the counters that a resumed run needs go
into the checkpoint. A run that is killed goes on from its last whole checkpoint with the step
counter, the optimiser, the schedule and the accounts of its rollouts as they were there.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from drive_actors.drawing import draw_rollout
from drive_actors.policy import Policy
from drive_envs.checkpoint import Checkpoint, write_checkpoint
from drive_envs.drawing import moving_image, write_sheet, write_video
from drive_envs.protocol import Rollout
from drive_learner.batch import Batch
from drive_learner.learner import Learner

log = logging.getLogger(__name__)

Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How often things happen, in gradient steps; 0 is never.

    publish_lag: publishes by which the actors' weights are older than the newest, to study what
    that does; a run that is resumed begins with the newest. act_with_average: the actors drive with
    the averaged weights, not the raw ones.
    """

    publish_every: int = 10
    publish_lag: int = 0
    log_every: int = 20
    video_every: int = 500
    checkpoint_every: int = 100
    keep_checkpoints: int = 3
    act_with_average: bool = False

    def __post_init__(self) -> None:
        for name in ("publish_every", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop {name} must be 1 or more, got {getattr(self, name)}")
        for name in ("video_every", "publish_lag"):
            if getattr(self, name) < 0:
                raise ValueError(f"loop {name} must be 0 or more, got {getattr(self, name)}")


@runtime_checkable
class Feed(Protocol):
    """Where minibatches come from: `feed.RolloutFeed` or `imitation.RecordedFeed`."""

    def start(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Begin with these weights."""
        ...

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Hand out newer weights."""
        ...

    def next(self, version: int) -> Batch:
        """Wait for the minibatch of gradient step `version`."""
        ...

    def give_back(self, batch: Batch) -> None:
        """Let its memory be used again."""
        ...

    @property
    def latest(self) -> Rollout | None:
        """The last rollout that was driven, to look at, if there is one."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON holds it."""
        ...

    def metrics(self) -> Metrics:
        """Return what happened since the last call."""
        ...


def learn(
    learner: Learner,
    feed: Feed,
    config: LoopConfig,
    output: Path,
    *,
    run: str,
    on_step: Callable[[int, Metrics], None] = lambda step, metrics: None,
) -> Metrics:
    """Take gradient steps until the learner's `num_steps`; return the last figures.

    output: gets `tensorboard/`, `checkpoints/`, `videos/`. run: the run as YAML, for checkpoints.
    on_step(step, metrics) is called after every step with the figures known by then.
    """
    num_steps = learner.config.num_steps
    writer = SummaryWriter(str(output / "tensorboard"), purge_step=learner.step + 1)
    metrics: Metrics = {}
    interval = Interval()
    recent: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=config.publish_lag + 1)
    try:
        feed.start(learner.step, learner.weights(averaged=config.act_with_average))
        while learner.step < num_steps:
            interval.add(*advance(learner, feed))
            step = learner.step
            is_last = step == num_steps
            if step % config.publish_every == 0:
                recent.append((step, learner.weights(averaged=config.act_with_average)))
                if len(recent) == recent.maxlen:
                    feed.publish(*recent[0])
            if step % config.log_every == 0 or is_last:
                news = interval.metrics() | feed.metrics()
                interval = Interval()
                for name, value in news.items():
                    writer.add_scalar(name, value, step)
                metrics = metrics | news  # no rollout may have come since the last ones
            if config.video_every and (step % config.video_every == 0 or is_last):
                film(learner, feed.latest, output / "videos", writer)
            if step % config.checkpoint_every == 0 or is_last:
                save(learner, feed, config, output, run)
            on_step(step, metrics)
    finally:
        writer.close()
    return metrics


def advance(learner: Learner, feed: Feed) -> tuple[Metrics, float]:
    """Take one gradient step; return its metrics and the seconds it waited for its minibatch."""
    asked = time.monotonic()
    batch = feed.next(learner.step)
    idle = time.monotonic() - asked
    metrics = learner.update(batch)
    feed.give_back(batch)
    return metrics, idle


def save(learner: Learner, feed: Feed, config: LoopConfig, output: Path, run: str) -> Path:
    """Write a checkpoint of the run as it stands: `drive_actors.policy_file` reads the policy."""
    state = {"policy": asdict(learner.policy.config), "feed": feed.state()}
    checkpoint = Checkpoint(step=learner.step, tensors=learner.state(), state=state, run=run)
    return write_checkpoint(output / "checkpoints", checkpoint, keep=config.keep_checkpoints)


class Interval:
    """Means over the gradient steps since the last figures, and where the time went."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._idle = 0.0
        self._num = 0
        self._found: dict[str, list[float]] = {}  # not every step has every metric

    def add(self, metrics: Metrics, idle: float) -> None:
        """Count one step, its metrics and the seconds it had to wait for data."""
        self._num += 1
        self._idle += idle
        for name, value in metrics.items():
            self._found.setdefault(name, []).append(value)

    def metrics(self) -> Metrics:
        """Return the means, the rate of gradient steps and the share of time spent waiting."""
        wall = time.monotonic() - self._started
        return {name: fmean(values) for name, values in self._found.items()} | {
            "learner/steps_per_second": self._num / wall,
            "learner/idle_share": self._idle / wall,
        }


def film(learner: Learner, rollout: Rollout | None, folder: Path, writer: SummaryWriter) -> None:
    """Draw the first scene of a rollout, with the learner's plans: mp4, PNG and TensorBoard."""
    if rollout is None:
        return
    policy = Policy(learner.policy.config)
    policy.load_state_dict(learner.weights())
    # What came through Ray is read-only, and torch, which draws, warns of such memory.
    taught = {
        name: getattr(rollout, name).copy() for name in ("teacher_plan", "teacher_plan_valid")
    }
    pictures = draw_rollout(replace(rollout, **taught), policy.eval())
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / f"step_{learner.step:06d}.mp4", pictures)
    write_sheet(folder / f"step_{learner.step:06d}.png", pictures)
    writer._get_file_writer().add_summary(moving_image("rollout/video", pictures), learner.step)
