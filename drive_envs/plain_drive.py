"""A drive of anyone's: a video or a folder of pictures, poses, a camera, and perhaps depth.

A drive is a folder with, under names that can be changed,

- `images`: a folder with a picture a frame, in the order of their names, or a video file;
- `poses.csv`, `.parquet` or `.json`: a row a frame. Columns of a table: `time` (s, or ISO dates),
  `x`, `y`, `z` (m) and `qx`, `qy`, `qz`, `qw`, or in place of both the twelve numbers `m00` ...
  `m23` (row, column) of a matrix. A JSON holds a list `frames` of objects, each with `time` and the
  4 x 4 matrix `world_from_camera`, which may lack its last row, or be flat, row by row. Row i is of
  frame i, unless there is a `frame` that says so. An empty cell is a pose that is not known;
- `camera.json`: `fx`, `fy`, `cx`, `cy` in pixels (0, 0 is the middle of the first one), of pictures
  without distortion; `height` of the camera above the road in m; perhaps `pitch` (nose down), `yaw`
  (left) and `roll` (right side down) in rad, which turn the car's axes into the camera's, and
  `body_from_camera`, 4 x 4, where the poses are of something else than the camera;
- a folder of depth maps, uint16 PNGs of planar metres times `depth_scale`, 0 unknown.

The world has z up, or y down (`up: "-y"`, as visual odometry has it).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from drive_envs.image_files import depth_from, images_from, picture_files, picture_size
from drive_envs.recording import Fault, Mount, Optics, Pixels, Recording, RecordingError
from drive_envs.video import Video

UP = {"z": np.eye(3), "-y": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])}
POSITION, QUATERNION = ("x", "y", "z"), ("qx", "qy", "qz", "qw")
MATRIX = tuple(f"m{row}{column}" for row in range(3) for column in range(4))


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A folder that is one drive, or whose folders are; what lies in it by which name.

    depth: folder of depth maps, or null. time, matrix: what a JSON calls them. offset: m, where the
    camera is in the frame of the poses (of a camera: right, down, forward). height: m above the
    road, in place of the camera file's.
    """

    kind: Literal["plain"] = "plain"
    folder: Path = Path("drives")
    images: str = "images"
    poses: str = "poses.csv"
    camera: str = "camera.json"
    depth: str | None = None
    depth_scale: float = 1000.0
    time: str = "time"
    matrix: str = "world_from_camera"
    up: Literal["z", "-y"] = "z"
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    height: float | None = None

    def __post_init__(self) -> None:
        if not self.depth_scale > 0:
            raise ValueError(f"depth_scale must be positive, got {self.depth_scale}")


def plain_folders(source: Plain) -> list[Path]:
    """Return the folder itself if it is a drive, else those in it that are."""
    within = sorted(source.folder.iterdir()) if source.folder.is_dir() else []
    return [
        folder
        for folder in (source.folder, *within)
        if (folder / source.poses).exists() and (folder / source.images).exists()
    ]


def plain_recording(source: Plain, folder: Path) -> Recording:
    """Open one drive."""
    images = folder / source.images
    if images.is_dir():
        files = picture_files(images)
        if not files:
            raise RecordingError(images, "no images")
        size, count = picture_size(files), len(files)
        read: Callable[[Sequence[int]], Iterator[Pixels | Fault]] = images_from(files, size)
    else:
        video = Video(images)
        size, count, read = (video.width, video.height), len(video), video.frames
    time, pose = _poses(source, folder / source.poses, count)
    camera = _json(folder / source.camera)
    depth = None
    if source.depth:
        maps = picture_files(folder / source.depth) if (folder / source.depth).is_dir() else []
        if len(maps) != count:
            raise RecordingError(folder / source.depth, f"{len(maps)} depth maps, {count} frames")
        depth = depth_from(maps, size, source.depth_scale)
    turned = np.eye(4)
    turned[:3, :3] = UP[source.up]
    return Recording(
        name=folder.resolve().name,
        file=images,
        pose_file=folder / source.poses,
        optics=_optics(camera, size, folder / source.camera),
        mount=_mount(camera, source.height, folder / source.camera),
        time=time,
        world_from_camera=turned @ pose @ _body_from_camera(camera, source, folder / source.camera),
        images=read,
        depth=depth,
        source=f"plain {folder.resolve().name}",
    )


