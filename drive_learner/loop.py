"""The learning loop: minibatch in, gradient step, and now and then weights, figures, checkpoints.

The same loop learns on-policy, fed by actors, and off-policy, fed by recordings: where a minibatch
comes from is the feed's affair. Figures go to TensorBoard, the counters that a resumed run needs go
into the checkpoint. A run that is killed goes on from its last whole checkpoint with the step
counter, the optimiser, the schedule and the accounts of its rollouts as they were there.
"""

import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from drive_learner.batch import Batch
from drive_learner.checkpoint import Checkpoint, write_checkpoint
from drive_learner.learner import Learner

log = logging.getLogger(__name__)

Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How often things happen, in gradient steps; 0 is never.

    act_with_average: the actors drive with the averaged weights in place of the raw ones.
    """

    publish_every: int = 10
    log_every: int = 20
    video_every: int = 500
    checkpoint_every: int = 100
    keep_checkpoints: int = 3
    act_with_average: bool = False

    def __post_init__(self) -> None:
        for name in ("publish_every", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop {name} must be 1 or more, got {getattr(self, name)}")
        if self.video_every < 0:
            raise ValueError(f"loop video_every must be 0 or more, got {self.video_every}")


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

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON holds it."""
        ...

    def metrics(self) -> Metrics:
        """Return what happened since the last call."""
        ...

    def video(self) -> Sequence[np.ndarray] | None:
        """Draw the latest rollout, uint8 (H, W, 3) frames at 5 Hz, if there is one."""
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

    output: gets `tensorboard/` and `checkpoints/`. run: the run as YAML, for the checkpoints.
    on_step(step, metrics) is called after every step with the figures known by then.
    """
    num_steps = learner.config.num_steps
    writer = SummaryWriter(str(output / "tensorboard"), purge_step=learner.step)
    metrics: Metrics = {}
    interval = Interval()
    try:
        feed.start(learner.step, learner.weights(averaged=config.act_with_average))
        while learner.step < num_steps:
            interval.add(*advance(learner, feed))
            step = learner.step
            is_last = step == num_steps
            if step % config.publish_every == 0:
                feed.publish(step, learner.weights(averaged=config.act_with_average))
            if step % config.log_every == 0 or is_last:
                metrics = interval.metrics() | feed.metrics()
                interval = Interval()
                for name, value in metrics.items():
                    writer.add_scalar(name, value, step)
            if config.video_every and (step % config.video_every == 0 or is_last):
                write_video(writer, "rollout/video", feed.video(), step)
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
    """Write a checkpoint of the run as it stands."""
    checkpoint = Checkpoint(
        step=learner.step, tensors=learner.state(), state={"feed": feed.state()}, run=run
    )
    return write_checkpoint(output / "checkpoints", checkpoint, keep=config.keep_checkpoints)


class Interval:
    """Means over the gradient steps since the last figures, and where the time went."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._idle = 0.0
        self._num = 0
        self._sums: Metrics = {}

    def add(self, metrics: Metrics, idle: float) -> None:
        """Count one step, its metrics and the seconds it had to wait for data."""
        self._num += 1
        self._idle += idle
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def metrics(self) -> Metrics:
        """Return the means, the rate of gradient steps and the share of time spent waiting."""
        wall = time.monotonic() - self._started
        return {name: total / self._num for name, total in self._sums.items()} | {
            "learner/steps_per_second": self._num / wall,
            "learner/idle_share": self._idle / wall,
        }


def write_video(
    writer: SummaryWriter, tag: str, frames: Sequence[np.ndarray] | None, step: int
) -> None:
    """Add frames, uint8 (H, W, 3) at 5 Hz, to TensorBoard's image tab as a GIF that plays there.

    `SummaryWriter.add_video` would need a further package for the same.
    """
    if not frames:
        return
    images = [Image.fromarray(frame) for frame in frames]
    encoded = io.BytesIO()
    images[0].save(encoded, "GIF", save_all=True, append_images=images[1:], duration=200, loop=0)
    image = Summary.Image(
        height=images[0].height,
        width=images[0].width,
        colorspace=3,
        encoded_image_string=encoded.getvalue(),
    )
    writer._get_file_writer().add_summary(
        Summary(value=[Summary.Value(tag=tag, image=image)]), step
    )
