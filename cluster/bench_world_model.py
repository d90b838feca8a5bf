"""How fast a world model dreams, and how near that is to what the machine can compute.

Frames are generated with keys and values of finished frames kept (`Sampler`), and without: every
Euler step looks at all frames anew. The two, and the batch sizes, take turns; medians are reported.
The bound is the rate of large matrix products, measured beside. Weights and latents are random: how
long a frame takes does not depend on them.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from cluster.progress import progress
from drive_envs.precision import Precision, dtype_of
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModel, WorldModelConfig
from world_model.flat_road import motion_between, moved_latents
from world_model.flow import euler
from world_model.sampler import Anchors, Sampler, SamplerConfig
from world_model.tokenizer import Tokenizer
from world_model.trainer import expecting_flops, forward_flops
from world_model.windows import joined, tell, window_mask

SIZE_OF_PRODUCT = 2048


@dataclass(frozen=True, kw_only=True)
class WorldModelBench:
    """Which model, and how it is asked.

    batch_sizes: scenes side by side. num_frames: of a measurement. num_repeats: measurements of
    each way. uncached: measure without kept keys and values too.
    """

    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    tokenizer: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    num_frames: int = 3
    num_repeats: int = 3
    uncached: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"world_model.batch_sizes is {self.batch_sizes}; name at least one")
        for name in ("num_frames", "num_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"world_model.{name} must be 1 or more, got {getattr(self, name)}")


def bench_world_model(config: WorldModelBench, output: Path) -> dict[str, Any]:
    """Measure; return frames/s by batch size and way, and their shares of the FLOP bound.

    `output` gets nothing.
    """
    device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = WorldModel(config.model).to(device)
    tokenizer = Tokenizer(config.tokenizer).to(device)
    sampler = Sampler(model, tokenizer, config.sampler)
    ways = {
        (batch, kind): []
        for batch in config.batch_sizes
        for kind in ("cached", "uncached", "decode")
        if config.uncached or kind != "uncached"
    }
    products: list[float] = []
    with progress("world model", total=config.num_repeats * len(ways)) as meter:
        for _ in range(config.num_repeats):
            products.append(product_rate(config.sampler.precision, device))
            for (batch, kind), rates in ways.items():
                if kind == "decode":
                    rates.append(decoding_rate(tokenizer, config, batch, device))
                else:
                    rates.append(frame_rate(sampler, config, batch, device, kind))
                meter.advance(note=f"{kind}, batch {batch}: {rates[-1]:.1f} frames/s")
    bound = median(products)
    flops = flops_of_frame(config)
    rates = {way: median(found) for way, found in ways.items()}
    return {
        "frames_per_second": {
            str(batch): {kind: round(rates[batch, kind], 2) for b, kind in ways if b == batch}
            for batch in config.batch_sizes
        },
        "cached_over_uncached": {
            str(batch): round(rates[batch, "cached"] / rates[batch, "uncached"], 2)
            for batch in config.batch_sizes
            if config.uncached
        },
        "gflops_of_frame": round(flops / 1e9, 3),
        "bound_gflops_per_second": round(bound / 1e9, 1),
        "share_of_bound": {
            str(batch): round(rates[batch, "cached"] * flops / bound, 4)
            for batch in config.batch_sizes
        },
    }


def flops_of_frame(config: WorldModelBench) -> int:
    """Count the operations of one generated frame, keys and values kept."""
    model, sampler = config.model, config.sampler
    looks = sampler.num_steps * (1 if sampler.guidance == 1 else 2) + 1
    seen = model.num_anchors + model.num_history + 1
    return looks * forward_flops(model, 1, seen) + expecting_flops(model)


def frame_rate(
    sampler: Sampler, config: WorldModelBench, batch: int, device: str, kind: str
) -> float:
    """Return generated frames a second, over all scenes, after one that does not count."""
    model = config.model
    shape = model.latent_shape
    generator = torch.Generator().manual_seed(0)

    def latents(num: int) -> Tensor:
        return torch.randn((batch, num, *shape), generator=generator).to(device)

    num_context = model.num_history + 1
    num = num_context + 1 + config.num_frames + model.num_anchors
    poses = torch.zeros(batch, num, 3, dtype=torch.float64, device=device)
    poses[..., 0] = 2.0 * torch.arange(num, device=device)
    anchors = Anchors(
        latents(model.num_anchors),
        poses[:, -model.num_anchors :],
        torch.full((batch,), config.num_frames + 2, device=device),
    )
    context, noise = latents(num_context), latents(1)[:, 0]
    if kind == "uncached":
        begin = time.perf_counter()
        uncached_frame(sampler, context, poses[:, : num_context + 1], anchors, noise)
        synchronise(device)
        return batch / (time.perf_counter() - begin)
    memory, _ = sampler.begin(context, poses[:, :num_context], anchors)
    sampler.step(memory, poses[:, num_context], noise)
    synchronise(device)
    begin = time.perf_counter()
    for step in range(config.num_frames):
        sampler.step(memory, poses[:, num_context + 1 + step], noise)
    synchronise(device)
    return batch * config.num_frames / (time.perf_counter() - begin)


@torch.inference_mode()
def uncached_frame(
    sampler: Sampler, context: Tensor, poses: Tensor, anchors: Anchors, noise: Tensor
) -> Tensor:
    """Generate one frame, looking at the whole sequence in every Euler step."""
    model = sampler.model
    before = torch.cat([anchors.latents, context], dim=1)
    num_anchors, num_frames = anchors.latents.shape[1], context.shape[1] + 1
    places = torch.arange(num_frames, device=noise.device).expand(len(noise), -1)
    begin = num_frames - 2 + anchors.wait
    anchor_places = begin[:, None] + torch.arange(num_anchors, device=noise.device)
    pose = anchors.poses[:, 0]
    motion = motion_between(poses[:, -2], poses[:, -1])
    moved = moved_latents(sampler.tokenizer, context[:, -1], motion, sampler.config.precision)
    told = joined(
        tell(anchors.latents, anchors.poses, anchor_places, None, pose, begin),
        tell(torch.cat([context, moved[:, None]], dim=1), poses, places, None, pose, begin),
    )
    mask = window_mask(num_anchors, num_frames, model.config.num_history).to(noise.device)

    def field(x: Tensor, tau: float) -> Tensor:
        levels = told.tau.clone()
        levels[:, -1] = tau
        whole = torch.cat([before, x], dim=1)
        expecting = slice(num_anchors + num_frames - 1, None)
        told_now = told._replace(tau=levels)
        return model(whole, told_now, mask, expecting=expecting).velocity[:, -1:]

    with sampler.autocast(noise.device):
        return euler(field, noise[:, None], sampler.config.num_steps)[:, 0]


def decoding_rate(tokenizer: Tokenizer, config: WorldModelBench, batch: int, device: str) -> float:
    """Return frames a second (both cameras of each) from latent to image."""
    _, rows, columns = config.model.latent_shape
    latents = torch.randn(batch, tokenizer.latent_channels, rows, columns, device=device)
    tokenizer.decode(latents)
    synchronise(device)
    begin = time.perf_counter()
    for _ in range(config.num_frames):
        tokenizer.decode(latents)
    synchronise(device)
    return batch * config.num_frames / (time.perf_counter() - begin)


def product_rate(precision: Precision, device: str, num: int = 6) -> float:
    """Return the operations a second of large matrix products: the bound of what follows."""
    dtype = dtype_of(precision, device)
    a, b = torch.randn(2, SIZE_OF_PRODUCT, SIZE_OF_PRODUCT, device=device).to(dtype)
    torch.mm(a, b)
    synchronise(device)
    begin = time.perf_counter()
    for _ in range(num):
        torch.mm(a, b)
    synchronise(device)
    return num * 2 * SIZE_OF_PRODUCT**3 / (time.perf_counter() - begin)


def synchronise(device: str) -> None:
    """Wait until a GPU has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
