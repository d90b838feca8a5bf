"""`drive import`: make segments of real drives, comma2k19, KITTI raw or one's own.

What cannot be used is named with its file and frames, counted by cause, and left out: segments end
before it and begin anew after it. Nothing is repaired.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.progress import Meter, progress
from drive_envs.comma2k19 import Comma2k19
from drive_envs.depth_completion import Completion
from drive_envs.depth_sources import DepthMaker, GroundPlane, Recorded
from drive_envs.kitti_raw import KittiRaw
from drive_envs.monocular_depth import Monocular
from drive_envs.plain_drive import Plain
from drive_envs.real_segments import Cut, Cutter, Piece
from drive_envs.real_sources import folders_of, recording_of
from drive_envs.recording import Fault, RecordingError
from drive_envs.segment import Segment
from drive_envs.segments import write_segments

logger = logging.getLogger(__name__)

LEFT_OUT = "left_out.txt"


@dataclass(frozen=True, kw_only=True)
class ImportRun:
    """Which drives to import, and what to make of them.

    path: the Parquet file to write. source: where the drives are. depth: where their depth comes
    from; null for none, which does for imitation, but not for driving. depth_from_motion: whether
    it is corrected by the frames before and after (not where it was recorded). cut: how they are
    cut.
    held_out_fraction: of the drives, the last ones are "held_out"; of a single drive, its last
    segments: neighbours in time show the same road, so they should not be in both splits.
    """

    path: Path = Path("runs/data/real/drives.parquet")
    source: Comma2k19 | KittiRaw | Plain = field(default_factory=Plain)
    depth: GroundPlane | Completion | Recorded | Monocular | None = field(
        default_factory=GroundPlane
    )
    depth_from_motion: bool = False
    cut: Cut = field(default_factory=Cut)
    held_out_fraction: float = 0.125

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_fraction <= 1:
            raise ValueError(f"held_out_fraction must be 0 to 1, got {self.held_out_fraction}")
        if self.path.suffix != ".parquet":
            raise ValueError(f"path must end in .parquet, got {self.path}")


@dataclass(kw_only=True)
class Tally:
    """What came of an import so far; `left_out` is in frames by cause, `failed` in drives."""

    left_out: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    frames: int = 0
    held_out: int = 0
    unseen: list[dict[str, float]] = field(default_factory=list)

    def leave_out(self, fault: Fault) -> None:
        """Count frames that are not used, and say so."""
        self.left_out[fault.cause] += len(fault)
        self._tell(str(fault))

    def fail(self, error: RecordingError) -> None:
        """Count a drive that is not used at all, and say so."""
        self.failed[error.cause] += 1
        self._tell(str(error))

    def keep(self, piece: Piece, segment: Segment) -> None:
        """Count a segment."""
        self.frames += len(segment)
        self.held_out += segment.split == "held_out"
        self.unseen.append(piece.unseen)

    def _tell(self, what: str) -> None:
        logger.warning("left out: %s", what)
        self.told.append(what)


def run(config: ImportRun, output: Path) -> dict[str, Any]:
    """Import every drive there is, and report what was made and what was left out."""
    # Maps are small: beside other work two threads took 8 s a frame where one takes 0.3.
    torch.set_num_threads(1)
    depth = None
    if config.depth is not None:
        depth = DepthMaker(config.depth, uses_motion=config.depth_from_motion)
    cutter = Cutter(config.cut, depth)
    folders = folders_of(config.source)
    tally = Tally()
    with progress("drives", len(folders)) as meter:
        segments = imported(config, cutter, folders, tally, meter)
        first, count = next(segments, None), 0
        if first is not None:
            about = f"drive import {config.source.kind} {config.source.folder}"
            count = write_segments(config.path, chain_one(first, segments), source=about)
    (output / LEFT_OUT).write_text("".join(f"{line}\n" for line in tally.told))
    if first is None:
        causes = ", ".join(f"{n} x {cause}" for cause, n in (tally.left_out + tally.failed).items())
        raise ValueError(
            f"{config.source.folder}: no segment could be made of {len(folders)} drives "
            f"({causes}): {output / LEFT_OUT} says where"
        )
    megabytes = config.path.stat().st_size / 1e6
    return {
        "path": str(config.path),
        "drives": len(folders),
        "segments": count,
        "held_out": tally.held_out,
        "frames": tally.frames,
        "minutes": round(tally.frames / 5 / 60, 2),
        "megabytes": round(megabytes, 2),
        "unseen": {
            name: round(float(np.mean([u[name] for u in tally.unseen])), 3)
            for name in tally.unseen[0]
        },
        "depth": config.depth.kind if config.depth else None,
        "depth_from_motion": depth is not None and depth.uses_motion,
        "frames_left_out": dict(tally.left_out),
        "drives_left_out": dict(tally.failed),
    }


def chain_one(first: Segment, others: Iterator[Segment]) -> Iterator[Segment]:
    """Yield the first one, then the others."""
    yield first
    yield from others


def imported(
    config: ImportRun, cutter: Cutter, folders: list[Path], tally: Tally, meter: Meter
) -> Iterator[Segment]:
    """Yield the segments of all drives, each in its split."""
    num_held_out = round(config.held_out_fraction * len(folders))
    if config.held_out_fraction and len(folders) > 1:
        num_held_out = max(1, num_held_out)
    for number, folder in enumerate(folders):
        pieces = drive_pieces(config, cutter, folder, tally)
        if len(folders) == 1:
            # Its last segments can only be told when all are there.
            pieces = list(pieces)
            held = round(config.held_out_fraction * len(pieces))
            splits = [
                "held_out" if i >= len(pieces) - held else "train" for i in range(len(pieces))
            ]
        else:
            splits = None
        for index, piece in enumerate(pieces):
            assert piece.segment is not None
            is_held = number >= len(folders) - num_held_out
            split = splits[index] if splits else ("held_out" if is_held else "train")
            segment = replace(piece.segment, split=split)
            tally.keep(piece, segment)
            yield segment
        meter.advance(note=f"{tally.left_out.total()} frames left out")


def drive_pieces(config: ImportRun, cutter: Cutter, folder: Path, tally: Tally) -> Iterator[Piece]:
    """Yield the segments of one drive; what is wrong with it is counted and told."""
    try:
        for piece in cutter.pieces(recording_of(config.source, folder)):
            if piece.fault is not None:
                tally.leave_out(piece.fault)
            else:
                yield piece
    except RecordingError as error:
        tally.fail(error)
