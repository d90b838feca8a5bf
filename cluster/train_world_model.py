"""`drive train-world-model`: from recordings and a tokenizer to a world that can be driven in.

First the recordings become latents, once: `latents` is made if it is not there. Then a Ray Train
job trains on them. What is left in `output/world_model` is the whole model, tokenizer included. A
run that is stopped goes on from its last whole checkpoint when the same command is given again.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch

from cluster.config import dump
from cluster.kept import refuse_other
from cluster.progress import progress
from cluster.tensorboard_pages import WORLD_MODEL, Pages
from cluster.train_policy import RayConfig
from cluster.work_queue import Lost, work
from drive_envs.allocator import keep_freed_memory
from drive_envs.checkpoint import Checkpoint, latest_checkpoint
from drive_envs.segment import SegmentError
from drive_envs.segments import open_dataset, sample_path
from drive_learner.local_cluster import local_cluster
from world_model.dit import WorldModel, WorldModelConfig, num_parameters
from world_model.encoding import EncodingConfig, encode_segment
from world_model.latents import LatentDrive, LatentFile, LatentsError, LatentsInfo, write_latents
from world_model.model_file import load_world_model, save_pose_net, save_world_model
from world_model.pose_net import (
    PoseNet,
    PoseNetConfig,
    draw_samples,
    estimate,
    train_pose_net,
)
from world_model.sampler import SamplerConfig
from world_model.tokenizer import Tokenizer, load_tokenizer
from world_model.train import Figures, Job, WorkersConfig, train
from world_model.trainer import TrainerConfig

log = logging.getLogger(__name__)

ENCODING_TIMEOUT = 600.0  # s for one segment


LEARNT = ("data", "num_segments", "encoding", "model", "start")  # none changes in a run's course


@dataclass(frozen=True, kw_only=True)
class TrainWorldModelRun:
    """One training run.

    data: recordings, a Parquet file, a folder of them, or `sample`. num_segments: of them that are
    encoded, null for all. tokenizer: folder that `drive train-tokenizer` left. latents: file that
    the recordings are encoded into, or were. start: folder of a world model to go on from, with
    fresh moments and rates; null begins with random weights. cache_mb: of latents kept in each
    worker's memory.
    """

    data: str = "sample"
    num_segments: int | None = None
    tokenizer: Path = Path("runs/tokenizer/tokenizer")
    latents: Path = Path("runs/latents/sample.parquet")
    start: Path | None = None
    cache_mb: int = 4096
    log_every: int = 20
    checkpoint_every: int = 500
    preview_every: int = 2000
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    pose_net: PoseNetConfig = field(default_factory=PoseNetConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "cache_mb"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")

    @property
    def data_path(self) -> Path:
        """Where the recordings are."""
        return sample_path() if self.data == "sample" else Path(self.data).resolve()

    @property
    def for_encoders(self) -> "TrainWorldModelRun":
        """The run as encoders are told it, who may begin in another folder."""
        data = self.data if self.data == "sample" else str(self.data_path)
        return replace(self, data=data, tokenizer=self.tokenizer.resolve())


def run(config: TrainWorldModelRun, output: Path) -> dict[str, Any]:
    """Encode what is not encoded, train, and leave the model in `output/world_model`."""
    keep_freed_memory()
    tokenizer = load_tokenizer(config.tokenizer)
    check_tokenizer(config, tokenizer)
    check_start(config, tokenizer)
    began = time.monotonic()
    with local_cluster(
        num_cpus=config.ray.num_cpus,
        object_store_mb=config.ray.object_store_mb,
        dashboard=config.ray.dashboard,
    ):
        if not config.latents.exists():
            encode(config, tokenizer)
        check_latents(config, tokenizer)
        millions = num_parameters(config.model) / 1e6
        log.info("%s: %.1f million parameters", config.model.size, millions)
        last = fit(config, tokenizer, output.resolve())
    model = WorldModel(config.model)
    checkpoint = latest_checkpoint(output / "checkpoints")
    assert checkpoint is not None
    model.load_state_dict(checkpoint.tensors["average"])
    save_world_model(model, tokenizer, output / "world_model")
    if config.encoding.num_excursions:
        save_pose_net(fit_pose_net(config, tokenizer), output / "world_model")
    else:
        log.warning("no pose net: it is trained on excursions, and there are none")
    return {
        "steps": config.trainer.num_steps,
        "parameters": num_parameters(config.model),
        "denoiser_parameters": num_parameters(config.model, has_plan_head=False),
        "seconds": round(time.monotonic() - began, 1),
        **{name: round(value, 4) for name, value in last.items() if name in HEADLINES},
    }


def fit_pose_net(config: TrainWorldModelRun, tokenizer: Tokenizer) -> PoseNet:
    """Train what will judge where generated frames were taken from; say how well it knows."""
    file = LatentFile(config.latents, cache_mb=64)
    log.info("decoding %d pairs of frames for the pose net", config.pose_net.num_pairs)
    samples = draw_samples(file, "train", tokenizer, config.pose_net.num_pairs, seed=0)
    network = train_pose_net(samples, config.pose_net, seed=0)
    held_out = draw_samples(file, "held_out", tokenizer, config.pose_net.num_pairs // 8 + 1, seed=1)
    error = (estimate(network, held_out.recorded, held_out.seen) - held_out.offset).abs().mean(0)
    log.info("pose net: errs by %.3f m and %.4f rad on held-out frames", *error.tolist())
    return network


HEADLINES = ("loss/flow", "loss/plan", "speed/windows_per_second")

SETTINGS = (
    "model.size",
    "data",
    "num_segments",
    "trainer.num_steps",
    "trainer.batch_size",
    "trainer.seed",
    "trainer.precision",
    "trainer.objective.layout",
    "trainer.objective.num_targets",
    "trainer.objective.history_noise",
    "trainer.objective.plan_weight",
    "trainer.windows.max_wait",
    "trainer.windows.anchor_dropout",
    "trainer.optimizer.learning_rate",
    "workers.num_workers",
)  # that TensorBoard compares runs by


def fit(config: TrainWorldModelRun, tokenizer: Tokenizer, output: Path) -> Figures:
    """Train in Ray; return the last figures."""
    job = Job(
        model=config.model,
        trainer=config.trainer,
        sampler=config.sampler,
        latents=config.latents.resolve(),
        tokenizer=config.tokenizer.resolve(),
        start=config.start and config.start.resolve(),
        output=output,
        run=dump(config),
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        preview_every=config.preview_every,
        num_threads=config.workers.num_threads,
        cache_mb=config.cache_mb,
    )
    checkpoint = latest_checkpoint(output / "checkpoints")
    check_checkpoint(checkpoint, tokenizer, config, output)
    done = checkpoint.step if checkpoint else 0
    last: Figures = {}
    if done == config.trainer.num_steps:
        return last
    pages = Pages(
        output / "tensorboard",
        config,
        WORLD_MODEL,
        settings=SETTINGS,
        figures=(*HEADLINES, "held_out/flow", "held_out/plan"),
    )
    with progress("gradient steps", config.trainer.num_steps, done=done) as meter:

        def show(step: int, figures: Figures) -> None:
            last.update(figures)
            meter.update(
                step,
                f"flow {figures['loss/flow']:.3f}, plan {figures['loss/plan']:.3f}, "
                f"{figures['speed/windows_per_second']:.1f} windows/s",
            )

        train(job, config.workers, show)
    pages.end(config.trainer.num_steps, last)
    return last


def check_tokenizer(config: TrainWorldModelRun, tokenizer: Tokenizer) -> None:
    """Raise ValueError unless the network takes the tokenizer's latents."""
    if tokenizer.latent_channels != config.model.latent_channels:
        raise ValueError(
            f"the tokenizer in {config.tokenizer} makes {tokenizer.latent_channels} channels: say "
            f"model.latent_channels={tokenizer.latent_channels}"
        )


