"""Frames that lie in a folder as one picture a frame, and depth maps likewise.

Files are in the order of their names, in which digits count as numbers. What a decoder does not
notice is not noticed here: a JPEG with a few wrong bytes in its middle decodes. It does not know
which pose belongs to which.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from drive_envs.recording import Depth, Fault, Pixels, RecordingError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
JPEG = b"\xff\xd8"  # what one begins with


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder, by name: `2.png` comes before `10.png`."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    return sorted(found, key=natural)


def natural(path: Path) -> tuple[list[str | int], str]:
    """Return what to sort by: text and numbers in turns; the name itself where these are equal."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def picture_size(files: Sequence[Path]) -> tuple[int, int]:
    """Return width and height of the first that decodes; RecordingError when none does."""
    there = [path for path in files if path.exists()]
    assert there
    for path in there:
        if (pixels := decoded(path)) is not None:
            return pixels.shape[1], pixels.shape[0]
    raise RecordingError(there[0], "damaged image", f"and no other one of {len(there)} decodes")


def decoded(path: Path) -> Pixels | None:
    """Decode a picture, BGR; None where it is damaged."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return None if pixels is None or is_truncated(path) else pixels


def is_truncated(path: Path) -> bool:
    """Tell whether a JPEG ends too soon: alone of all formats OpenCV fills up what is missing."""
    with path.open("rb") as file:
        if file.read(len(JPEG)) != JPEG:
            return False
    try:
        with Image.open(path) as picture:
            # An eighth as large: that decodes all bytes, and saves half of the time.
            picture.draft(None, (1, 1))
            picture.load()
    except (OSError, SyntaxError):
        return True
    return False


def images_from(
    files: Sequence[Path], size: tuple[int, int]
) -> Callable[[Sequence[int]], Iterator[Pixels | Fault]]:
    """Return what reads frames of (width, height) from files, which need not exist."""

    def read(frames: Sequence[int]) -> Iterator[Pixels | Fault]:
        for frame in frames:
            path = files[frame]
            if not path.exists():
                yield Fault(cause="missing image", file=path, first=frame, last=frame)
                continue
            pixels = decoded(path)
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
    files: Sequence[Path], size: tuple[int, int], scale: float
) -> Callable[[int], Depth | Fault]:
    """Return what reads depth maps, uint16 PNGs of metres times `scale`, 0 unknown."""

    def read(frame: int) -> Depth | Fault:
        path = files[frame]
        if not path.exists():
            return Fault(cause="missing depth", file=path, first=frame, last=frame)
        code = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if code is None or code.dtype != np.uint16 or code.shape != size[::-1]:
            detail = "does not decode" if code is None else f"{code.dtype}, {code.shape}"
            return Fault(cause="damaged depth", file=path, first=frame, last=frame, detail=detail)
        return np.where(code > 0, code / scale, np.nan)

    return read
