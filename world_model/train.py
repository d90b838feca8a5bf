"""Training a world model on any number of processes, as a Ray Train job.

Each worker runs `work`: restore, step, and now and then figures, checkpoints, pictures. Worker 0
alone writes. A checkpoint holds whole tensors (`optimizer`), so that a run that is stopped goes on,
from the step it had written, on any number of workers. News of each interval goes to the driver
through a queue, as Ray Train's own reports come too seldom for a progress bar.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train.torch
import torch
from PIL import Image
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from torch.utils.tensorboard import SummaryWriter

from drive_envs.allocator import keep_freed_memory
from drive_envs.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint
from drive_envs.drawing import moving_image, write_video
from world_model.dit import WorldModel, WorldModelConfig
from world_model.latents import LatentFile
from world_model.model_file import load_world_model
from world_model.previews import decoded, draw_rollouts, grid
from world_model.rollouts import roll_out, spread_starts
from world_model.sampler import Sampler, SamplerConfig
from world_model.tokenizer import load_tokenizer
from world_model.trainer import Trainer, TrainerConfig

log = logging.getLogger(__name__)

NUM_SCENES = 3  # in a video
NUM_FRAMES = 25  # of it
HELD_OUT_BATCHES = 4

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """How many processes train, and on what.

    num_workers: one a GPU, or one for all cores. num_threads: of a worker on the CPU, 0 for all.
    max_failures: times that lost workers are started again.
    """

    num_workers: int = 1
    use_gpu: bool = False
    num_threads: int = 0
    max_failures: int = 2

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"workers.num_workers must be 1 or more, got {self.num_workers}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs. Paths are absolute.

    start: folder of a world model, whose weights a run begins with that has no checkpoint; None for
    random ones. run: the run as YAML, for checkpoints.
    """

    model: WorldModelConfig
    trainer: TrainerConfig
    sampler: SamplerConfig
    latents: Path
    tokenizer: Path
    start: Path | None
    output: Path
    run: str
    log_every: int
    checkpoint_every: int
    preview_every: int
    num_threads: int
    cache_mb: int


def train(job: Job, workers: WorkersConfig, on_news: Callable[[int, Figures], None]) -> None:
    """Train to the end in Ray, which is up; on_news(step, figures) is called as they come.

    Raises ray.train's TrainingFailedError when workers fail more often than they may.
    """
    job = without_impossible_previews(job)
    news = Queue(actor_options={"num_cpus": 0})
    resources = {"GPU": 1.0} if workers.use_gpu else {"CPU": 1.0}
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job, "news": news},
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(job.output),
            failure_config=FailureConfig(max_failures=workers.max_failures),
        ),
    )
    with listening(news, on_news):
        trainer.fit()
    news.shutdown()


def without_impossible_previews(job: Job) -> Job:
    """Return the job; where no held-out drive is long enough for previews, say so and do without.

    Training itself takes shorter ones.
    """
    file = LatentFile(job.latents)
    lengths = zip(file.splits, file.num_frames, strict=True)
    longest = max((length for split, length in lengths if split == "held_out"), default=0)
    least = job.model.num_history + 1 + NUM_FRAMES + job.model.num_anchors
    if not job.preview_every or longest >= least:
        return job
    log.warning(
        "no previews: the longest held-out drive in %s has %d frames, of the %d that one takes: "
        "record longer drives, or say preview_every=0",
        *(job.latents, longest, least),
    )
    return replace(job, preview_every=0)


