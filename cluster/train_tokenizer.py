"""`drive train-tokenizer`: from recordings to the autoencoder that a world model dreams in.

Frames are drawn from the recordings and kept in memory; those held out say how well it does. A run
that is stopped goes on from its last whole checkpoint when the same command is given again.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from cluster.config import dump
from cluster.kept import refuse_other
from cluster.progress import progress, track
from cluster.tensorboard_pages import TOKENIZER, Pages
from drive_envs.allocator import keep_freed_memory
from drive_envs.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint
from drive_envs.image_metrics import load_lpips, lpips_distance, psnr
from drive_envs.precision import Precision, autocast
from drive_envs.segment import SegmentError
from drive_envs.segments import open_dataset, sample_path
from world_model.autoencoder import Autoencoder, AutoencoderConfig
from world_model.optimizer import Optimizer, OptimizerConfig
from world_model.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, to_float
from world_model.tokenizer_training import (
    FrameSet,
    TokenizerLossConfig,
    frames_of_segment,
    tokenizer_losses,
)

log = logging.getLogger(__name__)

NUM_SHOWN = 4  # frames in a picture of what comes out
NUM_WEIGHED = 32  # frames by which the channels' units are chosen
NUM_COMPARED = 1000  # frames whose patches' principal components are the beginning

SETTINGS = (
    "seed",
    "data",
    "num_steps",
    "batch_size",
    "precision",
    "autoencoder.latent_channels",
    "autoencoder.num_blocks",
    "loss.lpips",
    "loss.kl",
    "optimizer.learning_rate",
)  # that TensorBoard compares runs by

LEARNT = (
    "seed",
    "data",
    "width",
    "height",
    "frames_per_segment",
    "lpips_weights",
    "autoencoder",
    "loss",
)  # what a tokenizer is, and learns from; how long, how fast and where may change as a run goes on


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerRun:
    """One training run.

    data: a Parquet file, a folder of them, or `sample`. frames_per_segment: drawn from each, of
    both splits. lpips_weights: folder of LPIPS weights (AlexNet, as safetensors), null to do
    without them. num_steps: gradient steps of batch_size frames.
    """

    seed: int = 0
    data: str = "sample"
    width: int = 128
    height: int = 64
    frames_per_segment: int = 20
    num_steps: int = 2000
    batch_size: int = 16
    lpips_weights: Path | None = None
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every: int = 20
    checkpoint_every: int = 200
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    loss: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("frames_per_segment", "num_steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")

    @property
    def data_path(self) -> Path:
        """Where the recordings are."""
        return sample_path() if self.data == "sample" else Path(self.data)


def run(config: TrainTokenizerRun, output: Path) -> dict[str, Any]:
    """Train, leaving `tokenizer/` in `output`; return its errors on held-out frames."""
    keep_freed_memory()
    check_checkpoint(config, output)
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    perceptual = None
    if config.lpips_weights is not None:
        perceptual = load_lpips(config.lpips_weights).to(device)
    elif config.loss.lpips:
        log.warning("no lpips_weights: trained on L1 alone, lines will be softer")
    train, held_out = load_frames(config, "train"), load_frames(config, "held_out")
    tokenizer = Tokenizer(config.autoencoder).to(device)
    assert isinstance(tokenizer.coder, Autoencoder)
    tokenizer.coder.start_linear(to_float(spread(train, NUM_COMPARED)).to(device))
    pages = Pages(
        output / "tensorboard",
        config,
        TOKENIZER,
        settings=SETTINGS,
        figures=("loss/l1", "loss/lpips", "loss/kl"),
        results=("autoencoder_psnr", "autoencoder_lpips"),
    )
    seconds = fit(config, tokenizer, FrameSet(train, config.seed), perceptual, output)
    log.info("measuring the latents of %d frames", len(train))
    tokenizer.standardise(batch.to(device) for batch in train.split(config.batch_size))
    tokenizer.weigh(spread(train, NUM_WEIGHED).to(device))
    save_tokenizer(tokenizer.cpu(), output / "tokenizer")
    # What is judged is what was written, with its weights rounded.
    tokenizer = load_tokenizer(output / "tokenizer").to(device)
    figures = errors(tokenizer, held_out, perceptual, config.batch_size)
    write_sheet(tokenizer, held_out, output / "reconstructions.png")
    pages.end(config.num_steps, figures)
    return {"steps": config.num_steps, "seconds": round(seconds, 1), **figures}


def check_checkpoint(config: TrainTokenizerRun, output: Path) -> None:
    """Raise ValueError when what was begun in `output` is another one, or learns from others."""
    folder = output / "checkpoints"
    if (checkpoint := latest_checkpoint(folder)) is not None:
        refuse_other(folder, checkpoint.run, config, LEARNT)


def spread(frames: Tensor, num: int) -> Tensor:
    """Choose up to `num` frames, evenly."""
    return frames[torch.linspace(0, len(frames) - 1, min(num, len(frames))).long()]


def load_frames(config: TrainTokenizerRun, split: str) -> Tensor:
    """Decode the frames of one split; damaged segments are counted and left out."""
    segments = open_dataset(config.data_path, split=split)
    frames, skipped = [], 0
    for index in track(range(len(segments)), f"decoding {split} frames"):
        try:
            frames.append(
                frames_of_segment(
                    segments[index],
                    config.frames_per_segment,
                    config.width,
                    config.height,
                    config.seed,
                )
            )
        except SegmentError as error:
            log.warning("skipped: %s", error)
            skipped += 1
    if skipped:
        log.warning("%d of %d segments were skipped", skipped, len(segments))
    if not frames:
        raise SegmentError(f"{config.data_path}: no segment of split '{split}' could be read")
    return torch.cat(frames)


def fit(
    config: TrainTokenizerRun,
    tokenizer: Tokenizer,
    frames: FrameSet,
    perceptual: nn.Module | None,
    output: Path,
) -> float:
    """Take the gradient steps that are left; the tokenizer ends with the averaged weights."""
    coder, device = tokenizer.coder, tokenizer.mean.device
    assert isinstance(coder, Autoencoder)
    optimizer = Optimizer(coder, config.optimizer, config.num_steps)
    folder = output / "checkpoints"
    if (checkpoint := latest_checkpoint(folder)) is not None:
        optimizer.restore(checkpoint.step, checkpoint.tensors)
        log.info("going on from step %d in %s", checkpoint.step, folder)
    writer = SummaryWriter(str(output / "tensorboard"), purge_step=optimizer.step)
    began = time.monotonic()
    with progress("gradient steps", config.num_steps, done=optimizer.step) as meter:
        while (step := optimizer.step) < config.num_steps:
            images = frames.minibatch(step, config.batch_size).to(device)
            generator = torch.Generator(device).manual_seed(step)
            with autocast(config.precision, device.type):
                found = tokenizer_losses(coder, images, config.loss, perceptual, generator)
            figures = optimizer.descend(found.total)
            figures |= {f"loss/{name}": value.item() for name, value in found._asdict().items()}
            if optimizer.step % config.log_every == 0:
                for name, value in figures.items():
                    writer.add_scalar(name, value, optimizer.step)
            is_last = optimizer.step == config.num_steps
            if optimizer.step % config.checkpoint_every == 0 or is_last:
                state = Checkpoint(
                    step=optimizer.step, tensors=optimizer.state(), state={}, run=dump(config)
                )
                write_checkpoint(folder, state, keep=1)
            meter.advance(
                note=f"L1 {figures['loss/l1']:.4f}, LPIPS {figures['loss/lpips']:.3f}, "
                f"KL {figures['loss/kl']:.2f}"
            )
    writer.close()
    coder.load_state_dict(optimizer.averaged())
    return time.monotonic() - began


def errors(
    tokenizer: Tokenizer, frames: Tensor, perceptual: nn.Module | None, batch_size: int
) -> dict[str, Any]:
    """Return PSNR in dB and LPIPS of what comes out, means over held-out frames and cameras."""
    found: dict[str, list[Tensor]] = {"psnr": [], "lpips": []}
    device = tokenizer.mean.device
    for truth, guess in there_and_back(tokenizer, frames, batch_size):
        found["psnr"].append(psnr(guess, truth))
        if perceptual is not None:
            distance = lpips_distance(perceptual, guess.to(device), truth.to(device))
            found["lpips"].append(distance.cpu())
    return {
        f"autoencoder_{name}": round(torch.cat(values).mean().item(), 4)
        for name, values in found.items()
        if values
    }


def there_and_back(
    tokenizer: Tokenizer, frames: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield frames and what the tokenizer makes of them, cameras flattened into the batch."""
    device = tokenizer.mean.device
    for truth in frames.split(batch_size):
        guess = tokenizer.decode(tokenizer.encode(truth.to(device)))
        yield truth.flatten(0, 1), guess.cpu().flatten(0, 1)


def write_sheet(tokenizer: Tokenizer, frames: Tensor, path: Path) -> None:
    """Draw some frames above what the tokenizer makes of them."""
    shown = frames[:: max(1, len(frames) // NUM_SHOWN)][:NUM_SHOWN]
    (truth, guess), *_ = there_and_back(tokenizer, shown, NUM_SHOWN)
    rows = [rearrange(row, "image color y x -> y (image x) color") for row in (truth, guess)]
    Image.fromarray(torch.cat(rows).numpy()).save(path)
