"""`drive record`: drive MetaDrive as people do, and write what the cameras saw.

Each drive is a part file until all are there, then they are merged. The parts lie beside the
result under a name made of the run, so that the same run, started again after an interruption,
goes on; another run never takes them up. A run that wants more drives than the result has, and is
the same otherwise, keeps those that are there.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.child_processes import end_with_parent
from cluster.progress import Meter, progress
from drive_envs.allocator import keep_freed_memory
from drive_envs.camera import Camera, recording_cameras
from drive_envs.drives import DriveConfig
from drive_envs.frames import JPEG_QUALITY
from drive_envs.human import HumanConfig
from drive_envs.metadrive_assets import ensure_assets
from drive_envs.plan import STEP
from drive_envs.random_roads import RoadsConfig
from drive_envs.segment import Segment, SegmentError
from drive_envs.segments import SegmentFile, write_segments
from drive_envs.traffic import TrafficConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RecordRun:
    """One set of recordings.

    path: the Parquet file to write. num_segments drives of `seconds` s; width, height of what a
    driver sees, scale and margin: how much finer, and by how many of these pixels on either side
    wider, it is recorded (`recording_cameras`); quality of the JPEGs. held_out_fraction of the
    drives, evenly spread, are "held_out". lane_change_fraction of the drives change lanes.
    num_processes record side by side.
    """

    path: Path = Path("runs/data/train/drives.parquet")
    num_segments: int = 256
    seconds: float = 16.0
    width: int = 128
    height: int = 64
    scale: int = 2
    margin: int = 32
    quality: int = JPEG_QUALITY
    seed: int = 0
    held_out_fraction: float = 0.125
    lane_change_fraction: float = 0.15
    human: HumanConfig = field(default_factory=HumanConfig)
    roads: RoadsConfig = field(default_factory=RoadsConfig)
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    num_processes: int = 2

    def __post_init__(self) -> None:
        for name in ("num_segments", "num_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.held_out_fraction <= 1:
            raise ValueError(f"held_out_fraction must be 0 to 1, got {self.held_out_fraction}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {self.quality}")
        if self.path.suffix != ".parquet":
            raise ValueError(f"path must end in .parquet, got {self.path}")
        recording_cameras(self.width, self.height, scale=self.scale, margin=self.margin)

    @property
    def cameras(self) -> dict[str, Camera]:
        """What it is recorded with."""
        return recording_cameras(self.width, self.height, scale=self.scale, margin=self.margin)

    @property
    def drives(self) -> DriveConfig:
        """What the drives are drawn from."""
        return DriveConfig(
            seconds=self.seconds,
            lane_change_fraction=self.lane_change_fraction,
            human=self.human,
            roads=self.roads,
            traffic=self.traffic,
        )

    @property
    def digest(self) -> str:
        """What the drives depend on, in short: all but how many there are, and where."""
        known = asdict(self)
        for name in ("path", "num_segments", "num_processes"):
            del known[name]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def source(self) -> str:
        """What the file of recordings says of where they come from."""
        return f"drive record seed={self.seed} ({self.digest})"

    @property
    def parts(self) -> Path:
        """The folder for finished drives; its name says what they depend on."""
        return self.path.with_name(f".{self.path.stem}-{self.digest}")

    def split(self, number: int) -> str:
        """Return to which split the drive of this number belongs."""
        before, after = (int(n * self.held_out_fraction + 1e-9) for n in (number, number + 1))
        return "held_out" if after > before else "train"


def run(config: RecordRun, output: Path) -> dict[str, Any]:
    """Record what is not yet recorded, merge it, and report speed, size and what was dropped."""
    before = recorded_before(config)
    num_before = 0 if before is None else len(before)
    config.parts.mkdir(parents=True, exist_ok=True)
    numbers = range(config.num_segments)
    missing = [n for n in numbers if n >= num_before and not part(config, n).exists()]
    there = config.num_segments - len(missing)
    if there:
        logger.info("%d drives are there already", there)
    started = time.monotonic()
    with progress("drives", config.num_segments, done=there) as meter:
        dropped = record_all(config, missing, meter)
    seconds = time.monotonic() - started
    if num_before != config.num_segments:
        segments = (
            before.read(n) if before and n < num_before else SegmentFile(part(config, n)).read(0)
            for n in numbers
        )
        write_segments(config.path, segments, source=config.source)
    shutil.rmtree(config.parts)
    frames = round(config.seconds / STEP)
    megabytes = config.path.stat().st_size / 1e6
    held_out = sum(config.split(n) == "held_out" for n in numbers)
    return {
        "path": str(config.path),
        "segments": config.num_segments,
        "held_out": held_out,
        "frames": frames * config.num_segments,
        "frames_per_second": round(frames * len(missing) / seconds, 1) if missing else None,
        "megabytes": round(megabytes, 2),
        "megabytes_per_minute": round(megabytes / (config.seconds * config.num_segments / 60), 2),
        "dropped": dict(dropped),
    }


def recorded_before(config: RecordRun) -> SegmentFile | None:
    """Open the result if there is one, perhaps with fewer drives than asked for.

    Raises ValueError where it holds more, or those of another run: no recording is thrown away.
    """
    if not config.path.exists():
        return None
    mend = "give another path=, or remove it"
    try:
        file = SegmentFile(config.path)
    except SegmentError as error:
        raise ValueError(f"{error}; to record anew, {mend}") from None
    if file.source != config.source:
        raise ValueError(
            f"{config.path} holds recordings of another run ({file.source or 'of unknown source'}, "
            f"where this one is {config.source}): {mend}"
        )
    if len(file) > config.num_segments:
        raise ValueError(
            f"{config.path} holds {len(file)} drives, more than num_segments="
            f"{config.num_segments}: {mend}"
        )
    return file


def part(config: RecordRun, number: int) -> Path:
    """Return where one drive is kept until all are there."""
    return config.parts / f"{number:05d}.parquet"


def record_all(config: RecordRun, numbers: list[int], meter: Meter) -> Counter[str]:
    """Record drives side by side and return how many others were dropped, by cause."""
    dropped: Counter[str] = Counter()
    if not numbers:
        return dropped
    ensure_assets()
    num_processes = min(config.num_processes, len(numbers))
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    pool = ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_recorder,
        initargs=(config, threads),
    )
    try:
        for found in results([pool.submit(record_part, config, n) for n in numbers]):
            dropped += found
            meter.advance(note=f"{dropped.total()} dropped" if dropped else None)
    finally:
        pool.shutdown(cancel_futures=True)
    return dropped


def results(futures: list["Future[Counter[str]]"]) -> Iterator[Counter[str]]:
    """Yield what the processes return, in the order in which they finish.

    ValueError when a process died, or when one refused the run.
    """
    for future in as_completed(futures):
        try:
            yield future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a recording process died (no memory left, or killed): start the run again, "
                "finished drives are kept; num_processes=1 needs half of the memory"
            ) from error
        except ValueError as error:
            raise ValueError(str(error)) from error


_recorder: Any = None  # of this process, or the ValueError that says why there is none


def start_recorder(config: RecordRun, num_threads: int) -> None:
    """Prepare a process: MetaDrive, on its share of the cores."""
    global _recorder
    end_with_parent()
    os.environ["LP_NUM_THREADS"] = str(num_threads)
    from drive_envs.recorder import Recorder

    keep_freed_memory()

    try:
        _recorder = Recorder(
            config.cameras,
            config.drives,
            seed=config.seed,
            quality=config.quality,
            scale=config.scale,
        )
    except ValueError as error:
        # Raised here it would break the pool, which then knows no more than that a process died.
        _recorder = error


def record_part(config: RecordRun, number: int) -> Counter[str]:
    """Record one drive into its part file, and return how many were dropped for it."""
    if isinstance(_recorder, ValueError):
        raise _recorder
    take = _recorder.record(number, config.split(number))
    segments: list[Segment] = [take.segment]
    write_segments(part(config, number), segments)
    return take.dropped