@contextmanager
def listening(news: Queue, on_news: Callable[[int, Figures], None]) -> Iterator[None]:
    """Hand on what comes through the queue, from a thread of its own, while the block runs."""
    is_over = threading.Event()

    def listen() -> None:
        while not is_over.is_set():
            try:
                on_news(*news.get(timeout=0.5))
            except Empty:
                continue
            except RayActorError:  # the cluster went away: the block will say why
                return

    thread = threading.Thread(target=listen, name="news", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def work(given: Mapping[str, Any]) -> None:
    """Train in one of the processes of a Ray Train job."""
    job: Job = given["job"]
    context = ray.train.get_context()
    rank, num_processes = context.get_world_rank(), context.get_world_size()
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    elif num_processes == 1:
        # Ray tells its workers to use the cores that they asked for; alone, all are ours.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    keep_freed_memory()
    torch.manual_seed(job.trainer.seed)
    file = LatentFile(job.latents, cache_mb=job.cache_mb)
    model = WorldModel(job.model)
    checkpoint = latest_checkpoint(job.output / "checkpoints")
    if checkpoint is None and job.start is not None:
        model.load_state_dict(load_world_model(job.start)[0].state_dict())
    model = model.to(ray.train.torch.get_device())
    tokenizer = load_tokenizer(job.tokenizer).to(ray.train.torch.get_device())
    trainer = Trainer(model, job.trainer, file, tokenizer, rank=rank, num_processes=num_processes)
    if checkpoint is not None:
        trainer.optimizer.restore(checkpoint.step, checkpoint.tensors)
    run_to_end(job, trainer, file, given["news"] if rank == 0 else None)


def run_to_end(job: Job, trainer: Trainer, file: LatentFile, news: Queue | None) -> None:
    """Take the steps that are left. `news` is where figures go; a worker without it is silent."""
    writer = None
    if news is not None:
        folder = str(job.output / "tensorboard")
        writer = SummaryWriter(folder, purge_step=trainer.optimizer.step)
    interval: list[Figures] = []
    while trainer.optimizer.step < job.trainer.num_steps:
        interval.append(trainer.step())
        step = trainer.optimizer.step
        is_last = step == job.trainer.num_steps
        if step % job.log_every == 0 or is_last:
            figures = means(interval)
            interval = []
            if news is not None and writer is not None:
                write_figures(writer, figures, step)
                news.put((step, figures))
        if step % job.checkpoint_every == 0 or is_last:
            # Gathering the weights takes all workers, writing them one.
            state = trainer.optimizer.state()
            held_out = trainer.held_out_figures(HELD_OUT_BATCHES)
            if news is not None and writer is not None:
                save(job, step, state, file.info.tokenizer)
                write_figures(writer, held_out, step)
            ray.train.report(held_out | {"step": step})
        if job.preview_every and (step % job.preview_every == 0 or is_last):
            averaged = trainer.optimizer.averaged()
            if writer is not None:
                preview(job, averaged, file, writer, step)
    if writer is not None:
        writer.close()


def means(interval: Sequence[Figures]) -> Figures:
    """Return the mean of each figure over the steps that have it."""
    names = {name for figures in interval for name in figures}
    values = {name: [step[name] for step in interval if name in step] for name in sorted(names)}
    return {name: sum(found) / len(found) for name, found in values.items()}


def write_figures(writer: SummaryWriter, figures: Figures, step: int) -> None:
    """Hand figures to TensorBoard."""
    for name, value in figures.items():
        writer.add_scalar(name, value, step)


def save(
    job: Job, step: int, state: Mapping[str, Mapping[str, torch.Tensor]], tokenizer: str
) -> None:
    """Write a checkpoint of the run as it stands; tokenizer: digest of that of its latents."""
    described = {"world_model": asdict(job.model), "tokenizer": tokenizer}
    checkpoint = Checkpoint(step=step, tensors=state, state=described, run=job.run)
    write_checkpoint(job.output / "checkpoints", checkpoint, keep=2)


def preview(
    job: Job,
    averaged: Mapping[str, torch.Tensor],
    file: LatentFile,
    writer: SummaryWriter,
    step: int,
) -> None:
    """Film what the averaged weights dream beside held-out recordings: mp4 and TensorBoard."""
    model = WorldModel(job.model)
    model.load_state_dict(averaged)
    tokenizer = load_tokenizer(job.tokenizer)
    device = ray.train.torch.get_device()
    sampler = Sampler(model.to(device), tokenizer.to(device), job.sampler)
    drives = [file[group] for group, split in enumerate(file.splits) if split == "held_out"]
    context = job.model.num_history + 1
    starts = spread_starts(drives, NUM_SCENES, context, NUM_FRAMES + job.model.num_anchors)
    rollouts = roll_out(sampler, starts, NUM_FRAMES, seed=0)
    generated, recorded = (
        decoded(tokenizer, latents) for latents in (rollouts.latents, rollouts.truth)
    )
    pictures = draw_rollouts(generated, recorded, rollouts)
    folder = job.output / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / f"step_{step:06d}.mp4", pictures)
    shown = (0, NUM_FRAMES // 4, NUM_FRAMES // 2, NUM_FRAMES - 1)
    sheet = np.concatenate([grid(recorded, shown), grid(generated, shown)])
    Image.fromarray(sheet).save(folder / f"step_{step:06d}.png")
    writer.add_image("rollout/frames", sheet, step, dataformats="HWC")
    writer._get_file_writer().add_summary(moving_image("rollout/video", pictures), step)
