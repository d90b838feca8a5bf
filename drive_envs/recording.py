"""A real drive as it was filmed, before it is made into segments: what every importer hands on.

World frames have x, y level and z up, in metres; camera frames are x right, y down, z forward.
What is wrong with a recording is told as `Fault`s, each with its file and frames. It does not know
how a source lies on the disk, nor what cameras a driver has.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

Pixels = UInt8[np.ndarray, "height width 3"]
Depth = Float[np.ndarray, "height width"]


class RecordingError(ValueError):
    """A recording that cannot be read at all; names the file, `cause` is a few words."""

    def __init__(self, file: Path, cause: str, detail: str = "") -> None:
        self.file, self.cause = file, cause
        super().__init__(f"{file}: {cause}{f' ({detail})' if detail else ''}")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Frames `first` to `last` of `file` that are not used, and why: `cause` in a few words."""

    cause: str
    file: Path
    first: int
    last: int
    detail: str = ""

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        frames = f"frame {self.first}" if len(self) == 1 else f"frames {self.first}-{self.last}"
        return f"{self.file}: {frames}: {self.cause}{f' ({self.detail})' if self.detail else ''}"


def faults_of(
    bad: Bool[np.ndarray, " frames"], cause: str, file: Path, detail: str = ""
) -> list[Fault]:
    """Return a fault for each run of frames that are marked."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bad, [False]]).astype(int)))
    return [
        Fault(cause=cause, file=file, first=int(first), last=int(end) - 1, detail=detail)
        for first, end in edges.reshape(-1, 2)
    ]


@dataclass(frozen=True, kw_only=True)
class Optics:
    """Intrinsics of the camera that filmed, in pixels; pixel i covers [i, i + 1). No distortion."""

    width: int
    height: int
    focal_u: float
    focal_v: float
    center_u: float
    center_v: float

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a camera of {self.width} x {self.height} pixels sees nothing")
        if not (self.focal_u > 0 and self.focal_v > 0):
            raise ValueError(
                f"focal lengths must be positive pixels, got {self.focal_u}, {self.focal_v}"
            )

    @property
    def intrinsics(self) -> Float[np.ndarray, "3 3"]:
        """K with pixel = K point / z."""
        return np.array(
            [[self.focal_u, 0, self.center_u], [0, self.focal_v, self.center_v], [0, 0, 1.0]]
        )


@dataclass(frozen=True, kw_only=True)
class Mount:
    """How the camera sits on its car: metres above the road, and radians.

    pitch (positive nose down), yaw (positive left) and roll (positive right side down) turn the
    car's axes into the camera's. Pitch and yaw that are None are found from the direction of
    travel (`mounting`).
    """

    height: float
    roll: float = 0.0
    pitch: float | None = None
    yaw: float | None = None

    def __post_init__(self) -> None:
        if not 0.2 <= self.height <= 5:
            raise ValueError(f"a camera's height is {self.height} m; it must be within 0.2..5")
        for name in ("roll", "pitch", "yaw"):
            if abs(getattr(self, name) or 0.0) > 0.5:
                raise ValueError(f"a camera's {name} is {getattr(self, name)} rad, not within 0.5")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One drive of N frames.

    time (N,) s; world_from_camera (N, 4, 4); both NaN where they are not known. `velocity` (N, 3)
    m/s in the world and `car_speed` (N,) m/s, as the car itself measured it, where there are any.
    `images(frames)` yields, for rising frame numbers, RGB pixels, or a Fault. `depth(frame)` is
    planar metres (H, W) of the same camera, NaN unknown, or a Fault; None without measured depth.
    `source` says in words what it is.
    """

    name: str
    file: Path
    pose_file: Path
    optics: Optics
    mount: Mount
    time: Float[np.ndarray, " frames"]
    world_from_camera: Float[np.ndarray, "frames 4 4"]
    images: Callable[[Sequence[int]], Iterator[Pixels | Fault]]
    velocity: Float[np.ndarray, "frames 3"] | None = None
    car_speed: Float[np.ndarray, " frames"] | None = None
    depth: Callable[[int], Depth | Fault] | None = None
    source: str = ""
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.time)
