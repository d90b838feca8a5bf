"""One recorded drive: numbers as arrays, images as the bytes they were stored in.

Poses are world_from_ego, the ego origin on the road below the camera. It does not know how a
segment is stored (`segments`), nor what a path, a plan or a lane is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from zlib import crc32

import numpy as np

from drive_envs.camera import Camera
from drive_envs.frames import FrameError, decode_depth, decode_image

SPLITS = ("train", "held_out")
ROW_SHAPES = {
    "time": (),
    "position": (3,),
    "quaternion": (4,),
    "velocity": (3,),
    "desire": (),
    "valid": (),
}


class SegmentError(ValueError):
    """Something is wrong with recorded data; the message names file, segment and row."""


class NoSegmentsError(SegmentError):
    """Recordings of which none can be read, or none is of the split that was asked for."""


@runtime_checkable
class EncodedFrames(Protocol):
    """A sequence of encoded images, or of depth maps, of which some may be None.

    Nothing is asked of what is in it: to look would read it from the disk.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A minute or less of one drive; images stay encoded until they are asked for.

    Of N frames: `time` (N,) s, `position` (N, 3) m, `quaternion` (N, 4) xyzw, `velocity` (N, 3)
    m/s, all float64; `desire` (N,) int8; `valid` (N,) bool; `images` and `depths` N encoded frames
    a camera, which may still be on the disk. `source` is JSON that says where the segment comes
    from; `file` is set on segments that were read from disk; `is_mirrored` says that images are
    turned over when they are decoded. Raises SegmentError when shapes, counts, times or numbers are
    wrong, and wherever frames are read from the disk and are damaged.
    """

    name: str
    split: str
    cameras: dict[str, Camera]
    time: np.ndarray
    position: np.ndarray
    quaternion: np.ndarray
    velocity: np.ndarray
    desire: np.ndarray
    valid: np.ndarray
    images: Mapping[str, EncodedFrames]
    depths: Mapping[str, EncodedFrames]
    source: str = "{}"
    file: Path | None = None
    is_mirrored: bool = False

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise self.error(f"split is '{self.split}'; it must be one of {', '.join(SPLITS)}")
        expected = {column: (len(self), *tail) for column, tail in ROW_SHAPES.items()}
        for column, shape in expected.items():
            if (given := getattr(self, column).shape) != shape:
                raise self.error(f"'{column}' has shape {given}; {len(self)} frames need {shape}")
        for kind in ("images", "depths"):
            counts = {camera: len(frames) for camera, frames in getattr(self, kind).items()}
            if counts != dict.fromkeys(self.cameras, len(self)):
                raise self.error(f"{kind} are {counts}; need {len(self)} of {list(self.cameras)}")
        for column in ("time", "position", "quaternion", "velocity"):
            finite = np.isfinite(getattr(self, column)).reshape(len(self), -1).all(axis=1)
            if not finite.all():
                raise self.error(f"'{column}' is not finite", row=int(np.argmin(finite)))
        if (late := np.diff(self.time) <= 0).any():
            raise self.error("time does not increase", row=int(np.argmax(late)) + 1)

    def __len__(self) -> int:
        return len(self.time)

    def load(self) -> None:
        """Read the frames that are still on the disk; SegmentError when they are damaged."""
        for frames in (*self.images.values(), *self.depths.values()):
            frames[0]

    @property
    def number(self) -> int:
        """A number made of the names of segment and file, the same in every process."""
        file = self.file.name if self.file else ""
        return crc32(f"{file}/{self.name}".encode())

    def image(self, camera: str, row: int) -> np.ndarray:
        """Decode one image to uint8 (3, H, W), RGB; SegmentError when it is damaged."""
        view = self._camera(camera)
        try:
            image = decode_image(self.images[camera][row], view.width, view.height)
        except FrameError as error:
            raise self.error(f"image '{camera}' {error}", row=row) from error
        return np.ascontiguousarray(image[..., ::-1]) if self.is_mirrored else image

    def depth(self, camera: str, row: int) -> np.ndarray:
        """Decode one depth map to float32 metres: NaN unknown, inf sky; or SegmentError.

        It is as large as the image, or smaller by a whole factor.
        """
        view = self._camera(camera)
        encoded = self.depths[camera][row]
        if encoded is None:
            mend = "record or import it with depth, or do without reprojection"
            raise self.error(f"has no depth of camera '{camera}'; {mend}", row=row)
        try:
            depth = decode_depth(encoded, view.width, view.height)
        except FrameError as error:
            raise self.error(f"depth '{camera}' {error}", row=row) from error
        return np.ascontiguousarray(depth[..., ::-1]) if self.is_mirrored else depth

    def mirrored(self) -> "Segment":
        """Return the drive as a mirror shows it, left and right exchanged (the world's y axis)."""
        return replace(
            self,
            name=f"{self.name}-mirrored",
            cameras={
                name: replace(view, center_u=view.width - view.center_u)
                for name, view in self.cameras.items()
            },
            position=self.position * [1, -1, 1],
            quaternion=self.quaternion * [-1, 1, -1, 1],
            velocity=self.velocity * [1, -1, 1],
            desire=np.array([0, 2, 1], self.desire.dtype)[self.desire],
            is_mirrored=not self.is_mirrored,
        )

    def error(self, what: str, *, row: int | None = None) -> SegmentError:
        """Return (not raise) an error that names this segment, its file and the row."""
        at = "" if row is None else f" row {row}"
        return SegmentError(f"{self.file or 'new segment'}: segment '{self.name}'{at}: {what}")

    def _camera(self, camera: str) -> Camera:
        if camera not in self.cameras:
            raise self.error(f"no camera '{camera}'; it has {', '.join(self.cameras)}")
        return self.cameras[camera]
