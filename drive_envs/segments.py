"""Recorded drives on disk: one Parquet row is a frame, one row group is a segment.

Columns: `segment`, `split`, `source`; `time` s; `position` (x, y, z) m and `quaternion`
(x, y, z, w) of world_from_ego; `velocity` (x, y, z) m/s in the world frame; `desire` (0 none,
1 lane change left, 2 right, on the one frame where it begins); `valid`; and for each camera
`image_<camera>` (JPEG or WebP) and `depth_<camera>` (PNG, uint16 centimetres of planar z,
0 unknown, 65535 sky; may be null). The file's metadata holds the schema version, the cameras, the
units and where the file came from. Writers are atomic, and pages carry checksums.

Reading a segment reads its numbers, less than a hundredth of it; its frames follow when they are
first asked for, so that a process reads no more of a large dataset than it sees.
"""

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drive_envs.camera import Camera
from drive_envs.segment import ROW_SHAPES, SPLITS, NoSegmentsError, Segment, SegmentError

SCHEMA_VERSION = 1
UNITS = {
    "time": "s",
    "position": "m",
    "velocity": "m/s",
    "depth": "cm, planar z; 0 unknown, 65535 sky",
}

logger = logging.getLogger(__name__)


def sample_path() -> Path:
    """Return where the recorded sample that ships with the package lies."""
    return Path(str(resources.files("drive_envs"))) / "data" / "sample.parquet"


def write_segments(path: Path, segments: Iterable[Segment], *, source: str = "") -> int:
    """Write segments as they come, all or nothing, and return how many there were.

    The file appears under its name only when it is complete and on the disk. `source` tells in
    words where the file comes from. Raises SegmentError when the cameras of two segments differ,
    or when there is no segment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        count = _stream(partial, iter(segments), source)
        if not count:
            raise SegmentError(f"{path}: there is no segment to write")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return count


def _stream(path: Path, segments: Iterator[Segment], source: str) -> int:
    """Write one row group a segment to `path` and return how many."""
    first = next(segments, None)
    if first is None:
        return 0
    schema = _schema(first.cameras, source)
    bulk = [name for name in schema.names if name.startswith(("image_", "depth_"))]
    options: dict[str, Any] = {
        "compression": {name: "none" if name in bulk else "zstd" for name in schema.names},
        "use_dictionary": ["segment", "split", "source"],
        "write_statistics": False,
        "write_page_checksum": True,
    }
    with pq.ParquetWriter(path, schema, **options) as writer:
        count, segment = 0, first
        while segment is not None:
            if segment.cameras != first.cameras:
                raise segment.error(f"its cameras differ from those of segment '{first.name}'")
            writer.write_table(_table(segment, schema), row_group_size=len(segment))
            count, segment = count + 1, next(segments, None)
    return count


def _schema(cameras: dict[str, Camera], source: str) -> pa.Schema:
    fields: list[tuple[str, pa.DataType]] = [
        ("segment", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("time", pa.float64()),
        ("position", pa.list_(pa.float64(), 3)),
        ("quaternion", pa.list_(pa.float64(), 4)),
        ("velocity", pa.list_(pa.float64(), 3)),
        ("desire", pa.int8()),
        ("valid", pa.bool_()),
    ]
    fields += [
        (f"{kind}_{camera}", pa.binary()) for camera in cameras for kind in ("image", "depth")
    ]
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "cameras": json.dumps({name: asdict(camera) for name, camera in cameras.items()}),
        "units": json.dumps(UNITS),
        "source": source,
    }
    return pa.schema(fields, metadata=metadata)


def _table(segment: Segment, schema: pa.Schema) -> pa.Table:
    columns: dict[str, object] = {
        key: pa.array([value] * len(segment))
        for key, value in (
            ("segment", segment.name),
            ("split", segment.split),
            ("source", segment.source),
        )
    }
    for column, tail in ROW_SHAPES.items():
        values = pa.array(getattr(segment, column).reshape(-1)).cast(_scalar(schema, column))
        columns[column] = pa.FixedSizeListArray.from_arrays(values, tail[0]) if tail else values
    for camera in segment.cameras:
        columns[f"image_{camera}"] = pa.array(list(segment.images[camera]), pa.binary())
        columns[f"depth_{camera}"] = pa.array(list(segment.depths[camera]), pa.binary())
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _scalar(schema: pa.Schema, column: str) -> pa.DataType:
    kind = schema.field(column).type
    return kind.value_type if pa.types.is_fixed_size_list(kind) else kind


class SegmentFile:
    """One Parquet file of segments; reads a segment at a time, and says exactly what is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reading = threading.Lock()  # an open Parquet file is not for several threads
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
            metadata = self._file.schema_arrow.metadata or {}
            version = metadata.get(b"schema_version", b"none").decode()
            cameras = json.loads(metadata.get(b"cameras", b"{}"))
            self.cameras = {name: Camera(**fields) for name, fields in cameras.items()}
            self.source = metadata.get(b"source", b"").decode()
        except (OSError, pa.ArrowException, ValueError, TypeError) as error:
            raise SegmentError(
                f"{path}: not a readable Parquet file of segments ({error})"
            ) from error
        if version != str(SCHEMA_VERSION):
            raise SegmentError(f"{path}: schema version {version}; this reads {SCHEMA_VERSION}")
        needed = ["segment", "split", "source", *ROW_SHAPES, *(f"image_{c}" for c in self.cameras)]
        if missing := [name for name in needed if name not in self._file.schema_arrow.names]:
            raise SegmentError(f"{path}: columns {', '.join(missing)} are missing")

    def __len__(self) -> int:
        return self._file.num_row_groups

    def read(self, group: int) -> Segment:
        """Read the segment in a row group, its frames later; SegmentError when it is damaged."""
        table = self.columns(group, ["segment", "split", "source", *ROW_SHAPES])
        if not table.num_rows:
            raise SegmentError(f"{self.path}: segment number {group} has no rows")
        rows: dict[str, Any] = {
            column: _rows(table[column], tail) for column, tail in ROW_SHAPES.items()
        }
        images, depths = (
            {
                camera: StoredFrames(self, group, f"{kind}_{camera}", table.num_rows)
                for camera in self.cameras
            }
            for kind in ("image", "depth")
        )
        return Segment(
            name=table["segment"][0].as_py(),
            split=table["split"][0].as_py(),
            source=table["source"][0].as_py(),
            cameras=self.cameras,
            images=images,
            depths=depths,
            file=self.path,
            **rows,
        )

    def has(self, column: str) -> bool:
        """Tell whether there is a column of this name."""
        return column in self._file.schema_arrow.names

    def columns(self, group: int, columns: list[str]) -> pa.Table:
        """Read some columns of a row group; SegmentError when a page of them is damaged."""
        try:
            with self._reading:
                return self._file.read_row_group(group, columns=columns)
        except (OSError, pa.ArrowException) as error:
            start = sum(self._file.metadata.row_group(i).num_rows for i in range(group))
            where = f"{self.path}: segment number {group}, from row {start}"
            raise SegmentError(f"{where}: damaged row group ({error})") from error


