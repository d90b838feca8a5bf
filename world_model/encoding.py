"""From recorded segments to drives of latents (`latents`), as recorded and from excursions.

Every segment is also taken as its mirror image: twice as many roads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor

from drive_envs.camera import CAMERAS, cameras
from drive_envs.path import NUM_PAST, RecordedPath, path_from_segment
from drive_envs.precision import Precision, autocast
from drive_envs.reprojective import (
    Reprojective,
    ReprojectiveConfig,
    check_cameras,
    recorded_images,
)
from drive_envs.scenes import Scene, stretches
from drive_envs.segment import Segment
from drive_envs.teachers import LATERAL_RATE, plans_back
from world_model.excursions import Excursion, ExcursionConfig, draw_excursion
from world_model.flat_road import motion_between, moved_latents
from world_model.latents import PLAN, LatentDrive
from world_model.tokenizer import Tokenizer

BATCH = 32  # frames that are tokenized together
LEAST_FRAMES = NUM_PAST + 2  # in a stretch

Images = UInt8[Tensor, "frame 2 3 height width"]


@dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """Which variants of a recording there are.

    num_excursions: V. is_mirrored: take mirror images too. source_offsets: rows from which an
    excursion is seen, see `ReprojectiveConfig`. lateral_rate: 1/s, how fast plans lead back onto
    the path. precision: of the tokenizer; bf16 is off by less
    than a hundredth of a latent's deviation.
    """

    num_excursions: int = 1
    is_mirrored: bool = True
    excursions: ExcursionConfig = field(default_factory=ExcursionConfig)
    source_offsets: tuple[int, ...] = (0, -3)
    lateral_rate: float = LATERAL_RATE
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_excursions < 0:
            raise ValueError(f"encoding.num_excursions is {self.num_excursions}, not 0 or more")


def encode_segment(
    segment: Segment,
    tokenizer: Tokenizer,
    config: EncodingConfig,
    width: int,
    height: int,
    *,
    has_moved: bool = True,
) -> Iterator[LatentDrive]:
    """Yield the drives of one segment: its unbroken stretches, then their mirror images.

    has_moved: see `as_latents`. Raises SegmentError for a damaged frame, one without depth, or
    other cameras.
    """
    check_cameras(segment, cameras(width, height))
    for number, rows in enumerate(stretches(segment)):
        if rows.stop - rows.start < LEAST_FRAMES:
            continue
        for kind in ("", "-mirrored") if config.is_mirrored else ("",):
            seen = segment.mirrored() if kind else segment
            # Drawn from what the drive is, so that it does not depend on the order of encoding.
            rng = np.random.default_rng([config.seed, segment.number, number, bool(kind)])
            name = f"{segment.name}/{number}{kind}"
            yield encode_stretch(
                seen, rows, name, tokenizer, config, width, height, rng, has_moved=has_moved
            )


def encode_stretch(
    segment: Segment,
    rows: slice,
    name: str,
    tokenizer: Tokenizer,
    config: EncodingConfig,
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    has_moved: bool = True,
) -> LatentDrive:
    """Encode an unbroken stretch as it was recorded, and from excursions that are drawn."""
    path = path_from_segment(segment, rows)
    drives = [draw_excursion(path, config.excursions, rng) for _ in range(config.num_excursions)]
    images = [images_as_recorded(segment, rows, width, height)]
    if drives:
        offsets = config.source_offsets
        images += seen_from(segment, rows, path, drives, width, height, offsets)
    return as_latents(
        name,
        segment.split,
        tokenizer,
        path,
        drives,
        images,
        precision=config.precision,
        lateral_rate=config.lateral_rate,
        has_moved=has_moved,
    )


def as_latents(
    name: str,
    split: str,
    tokenizer: Tokenizer,
    path: RecordedPath,
    drives: Sequence[Excursion],
    images: Sequence[Images],
    *,
    precision: Precision = "fp32",
    lateral_rate: float = LATERAL_RATE,
    has_moved: bool = True,
) -> LatentDrive:
    """Tokenize what was seen on a path and beside it, and plan back from everywhere.

    has_moved: whether what each frame's predecessor shows from there is wanted too, else zero.
    """
    zero = torch.zeros(len(path), dtype=torch.float64)
    variants = [Excursion(lateral=zero, heading=zero, poses=path.poses), *drives]
    latents = np.stack([tokenized(tokenizer, pictures, precision) for pictures in images])
    moved = np.zeros_like(latents)
    for index, drive in enumerate(variants if has_moved else []):
        moved[index] = moved_along(tokenizer, latents[index], drive.poses, precision)
    plans = [plans_of(path, drive, lateral_rate) for drive in variants]
    return LatentDrive(
        name=name,
        split=split,
        latents=latents,
        moved=moved,
        poses=np.stack([drive.poses.numpy() for drive in variants]),
        lateral=np.stack([drive.lateral.float().numpy() for drive in variants]),
        plans=np.stack([plan for plan, _ in plans]),
        valid=np.stack([valid for _, valid in plans]),
    )


def plans_of(
    path: RecordedPath, drive: Excursion, lateral_rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the plans back onto the path, and where they are valid: from no row without a past."""
    plans = np.zeros((len(path), *PLAN), np.float32)
    valid = np.zeros((len(path), PLAN[0]), bool)
    rows = torch.arange(NUM_PAST, len(path))
    plan, is_valid = plans_back(
        path, rows, drive.poses[rows], drive.lateral[rows], drive.heading[rows], lateral_rate
    )
    plans[NUM_PAST:], valid[NUM_PAST:] = plan.float().numpy(), is_valid.numpy()
    return plans, valid


