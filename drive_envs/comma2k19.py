"""comma2k19 (Schafer et al., 2018): minutes of motorway, one camera, poses in ECEF.

A drive is a folder with `video.hevc` (20 Hz), `global_pose/frame_{times,positions,orientations,
velocities}` (NumPy arrays without a suffix, one row a frame) and, if it is there, the speed that
the car measured, `processed_log/CAN/{car_speed,speed}/{t,value}`. Orientations are Hamilton
quaternions (w, x, y, z); their rotation matrix takes the device's axes, forward, right and down, to
ECEF (that is how the dataset's own utils/camera.py uses them, whatever its README's sentence
says), so that the camera's axes, right, down, forward, are a permutation of them. The camera is
utils/camera.py's: f = 910 pixels at 1164 x 874, the principal point in the middle.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from drive_envs.earth import ecef_from_enu
from drive_envs.recording import Mount, Optics, Recording, RecordingError
from drive_envs.video import Video

DEVICE_FROM_CAMERA = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
FOCAL, WIDTH = 910.0, 1164


@dataclass(frozen=True, kw_only=True)
class Comma2k19:
    """A folder of comma2k19: one minute, or any folder that holds several.

    height: m above the road at which the camera is mounted.
    """

    kind: Literal["comma2k19"] = "comma2k19"
    folder: Path = Path("comma2k19")
    height: float = 1.22


def comma_folders(folder: Path) -> list[Path]:
    """Find the minutes below a folder."""
    return sorted(
        video.parent
        for video in folder.rglob("video.hevc")
        if (video.parent / "global_pose").is_dir()
    )


def comma_recording(source: Comma2k19, folder: Path) -> Recording:
    """Open one minute."""
    poses = folder / "global_pose"
    time = _array(poses / "frame_times", (None,))
    position = _array(poses / "frame_positions", (len(time), 3))
    quaternion = _array(poses / "frame_orientations", (len(time), 4))
    velocity = _array(poses / "frame_velocities", (len(time), 3))
    video = Video(folder / "video.hevc", len(time))
    known = np.isfinite(position).all(axis=1) & np.isfinite(quaternion).all(axis=1)
    known &= (np.linalg.norm(quaternion, axis=1) > 0.5) & (np.linalg.norm(position, axis=1) > 1e6)
    if not known.any():
        raise RecordingError(poses / "frame_positions", "no poses")
    origin = position[known][0]
    enu_from_ecef = ecef_from_enu(origin).T
    matrix = np.full((len(time), 4, 4), np.nan)
    matrix[known] = np.eye(4)
    turn = Rotation.from_quat(quaternion[known][:, [1, 2, 3, 0]]).as_matrix()
    matrix[known, :3, :3] = enu_from_ecef @ turn @ DEVICE_FROM_CAMERA
    matrix[known, :3, 3] = (position[known] - origin) @ enu_from_ecef.T
    scale = video.width / WIDTH
    return Recording(
        name="-".join(folder.resolve().parts[-2:]),
        file=video.path,
        pose_file=poses,
        optics=Optics(
            width=video.width,
            height=video.height,
            focal_u=FOCAL * scale,
            focal_v=FOCAL * scale,
            center_u=video.width / 2,
            center_v=video.height / 2,
        ),
        mount=Mount(height=source.height),
        time=time,
        world_from_camera=matrix,
        velocity=velocity @ enu_from_ecef.T,
        car_speed=_car_speed(folder / "processed_log" / "CAN", time),
        images=video.frames,
        source=f"comma2k19 {folder.resolve().name}",
    )


def _car_speed(can: Path, time: np.ndarray) -> np.ndarray | None:
    for name in ("car_speed", "speed"):
        if (can / name / "t").exists() and (can / name / "value").exists():
            at = _array(can / name / "t", (None,))
            value = _array(can / name / "value", None).reshape(-1)
            if len(at) != len(value) or not len(at):
                raise RecordingError(can / name, "damaged log", "t and value differ in length")
            return np.interp(time, at, value, left=np.nan, right=np.nan)
    return None


def _array(path: Path, shape: tuple[int | None, ...] | None) -> np.ndarray:
    """Read a NumPy file; RecordingError when it is not there, damaged or of another shape."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise RecordingError(path, "missing file") from None
    except (OSError, ValueError, EOFError) as error:
        raise RecordingError(path, "damaged file", str(error)) from error
    fits = shape is None or (
        array.ndim == len(shape)
        and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    )
    if not fits or array.dtype.kind not in "fiu":
        wanted = "" if shape is None else f", not {shape}"
        raise RecordingError(path, "damaged file", f"{array.dtype} {array.shape}{wanted}")
    return array.astype(np.float64)