class StoredFrames:
    """The encoded frames of one column of a row group, read when the first of them is asked for.

    All are None where there is no such column: depth may be missing. SegmentError when damaged.
    """

    def __init__(self, file: SegmentFile, group: int, column: str, num_rows: int) -> None:
        self._where = file, group, column
        self._num_rows = num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> Any:
        return self._frames[row]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._frames)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self._frames,)

    @cached_property
    def _frames(self) -> list[bytes | None]:
        file, group, column = self._where
        if not file.has(column):
            return [None] * self._num_rows
        return file.columns(group, [column])[column].to_pylist()


def _rows(column: pa.ChunkedArray, tail: tuple[int, ...]) -> np.ndarray:
    array = column.combine_chunks()
    if tail:
        return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, *tail)
    return array.to_numpy(zero_copy_only=False)


class SegmentDataset:
    """The readable segments of the files at `path`; indexing reads one, without its frames.

    That frames are damaged shows when they are read, or on `leave_out_damaged`. `skipped` counts
    what was left out, as "cause: file name"; each was also logged as a warning.
    """

    def __init__(self, path: Path, files: Iterable[Path], split: str | None) -> None:
        self.path, self._split = path, split
        self.skipped: Counter[str] = Counter()
        self._where: list[tuple[SegmentFile, int]] = []
        for path in files:
            try:
                file = SegmentFile(path)
            except SegmentError as error:
                self._skip("damaged file", path, error)
                continue
            for group in range(len(file)):
                try:
                    segment = file.read(group)
                except SegmentError as error:
                    self._skip("damaged segment", path, error)
                    continue
                if split in (None, segment.split):
                    self._where.append((file, group))
        self._check()

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> Segment:
        file, group = self._where[index]
        return file.read(group)

    def leave_out_damaged(
        self, shown: Callable[[Sequence[Any]], Iterable[Any]] = lambda items: items
    ) -> None:
        """Read all frames, and leave out the segments with damaged ones.

        `shown` passes on the items that it is given, and may show how many are done.
        NoSegmentsError when nothing is left.
        """
        whole = []
        for file, group in shown(self._where):
            try:
                file.read(group).load()
                whole.append((file, group))
            except SegmentError as error:
                self._skip("damaged segment", file.path, error)
        self._where = whole
        self._check()

    @property
    def left_out(self) -> str:
        """Say what was left out, by cause; empty when it was nothing."""
        return ", ".join(f"{count} x {cause}" for cause, count in self.skipped.items())

    def _check(self) -> None:
        if not self._where:
            of_split = f" of split '{self._split}'" if self._split else ""
            raise NoSegmentsError(
                f"{self.path}: no segment{of_split} to read (skipped: {self.left_out or 'none'})"
            )

    def _skip(self, cause: str, path: Path, error: SegmentError) -> None:
        logger.warning("skipped: %s", error)
        self.skipped[f"{cause}: {path.name}"] += 1


def open_dataset(path: Path, split: str | None = None) -> SegmentDataset:
    """Open a Parquet file, or every one in a folder, keeping the segments of one split (or all).

    Damaged files, and segments whose numbers are damaged, are skipped, counted and logged.
    SegmentError when the path does not exist, NoSegmentsError when nothing is left to read.
    """
    if split is not None and split not in SPLITS:
        raise SegmentError(f"split is '{split}'; it must be one of {', '.join(SPLITS)}")
    if not path.exists():
        raise SegmentError(f"{path}: no such file or folder; make recordings with `drive record`")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise SegmentError(f"{path}: the folder holds no .parquet file")
    return SegmentDataset(path, files, split)