def check_start(config: TrainWorldModelRun, tokenizer: Tokenizer) -> None:
    """Raise ValueError when the model to go on from is another one than the run's."""
    if config.start is None:
        return
    model, of_model = load_world_model(config.start)
    if model.config != config.model:
        raise ValueError(f"{config.start} is a model of {model.config}, not of {config.model}")
    if of_model.digest != tokenizer.digest:
        raise ValueError(
            f"{config.start} has learnt the latents of the tokenizer beside it: say "
            f"tokenizer={config.start}"
        )


def check_latents(config: TrainWorldModelRun, tokenizer: Tokenizer) -> None:
    """Raise LatentsError unless the file is this tokenizer's, encoded as the run says."""
    info = LatentFile(config.latents).info
    expected = latents_info(config, tokenizer)
    for name in ("tokenizer", "shape", "num_variants", "source"):
        if getattr(info, name) != getattr(expected, name):
            raise LatentsError(
                f"{config.latents} was made with another {name} ({getattr(info, name)}, not "
                f"{getattr(expected, name)}): remove it, or name another file with latents=PATH"
            )
    if expected.has_moved and not info.has_moved:
        raise LatentsError(
            f"{config.latents} was made for model.flat_road=false, and has nothing of what each "
            "frame shows from the next one's place: remove it, or name another file with "
            "latents=PATH"
        )


