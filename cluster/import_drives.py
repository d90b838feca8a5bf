"""`drive import`: make segments of real drives, comma2k19, KITTI raw or one's own.

What cannot be used is named with its file and frames, counted by cause, and left out: segments end
before it and begin anew after it. Nothing is repaired. An import replaces its own result, made
before of the same drives in the same way, and no other file.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat
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
from drive_envs.segment import Segment, SegmentError
from drive_envs.segments import SegmentFile, write_segments

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
    segments: neighbours in time show the same road, so they should not be in both splits. It is one
    at least, where there are two.
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

    def about(self, folders: list[Path]) -> str:
        """Say what the result is made of, for its file: which drives, and how, as a digest."""
        known = asdict(self)
        del known["path"]
        known["source"]["folder"] = [folder.resolve() for folder in folders]
        digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
        name = self.source.folder.resolve().name
        return f"drive import {self.source.kind} {name} ({digest.hexdigest()[:12]})"


@dataclass(kw_only=True)
class Tally:
    """What came of an import so far; `left_out` is in frames by cause, `failed` in drives.

    seconds: that its frames really lasted.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    segments: int = 0
    frames: int = 0
    held_out: int = 0
    seconds: float = 0.0
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
        self.segments += 1
        self.frames += len(segment)
        self.seconds += piece.interval * len(segment)
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
    about = config.about(folders)
    refuse_another(config.path, about)
    tally = Tally()
    with progress("drives", len(folders)) as meter:
        segments = imported(config, cutter, folders, tally, meter)
        first = next(segments, None)
        if first is not None:
            write_segments(config.path, chain_one(first, segments), source=about)
    (output / LEFT_OUT).write_text("".join(f"{line}\n" for line in tally.told))
    if first is None:
        causes = ", ".join(f"{n} x {cause}" for cause, n in (tally.left_out + tally.failed).items())
        raise ValueError(
            f"{config.source.folder}: no segment could be made of {len(folders)} drives "
            f"({causes}): {output / LEFT_OUT} says where"
        )
    if config.held_out_fraction and not tally.held_out:
        logger.warning(
            "a single segment, and so none is held out: the off-policy error cannot be measured; "
            "import more, or make cut.seconds and cut.min_seconds shorter"
        )
    megabytes = config.path.stat().st_size / 1e6
    return {
        "path": str(config.path),
        "drives": len(folders),
        "segments": tally.segments,
        "held_out": tally.held_out,
        "frames": tally.frames,
        "minutes": round(tally.frames / 5 / 60, 2),
        "row_interval": round(tally.seconds / tally.frames, 4),
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


def refuse_another(path: Path, about: str) -> None:
    """Raise ValueError where there is a file that is not this import's own."""
    if not path.exists():
        return
    mend = "give another path=, or remove it"
    try:
        source = SegmentFile(path).source
    except SegmentError as error:
        raise ValueError(f"{error}; to import anew, {mend}") from None
    if source != about:
        raise ValueError(
            f"{path} holds other drives, or drives imported in another way "
            f"({source or 'of unknown source'}, where this is {about}): {mend}"
        )


def chain_one(first: Segment, others: Iterator[Segment]) -> Iterator[Segment]:
    """Yield the first one, then the others."""
    yield first
    yield from others


def imported(
    config: ImportRun, cutter: Cutter, folders: list[Path], tally: Tally, meter: Meter
) -> Iterator[Segment]:
    """Yield the segments of all drives, each in its split.

    The last one is "held_out" if no other is, since nothing could be used of the last drives.
    """
    held: tuple[Piece, Segment] | None = None
    for piece, segment in divided(config, cutter, folders, tally, meter):
        if held is not None:
            tally.keep(*held)
            yield held[1]
        held = piece, segment
    if held is not None:
        piece, segment = held
        if config.held_out_fraction and tally.segments and not tally.held_out:
            segment = replace(segment, split="held_out")
        tally.keep(piece, segment)
        yield segment


def divided(
    config: ImportRun, cutter: Cutter, folders: list[Path], tally: Tally, meter: Meter
) -> Iterator[tuple[Piece, Segment]]:
    """Yield what becomes of all drives, divided into splits as if all could be used.

    Where nothing could be used of those for "train", the first that can be used is one of them.
    """
    first_held = len(folders) - num_held_out(config.held_out_fraction, len(folders))
    is_any_used = config.held_out_fraction == 1
    for number, folder in enumerate(folders):
        pieces = drive_pieces(config, cutter, folder, tally)
        splits = repeat("held_out" if number >= first_held and is_any_used else "train")
        if len(folders) == 1:
            # Its last segments can only be told when all are there.
            pieces = list(pieces)
            held = num_held_out(config.held_out_fraction, len(pieces))
            splits = ["train"] * (len(pieces) - held) + ["held_out"] * held
        for piece, split in zip(pieces, splits, strict=False):
            assert piece.segment is not None
            is_any_used = True
            yield piece, replace(piece.segment, split=split)
        meter.advance(note=f"{tally.left_out.total()} frames left out")


def num_held_out(fraction: float, count: int) -> int:
    """Return how many of `count` drives or segments are held out: one at least, and never all.

    But for a fraction of 0, which is none, and of 1, which is all.
    """
    if fraction in (0, 1):
        return round(fraction * count)
    return min(max(1, round(fraction * count)), count - 1) if count else 0


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