def images_as_recorded(segment: Segment, rows: slice, width: int, height: int) -> Images:
    """Return what a driver's cameras saw when a stretch was recorded."""
    views = cameras(width, height)
    images = recorded_images(segment, range(rows.start, rows.stop), views)
    return torch.from_numpy(np.stack([images[name] for name in CAMERAS], axis=1))


def seen_from(
    segment: Segment,
    rows: slice,
    path: RecordedPath,
    drives: Sequence[Excursion],
    width: int,
    height: int,
    source_offsets: tuple[int, ...],
) -> list[Images]:
    """Return what the driver's cameras see on each excursion, frame by frame."""
    world = Reprojective(
        ReprojectiveConfig(width=width, height=height, source_offsets=source_offsets, cache_mb=64)
    )
    scene = Scene(path=path, start=NUM_PAST, num_steps=1, source=segment, first_row=rows.start)
    world.reset([scene] * len(drives))
    active = torch.ones(len(drives), dtype=torch.bool)
    frames = []
    for row in range(len(path)):
        poses = torch.stack([drive.poses[row] for drive in drives])
        seen = world.render(poses, row - NUM_PAST, active)
        frames.append(np.stack([seen[name] for name in CAMERAS], axis=1))
    return list(torch.from_numpy(np.stack(frames, axis=1)))


def tokenized(tokenizer: Tokenizer, images: Images, precision: Precision) -> np.ndarray:
    """Return latents as they are kept, float16 (frame, channel, rows, columns)."""
    device = tokenizer.mean.device
    with autocast(precision, device.type):
        parts = [tokenizer.encode(batch.to(device)).half().cpu() for batch in images.split(BATCH)]
    return torch.cat(parts).numpy()


def moved_along(
    tokenizer: Tokenizer,
    latents: Float16[np.ndarray, "frame channel rows columns"],
    poses: Float[Tensor, "frame 3"],
    precision: Precision,
) -> Float16[np.ndarray, "frame channel rows columns"]:
    """Return what the frame before each shows from there; zero for the first."""
    device = tokenizer.mean.device
    before = torch.from_numpy(latents[:-1]).float().split(BATCH)
    motion = motion_between(poses[:-1], poses[1:]).split(BATCH)
    parts = [
        moved_latents(tokenizer, some.to(device), way.to(device), precision).half().cpu()
        for some, way in zip(before, motion, strict=True)
    ]
    return np.concatenate([np.zeros_like(latents[:1]), *(part.numpy() for part in parts)])