def _poses(
    source: Plain, path: Path, count: int
) -> tuple[Float[np.ndarray, " frames"], Float[np.ndarray, "frames 4 4"]]:
    """Read time and pose of each frame, NaN where the file has none."""
    if path.suffix == ".json":
        frame, time, pose = _from_json(_json(path), source, path)
    else:
        frame, time, pose = _from_table(_table(path), path)
    if frame is None and len(time) != count:
        detail = f"{len(time)} poses, {count} frames; a column 'frame' says which is whose"
        raise RecordingError(path, "poses and frames differ in number", detail)
    frame = np.arange(count) if frame is None else _known_frames(frame, count, path)
    times, poses = np.full(count, np.nan), np.full((count, 4, 4), np.nan)
    times[frame], poses[frame] = time, pose
    return times, poses


def _known_frames(frame: np.ndarray, count: int, path: Path) -> np.ndarray:
    """Return the frames' numbers, which must be whole, known and different."""
    for row, number in enumerate(frame.tolist()):
        if not np.isfinite(number):
            raise RecordingError(path, "column 'frame' is wrong", f"it is empty in row {row}")
        if number % 1 or not 0 <= number < count:
            detail = f"{number:g} in row {row}; it counts 0 to {count - 1}, each once"
            raise RecordingError(path, "column 'frame' is wrong", detail)
    numbers, counts = np.unique(frame, return_counts=True)
    if (counts > 1).any():
        detail = f"{numbers[counts > 1][0]:g} is there more than once"
        raise RecordingError(path, "column 'frame' is wrong", detail)
    return frame.astype(int)


