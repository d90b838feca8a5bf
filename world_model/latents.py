"""Drives as latents on disk: pixels are tokenized once, and training never sees them.

A Parquet row is a frame, a row group is a drive: one unbroken stretch of a segment, or of its
mirror image. Every frame comes in V + 1 variants: 0 as recorded, the others seen from excursions.
Columns: `drive`, `split`; for each variant k `latent_k` (float16, channel x rows x columns),
`moved_k` (likewise: what the frame before shows from there, `flat_road`; zero in the first frame;
not there in a file for models that are not told it),
`pose_k` (planar, world), `lateral_k` (m off the recorded path), `plan_k` (float32 33 x 15: back
onto the recorded path) and `valid_k` (33 flags). The metadata names the tokenizer by its digest:
latents of two tokenizers do not mix.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float16, Float32, Float64

from drive_envs.plan import NUM_POINTS, NUM_VALUES

SCHEMA_VERSION = 4
PLAN = (NUM_POINTS, NUM_VALUES)


class LatentsError(ValueError):
    """A file of latents is missing, damaged, or of another tokenizer; says which, and the mend."""


@dataclass(frozen=True, kw_only=True)
class LatentDrive:
    """N frames of a drive in V + 1 variants."""

    name: str
    split: str
    latents: Float16[np.ndarray, "variant frame channel height width"]
    moved: Float16[np.ndarray, "variant frame channel height width"]
    poses: Float64[np.ndarray, "variant frame 3"]
    lateral: Float32[np.ndarray, "variant frame"]
    plans: Float32[np.ndarray, "variant frame 33 15"]
    valid: Bool[np.ndarray, "variant frame 33"]

    def __len__(self) -> int:
        return self.latents.shape[1]

    @property
    def num_bytes(self) -> int:
        """Size of the arrays."""
        return sum(part.nbytes for part in vars(self).values() if isinstance(part, np.ndarray))


@dataclass(frozen=True, kw_only=True)
class LatentsInfo:
    """What a file of latents says of itself.

    shape: of a latent. num_variants: V + 1. tokenizer: its digest. source: how it was made.
    has_moved: whether it has what frames show from the next one's place; drives without have zeros.
    """

    shape: tuple[int, int, int]
    num_variants: int
    tokenizer: str
    source: str
    has_moved: bool = True

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each column of a variant."""
        latent = 2 * int(np.prod(self.shape))
        return {
            "latent": latent,
            **({"moved": latent} if self.has_moved else {}),
            "pose": 3 * 8,
            "lateral": 4,
            "plan": 4 * NUM_POINTS * NUM_VALUES,
            "valid": NUM_POINTS,
        }


def write_latents(path: Path, info: LatentsInfo, drives: Iterable[LatentDrive]) -> int:
    """Write drives as they come, all or nothing, and return how many there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    count = 0
    try:
        with pq.ParquetWriter(
            partial, schema(info), compression="none", write_page_checksum=True
        ) as writer:
            for drive in drives:
                writer.write_table(table(drive, info), row_group_size=len(drive))
                count += 1
        if not count:
            raise LatentsError(f"{path}: there is no drive to write")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def schema(info: LatentsInfo) -> pa.Schema:
    """Return the columns and what the file says of itself."""
    columns: list[tuple[str, pa.DataType]] = [("drive", pa.string()), ("split", pa.string())]
    columns += [
        (f"{name}_{variant}", pa.binary(size))
        for variant in range(info.num_variants)
        for name, size in info.parts.items()
    ]
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "shape": json.dumps(info.shape),
        "num_variants": str(info.num_variants),
        "tokenizer": info.tokenizer,
        "source": info.source,
        "has_moved": json.dumps(info.has_moved),
    }
    return pa.schema(columns, metadata=metadata)


def table(drive: LatentDrive, info: LatentsInfo) -> pa.Table:
    """Return a drive's rows."""
    if (found := drive.latents.shape[2:]) != info.shape or len(drive.poses) != info.num_variants:
        raise LatentsError(
            f"drive '{drive.name}' has {len(drive.poses)} variants of latents {found}; the file "
            f"holds {info.num_variants} of {info.shape}"
        )
    columns: dict[str, pa.Array] = {
        "drive": pa.array([drive.name] * len(drive)),
        "split": pa.array([drive.split] * len(drive)),
    }
    arrays = {
        "latent": drive.latents,
        "moved": drive.moved,
        "pose": drive.poses,
        "lateral": drive.lateral,
        "plan": drive.plans,
        "valid": drive.valid,
    }
    for variant in range(info.num_variants):
        for name in info.parts:
            columns[f"{name}_{variant}"] = packed(arrays[name][variant])
    return pa.table(columns, schema=schema(info))


