"""How fast the learner is: gradient steps a second, by precision and by threads.

The minibatch is cut from rollouts of random pixels, as large as a training run's: the time of a
gradient step does not depend on what is in the images. Copying it together is measured apart, for
that happens in another thread while the learner computes. The ways take turns, several times over,
and medians are reported. The encoders that a policy can have are compared beside it.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from cluster.bench_encoders import bench_encoders
from cluster.progress import progress
from cluster.train_policy import TrainPolicyRun
from drive_actors.encoder import Convolutional
from drive_actors.fastvit import FastVit
from drive_actors.policy import Policy, PolicyConfig
from drive_envs.precision import Precision, has_bf16
from drive_envs.protocol import NUM_CONTEXT, Rollout
from drive_learner.batch import Batch, Fragment, empty_batch, fill, fragments, source_of
from drive_learner.learner import Learner

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LearnerBench:
    """Which gradient steps, and how often.

    training: the run whose network, minibatch and losses are measured. precisions, threads: ways to
    compute, each with each; bf16 is left out where the processor emulates it. num_steps: gradient
    steps of a measurement. num_repeats: measurements of each way. fastvit: what is compared with
    the convolutional encoder, in the run's precision and with the most of the threads; null for
    neither.
    """

    training: TrainPolicyRun = field(default_factory=TrainPolicyRun)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    threads: tuple[int, ...] = (1, 2)
    num_steps: int = 3
    num_repeats: int = 5
    fastvit: FastVit | None = field(default_factory=FastVit)

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.precisions or not self.threads or min(self.threads) < 1:
            raise ValueError("precisions and threads must each name at least one way to compute")
        _ = self.policies  # an encoder that does not fit the images is refused before the minutes

    @property
    def policies(self) -> dict[str, PolicyConfig]:
        """The run's network with each of the encoders that are compared, by name."""
        if self.fastvit is None:
            return {}
        encoders = {"convolutional": Convolutional(), self.fastvit.model: self.fastvit}
        return {
            name: replace(self.training.policy, encoder=encoder)
            for name, encoder in encoders.items()
        }


def bench_learner(config: LearnerBench, output: Path) -> dict[str, Any]:
    """Measure; return steps/s by way, frames/s and ms of copying with the fastest, and encoders.

    `output` gets nothing. Leaves torch with the number of threads that it had.
    """
    training = config.training
    ways = {
        f"{precision}, {threads} thread{'s' * (threads > 1)}": (
            replace(training, precision=precision),
            threads,
        )
        for precision in sensible(config.precisions, training.device)
        for threads in config.threads
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    picked = minibatch(training)
    with progress("learner", total=config.num_repeats * len(ways)) as meter:
        for _ in range(config.num_repeats):
            for way, (run, threads) in ways.items():
                with using_threads(threads):
                    rates[way].append(measure_learner(run, picked, config.num_steps))
                meter.advance(note=f"{way}: {rates[way][-1]:.2f} steps/s")
    best = max(median(each) for each in rates.values())
    length, num_sequences = training.queue.sequence_length, training.queue.num_sequences
    num_past = training.policy.num_past
    num_encoded = sum(each.num_before(num_past) + length + 1 for each in picked)
    with using_threads(max(config.threads)):
        encoders = bench_encoders(
            config.policies,
            num_images=num_encoded,
            num_repeats=config.num_repeats,
            precision=training.precision,
            device=device_kind(training.device),
        )
    return {
        "steps_per_second": {way: round(median(each), 2) for way, each in rates.items()},
        "learnt_frames_per_second": round(best * length * num_sequences),
        "encoded_frames_per_second": round(best * num_encoded),
        "milliseconds_to_collate": round(1000 * measure_collation(training, picked), 1),
        "encoders": encoders,
    }


def sensible(precisions: Sequence[Precision], device: str) -> list[Precision]:
    """Leave bf16 out where a step of it takes a minute, unless it is all that is asked for."""
    kind = device_kind(device)
    picked: list[Precision] = [each for each in precisions if each != "bf16" or has_bf16(kind)]
    if picked and len(picked) < len(precisions):
        log.warning("bf16 is left out: this machine's processor does not multiply it")
    return picked or list(precisions)


def device_kind(device: str) -> str:
    """Return where a run that says `device` learns: on "cuda" or "cpu"."""
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def measure_learner(training: TrainPolicyRun, picked: list[Fragment], num_steps: int) -> float:
    """Return gradient steps a second, after one that does not count."""
    torch.manual_seed(0)
    learner = Learner(Policy(training.policy), training.learner_config)
    batch = empty_minibatch(training, picked)
    fill(batch, picked)
    learner.update(batch)
    begin = time.perf_counter()
    for _ in range(num_steps):
        learner.update(batch)
    return num_steps / (time.perf_counter() - begin)


def measure_collation(training: TrainPolicyRun, picked: list[Fragment], repeats: int = 10) -> float:
    """Return the seconds that copying one minibatch together takes."""
    batch = empty_minibatch(training, picked)
    fill(batch, picked)  # touches the memory
    begin = time.perf_counter()
    for _ in range(repeats):
        fill(batch, picked)
    return (time.perf_counter() - begin) / repeats


def empty_minibatch(training: TrainPolicyRun, picked: list[Fragment]) -> Batch:
    """Allocate the minibatch that a run's learner has for these fragments."""
    return empty_batch(
        picked[0].source,
        training.queue.sequence_length,
        len(picked),
        num_context=training.policy.num_past,
    )


def minibatch(training: TrainPolicyRun) -> list[Fragment]:
    """Pick the fragments of one minibatch from random rollouts of a run's sizes."""
    queue = training.queue
    picked: list[Fragment] = []
    for seed in range(queue.window):
        source = source_of(random_rollout(training, seed), training.policy.num_noised)
        share = -(-queue.num_sequences // queue.window)
        picked += list(fragments(source, queue.sequence_length))[:share]
    generator = np.random.default_rng(0)
    return [picked[i] for i in generator.choice(len(picked), queue.num_sequences)]


def random_rollout(training: TrainPolicyRun, seed: int) -> Rollout:
    """Make a rollout of noise at a steady 10 m/s, none of its scenes over before the end."""
    generator = np.random.default_rng(seed)
    time_batch = training.rollout_steps, training.num_scenes
    frames = NUM_CONTEXT + training.rollout_steps + 1, training.num_scenes

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32)

    images = {
        name: generator.integers(
            0, 256, (*frames, 3, training.policy.height, training.policy.width), np.uint8
        )
        for name in ("narrow", "wide")
    }
    never = np.zeros(time_batch, bool)
    return Rollout(
        observation={
            **images,
            "speed": np.full((*frames, 1), 10, np.float32),
            "desire": np.zeros((*frames, 3), np.float32),
            "last_action": 0.01 * normal(*frames, 2),
        },
        action=0.01 * normal(*time_batch, 2),
        action_normalized=normal(*time_batch, 2),
        log_probs=normal(*time_batch, 2),
        reward=normal(*time_batch),
        terminated=never,
        truncated=never,
        active=~never,
        teacher_plan=normal(*time_batch, 33, 15),
        teacher_plan_valid=np.ones((*time_batch, 33), bool),
        teacher_action=0.01 * normal(*time_batch, 2),
        lateral_error=normal(*time_batch),
        recording=np.arange(training.num_scenes),
        noise_seed=seed,
        policy_version=0,
        actor=0,
        seconds={},
    )


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads for the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