def _from_json(
    content: Mapping[str, Any], source: Plain, path: Path
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise RecordingError(path, "no list 'frames' in it")
    time, pose = np.full(len(frames), np.nan), np.full((len(frames), 4, 4), np.nan)
    for row, item in enumerate(frames):
        if not isinstance(item, dict):
            raise RecordingError(path, f"frame {row} is damaged", "it should be an object")
        for key in (source.time, source.matrix):
            if key not in item:
                keys = ", ".join(item)
                detail = f"it has {keys}; source.time and source.matrix name them"
                raise RecordingError(path, f"frame {row} has no '{key}'", detail)
        try:
            time[row] = np.nan if item[source.time] is None else _seconds(item[source.time])
            if item[source.matrix] is not None:
                pose[row] = _matrix(item[source.matrix])
        except (TypeError, ValueError) as error:
            raise RecordingError(path, f"frame {row} is damaged", str(error)) from error
    if not any("frame" in item for item in frames):
        return None, time, pose
    try:
        # None becomes NaN.
        return np.array([item.get("frame") for item in frames], float), time, pose
    except (TypeError, ValueError) as error:
        raise RecordingError(path, "a 'frame' is no number", str(error)) from error


def _seconds(value: Any) -> float:
    """Return a time in s; ISO dates count from 1970, in UTC if they do not say otherwise."""
    if not isinstance(value, str):
        return float(value)
    moment = datetime.fromisoformat(value)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _matrix(value: Any) -> Float[np.ndarray, "4 4"]:
    """Read a pose of 4 x 4 or 3 x 4 numbers, nested or row by row; ValueError for anything else."""
    given, matrix = np.array(value, float), np.eye(4)
    if given.shape not in ((4, 4), (3, 4), (16,), (12,)):
        shape = " x ".join(map(str, given.shape)) or "one"
        raise ValueError(f"a matrix of {shape} numbers, not 4 x 4, 3 x 4, 16 or 12")
    rows = given.reshape(-1, 4)
    for last in rows[3:]:
        if (abs(last - [0, 0, 0, 1]) > 1e-6).any():
            ends = ", ".join(f"{number:g}" for number in last)
            raise ValueError(f"the matrix ends with {ends}, not 0, 0, 0, 1: give it row by row")
    matrix[:3] = rows[:3]
    return matrix


def _from_table(table: pa.Table, path: Path) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    columns = {name: table[name] for name in table.column_names}

    def numbers(*names: str) -> np.ndarray:
        if missing := [name for name in names if name not in columns]:
            has = ", ".join(columns)
            raise RecordingError(path, f"no column {', '.join(missing)}", f"it has {has}")
        return np.stack([_numbers(columns[name], name, path) for name in names], axis=-1)

    pose = np.full((table.num_rows, 4, 4), np.nan)
    if MATRIX[0] in columns:
        pose[:, :3] = numbers(*MATRIX).reshape(-1, 3, 4)
    else:
        position, quaternion = numbers(*POSITION), numbers(*QUATERNION)
        known = np.isfinite(quaternion).all(axis=1)
        known &= np.linalg.norm(np.nan_to_num(quaternion), axis=1) > 0.5
        pose[known, :3, :3] = Rotation.from_quat(quaternion[known]).as_matrix()
        pose[:, :3, 3] = position
    pose[:, 3] = [0, 0, 0, 1]
    frame = numbers("frame")[:, 0] if "frame" in columns else None
    return frame, numbers("time")[:, 0], pose


def _numbers(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """Return a column's numbers, NaN where it is empty; of ISO dates, the seconds since 1970."""
    scale = 1.0
    try:
        if pa.types.is_timestamp(column.type):
            # Whole microseconds: as precise as seconds of this size can be told.
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
            scale = 1e-6
        return scale * column.cast(pa.float64()).to_numpy()
    except pa.ArrowException as error:
        detail = f"{column.type}: {error}"
        raise RecordingError(path, f"column '{name}' holds no numbers", detail) from error


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise RecordingError(path, "damaged poses", str(error)) from error


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordingError(path, "missing file") from None
    except (OSError, ValueError) as error:
        raise RecordingError(path, "damaged JSON", str(error)) from error
    if not isinstance(content, dict):
        raise RecordingError(path, "damaged JSON", "it should hold one object")
    return content


def _optics(camera: Mapping[str, Any], size: tuple[int, int], path: Path) -> Optics:
    values = [_number(camera, key, path) for key in ("fx", "fy", "cx", "cy")]
    given = camera.get("image_size", list(size))
    if list(given) != list(size):
        detail = f"of {given} pixels, the images are {list(size)}"
        raise RecordingError(path, "the camera is of another size", detail)
    if any(camera.get("distortion") or ()):
        raise RecordingError(path, "the images are distorted", "undistort them before")
    try:
        return Optics(
            width=size[0],
            height=size[1],
            focal_u=values[0],
            focal_v=values[1],
            center_u=values[2] + 0.5,
            center_v=values[3] + 0.5,
        )
    except ValueError as error:
        raise RecordingError(path, "impossible camera", str(error)) from error


def _mount(camera: Mapping[str, Any], height: float | None, path: Path) -> Mount:
    if height is None and "height" not in camera:
        detail = "m above the road: 'height' in it, or source.height"
        raise RecordingError(path, "the camera's height is not known", detail)
    angles = {key: _number(camera, key, path) for key in ("roll", "pitch", "yaw") if key in camera}
    try:
        return Mount(height=_number(camera, "height", path) if height is None else height, **angles)
    except ValueError as error:
        raise RecordingError(path, "impossible camera", str(error)) from error


def _body_from_camera(
    camera: Mapping[str, Any], source: Plain, path: Path
) -> Float[np.ndarray, "4 4"]:
    matrix = np.eye(4)
    if "body_from_camera" in camera:
        try:
            matrix = _matrix(camera["body_from_camera"])
        except (TypeError, ValueError) as error:
            raise RecordingError(path, "'body_from_camera' is no 4 x 4", str(error)) from error
    matrix[:3, 3] += source.offset
    return matrix


def _number(camera: Mapping[str, Any], key: str, path: Path) -> float:
    value = camera.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RecordingError(path, f"'{key}' should be a number", f"it is {value!r}")
    return float(value)