def check_checkpoint(
    checkpoint: Checkpoint | None, tokenizer: Tokenizer, config: TrainWorldModelRun, output: Path
) -> None:
    """Raise ValueError when what was begun in `output` is another model, or learns from others.

    Objective, length, workers and sampling may change while a run goes on.
    """
    if checkpoint is None:
        return
    if checkpoint.state.get("tokenizer") != tokenizer.digest:
        raise ValueError(
            f"the checkpoint in {output} has learnt the latents of another tokenizer: choose "
            "another output"
        )
    refuse_other(output, checkpoint.run, config, LEARNT)


def latents_info(config: TrainWorldModelRun, tokenizer: Tokenizer) -> LatentsInfo:
    """Say what the file of latents is to be."""
    return LatentsInfo(
        shape=config.model.latent_shape,
        num_variants=1 + config.encoding.num_excursions,
        tokenizer=tokenizer.digest,
        source=f"{config.data} {config.num_segments or 'all'} {config.encoding}",
        has_moved=config.model.flat_road,
    )


def encode(config: TrainWorldModelRun, tokenizer: Tokenizer) -> None:
    """Turn the recordings into latents, side by side; damaged segments are counted and left out."""
    write_latents(config.latents, latents_info(config, tokenizer), encoded(config))


def encoded(config: TrainWorldModelRun) -> Iterator[LatentDrive]:
    """Yield the drives of all segments that can be read, in the order of the segments."""
    num_segments = len(open_dataset(config.data_path))
    if config.num_segments is not None:
        num_segments = min(num_segments, config.num_segments)
    # One a GPU, which it fills; without, one a core.
    has = ray.cluster_resources()
    kind = "num_gpus" if has.get("GPU") else "num_cpus"
    num_processes = int(has.get("GPU") or has["CPU"])
    options: dict[str, Any] = {kind: 1}
    encoder = ray.remote(SegmentEncoder).options(**options)
    come: dict[int, Encoded] = {}
    skipped, turn = 0, 0
    with progress("encoding segments", num_segments) as meter:
        for index, done in work(
            range(num_segments),
            lambda: encoder.remote(config.for_encoders),
            lambda process, index: process.encode.remote(index),
            num_processes=min(num_processes, num_segments),
            timeout=ENCODING_TIMEOUT,
        ):
            come[index] = Encoded([], done.cause) if isinstance(done, Lost) else done
            while turn in come:
                drives, cause = come.pop(turn)
                if cause is not None:
                    log.warning("skipped: %s", cause)
                    skipped += 1
                yield from drives
                turn += 1
                meter.advance(note=f"{skipped} skipped" if skipped else None)
    if skipped:
        log.warning("%d of %d segments were skipped", skipped, num_segments)


class Encoded(NamedTuple):
    """The drives of a segment, or why there are none."""

    drives: list[LatentDrive]
    cause: str | None


class SegmentEncoder:
    """One process that encodes segments."""

    def __init__(self, config: TrainWorldModelRun) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self.config = config
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_tokenizer(config.tokenizer).to(device)
        self.segments = open_dataset(config.data_path)

    def encode(self, index: int) -> Encoded:
        """Encode one segment."""
        config, model = self.config.encoding, self.config.model
        try:
            segment = self.segments[index]
            drives = encode_segment(
                segment,
                self.tokenizer,
                config,
                model.width,
                model.height,
                has_moved=model.flat_road,
            )
            return Encoded(list(drives), None)
        except SegmentError as error:
            return Encoded([], str(error))
