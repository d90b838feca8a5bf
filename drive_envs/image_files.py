"""Frames that lie in a folder as one picture a frame, and depth maps likewise.

Files are in the order of their names. It does not know which pose belongs to which.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from drive_envs.recording import Depth, Fault, Pixels, RecordingError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height; RecordingError when it does not decode."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise RecordingError(path, "damaged image")
    return pixels.shape[1], pixels.shape[0]


def images_from(
    files: Sequence[Path | None], size: tuple[int, int]
) -> Callable[[Sequence[int]], Iterator[Pixels | Fault]]:
    """Return what reads frames of (width, height) from files; None is a frame without one."""

    def read(frames: Sequence[int]) -> Iterator[Pixels | Fault]:
        for frame in frames:
            path = files[frame]
            if path is None:
                yield Fault(cause="missing image", file=Path("-"), first=frame, last=frame)
                continue
            pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if pixels is None:
                yield Fault(cause="damaged image", file=path, first=frame, last=frame)
            elif pixels.shape[1::-1] != size:
                given = f"{pixels.shape[1]} x {pixels.shape[0]}, not {size[0]} x {size[1]}"
                cause = "image of another size"
                yield Fault(cause=cause, file=path, first=frame, last=frame, detail=given)
            else:
                yield np.ascontiguousarray(pixels[..., ::-1])

    return read


def depth_from(
    files: Sequence[Path | None], size: tuple[int, int], scale: float
) -> Callable[[int], Depth | Fault]:
    """Return what reads depth maps, uint16 PNGs of metres times `scale`, 0 unknown."""

    def read(frame: int) -> Depth | Fault:
        path = files[frame]
        if path is None:
            return Fault(cause="missing depth", file=Path("-"), first=frame, last=frame)
        code = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if code is None or code.dtype != np.uint16 or code.shape != size[::-1]:
            detail = "does not decode" if code is None else f"{code.dtype}, {code.shape}"
            return Fault(cause="damaged depth", file=path, first=frame, last=frame, detail=detail)
        return np.where(code > 0, code / scale, np.nan)

    return read