def packed(rows: np.ndarray) -> pa.Array:
    """Turn (row, ...) into one value of bytes a row."""
    rows = np.ascontiguousarray(rows)
    size = rows.nbytes // len(rows)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(size), len(rows), [None, pa.py_buffer(rows)]
    )


def unpacked(column: pa.ChunkedArray, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Turn one value of bytes a row into (row, *shape)."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    buffer = array.buffers()[1]
    size = int(np.prod(shape, dtype=int))
    start = array.offset * size
    values = np.frombuffer(buffer, dtype=dtype)[start : start + len(array) * size]
    return values.reshape(len(array), *shape)


class LatentFile:
    """A file of latents; reads a drive at a time, keeping the last ones in memory."""

    def __init__(self, path: Path, *, cache_mb: int = 1024) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
            metadata = self._file.schema_arrow.metadata or {}
            version = metadata.get(b"schema_version", b"none").decode()
            shape = json.loads(metadata.get(b"shape", b"[]"))
            self.info = LatentsInfo(
                shape=(shape[0], shape[1], shape[2]),
                num_variants=int(metadata[b"num_variants"]),
                tokenizer=metadata[b"tokenizer"].decode(),
                source=metadata[b"source"].decode(),
                # Files of older versions do not say; that they are older is said below.
                has_moved=json.loads(metadata.get(b"has_moved", b"true")),
            )
        except (OSError, pa.ArrowException, ValueError, KeyError, IndexError) as error:
            raise LatentsError(
                f"{path}: not a readable Parquet file of latents ({error}); remove it and give the "
                "command again to have it made anew"
            ) from error
        if version != str(SCHEMA_VERSION):
            raise LatentsError(f"{path}: schema version {version}; this reads {SCHEMA_VERSION}")
        groups = range(self._file.num_row_groups)
        self.num_frames = [self._file.metadata.row_group(group).num_rows for group in groups]
        self.splits = [
            self._file.read_row_group(group, columns=["split"])["split"][0].as_py()
            for group in groups
        ]
        self._max_bytes = cache_mb * 2**20
        self._num_bytes = 0
        self._drives: OrderedDict[int, LatentDrive] = OrderedDict()

    def __len__(self) -> int:
        return len(self.num_frames)

    def __getitem__(self, group: int) -> LatentDrive:
        drive = self._drives.get(group)
        if drive is not None:
            self._drives.move_to_end(group)
            return drive
        drive = self._read(group)
        self._drives[group] = drive
        self._num_bytes += drive.num_bytes
        while self._num_bytes > self._max_bytes and len(self._drives) > 1:
            _, old = self._drives.popitem(last=False)
            self._num_bytes -= old.num_bytes
        return drive

    def _read(self, group: int) -> LatentDrive:
        try:
            rows = self._file.read_row_group(group)
        except (OSError, pa.ArrowException) as error:
            raise LatentsError(
                f"{self.path}: drive number {group} is damaged ({error}); remove the file and give "
                "the command again to have it made anew"
            ) from error

        def variants(name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
            names = [f"{name}_{variant}" for variant in range(self.info.num_variants)]
            return np.stack([unpacked(rows[column], dtype, shape) for column in names])

        latents = variants("latent", np.float16, self.info.shape)
        moved = variants("moved", np.float16, self.info.shape) if self.info.has_moved else None
        return LatentDrive(
            name=rows["drive"][0].as_py(),
            split=rows["split"][0].as_py(),
            latents=latents,
            moved=np.zeros_like(latents) if moved is None else moved,
            poses=variants("pose", np.float64, (3,)),
            lateral=variants("lateral", np.float32, ()),
            plans=variants("plan", np.float32, PLAN),
            valid=variants("valid", np.bool_, (NUM_POINTS,)),
        )
