"""KITTI raw, synchronised and rectified (Geiger et al., 2013): colour cameras, lidar and GPS/IMU.

A drive is a folder `DATE_drive_NUMBER_sync` with `image_02/data/*.png` (or 03), `image_02/
timestamps.txt`, `oxts/data/*.txt` and `velodyne_points/data/*.bin`; the three `calib_*.txt` lie in
the folder of the date above it. With the names of the development kit's readme,

    camera_from_imu = T_rect R_rect_00 (velo_to_cam) (imu_to_velo),  T_rect = K^-1 P_rect

world_from_imu comes from an oxts packet: latitude and longitude by Mercator's projection, true to
scale at the drive's first packet, altitude, and Rz(yaw) Ry(pitch) Rx(roll).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from math import atan2
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from drive_envs.earth import mercator
from drive_envs.image_files import images_from, picture_files, picture_size
from drive_envs.recording import Depth, Fault, Mount, Optics, Recording, RecordingError

LATITUDE, LONGITUDE, ALTITUDE, ROLL, PITCH, YAW, NORTH, EAST, UP = 0, 1, 2, 3, 4, 5, 6, 7, 10
NUM_VALUES = 30  # of a packet
CALIBRATION = ("calib_cam_to_cam.txt", "calib_velo_to_cam.txt", "calib_imu_to_velo.txt")


@dataclass(frozen=True, kw_only=True)
class KittiRaw:
    """A folder of KITTI raw: one drive, or a date or more with their drives.

    camera: 2 left, 3 right. height: m above the road at which the cameras are mounted.
    """

    kind: Literal["kitti-raw"] = "kitti-raw"
    folder: Path = Path("kitti")
    camera: Literal[2, 3] = 2
    height: float = 1.65


def kitti_folders(folder: Path) -> list[Path]:
    """Find the drives below a folder."""
    return sorted(oxts.parent for oxts in folder.rglob("oxts") if oxts.is_dir())


def kitti_recording(source: KittiRaw, folder: Path) -> Recording:
    """Open one drive."""
    images = folder / f"image_{source.camera:02d}"
    time = _times(images / "timestamps.txt")
    matrix, velocity = _poses(folder / "oxts" / "data", len(time))
    files = _by_number(images / "data", len(time), picture_files, ".png")
    if not any(file.exists() for file in files):
        raise RecordingError(images / "data", "no images")
    calibration = _calibration(folder.resolve().parent)
    project = calibration[f"P_rect_{source.camera:02d}"].reshape(3, 4)
    optics = _optics(project, picture_size(files))
    camera_from_velodyne, camera_from_imu = _extrinsics(calibration, project)
    imu_from_camera = np.linalg.inv(camera_from_imu)
    scans = _by_number(folder / "velodyne_points" / "data", len(time), _scan_files, ".bin")
    has_scans = any(scan.exists() for scan in scans)
    # The IMU's axes are the car's: the camera's right side hangs by so much below the horizontal.
    roll = -atan2(imu_from_camera[2, 0], np.hypot(imu_from_camera[0, 0], imu_from_camera[1, 0]))
    return Recording(
        name=folder.resolve().name,
        file=images,
        pose_file=folder / "oxts" / "data",
        optics=optics,
        mount=Mount(height=source.height, roll=roll),
        time=time,
        world_from_camera=matrix @ imu_from_camera,
        velocity=velocity,
        images=images_from(files, (optics.width, optics.height)),
        depth=_lidar(scans, camera_from_velodyne, optics) if has_scans else None,
        source=f"KITTI raw {folder.resolve().name}",
    )


def _times(path: Path) -> Float[np.ndarray, " frames"]:
    """Read one time a line, with nanoseconds, as seconds since the first."""
    if not path.exists():
        raise RecordingError(path, "missing file")
    times = []
    for number, line in enumerate(path.read_text().split("\n")):
        if not line.strip():
            continue
        try:
            whole, _, fraction = line.strip().partition(".")
            moment = datetime.strptime(whole, "%Y-%m-%d %H:%M:%S")
            times.append(moment.timestamp() + float(f"0.{fraction or 0}"))
        except ValueError as error:
            raise RecordingError(path, "damaged file", f"line {number + 1}: {line!r}") from error
    if not times:
        raise RecordingError(path, "no frames")
    return np.array(times) - times[0]


def _poses(
    folder: Path, count: int
) -> tuple[Float[np.ndarray, "frames 4 4"], Float[np.ndarray, "frames 3"]]:
    """Read world_from_imu and the velocity in the world; NaN for packets that are not there."""
    packets = np.full((count, NUM_VALUES), np.nan)
    for frame in range(count):
        path = folder / f"{frame:010d}.txt"
        if not path.exists():
            continue
        try:
            values = [float(word) for word in path.read_text().split()]
            if len(values) != NUM_VALUES:
                raise ValueError(f"{len(values)} values, not {NUM_VALUES}")
        except ValueError as error:
            raise RecordingError(path, "damaged packet", str(error)) from error
        packets[frame] = values
    known = np.isfinite(packets).all(axis=1)
    if not known.any():
        raise RecordingError(folder, "no poses")
    some = packets[known]
    matrix = np.full((count, 4, 4), np.nan)
    matrix[known] = np.eye(4)
    angles = some[:, [YAW, PITCH, ROLL]]
    matrix[known, :3, :3] = Rotation.from_euler("ZYX", angles).as_matrix()
    matrix[known, :2, 3] = mercator(some[:, LATITUDE], some[:, LONGITUDE])
    matrix[known, 2, 3] = some[:, ALTITUDE]
    matrix[known, :3, 3] -= matrix[known][0, :3, 3]
    return matrix, packets[:, [EAST, NORTH, UP]]


def _calibration(folder: Path) -> dict[str, np.ndarray]:
    """Read the three files; their own R and T get the file's name before them."""
    values = {}
    for name in CALIBRATION:
        path = folder / name
        if not path.exists():
            raise RecordingError(path, "missing calibration", "it lies in the folder of the date")
        for line in path.read_text().split("\n"):
            key, _, words = line.partition(":")
            try:
                numbers = np.array([float(word) for word in words.split()])
            except ValueError:
                continue  # the date of the calibration
            values[f"{name} {key}" if key in ("R", "T") else key] = numbers
    sizes = {"P_rect_02": 12, "P_rect_03": 12, "R_rect_00": 9}
    sizes |= {
        f"{name} {key}": size for name in CALIBRATION[1:] for key, size in (("R", 9), ("T", 3))
    }
    for key, size in sizes.items():
        if len(values.get(key, ())) != size:
            raise RecordingError(folder, "damaged calibration", f"{key} needs {size} numbers")
    return values


def _optics(project: Float[np.ndarray, "3 4"], size: tuple[int, int]) -> Optics:
    # KITTI counts pixels from their centres: the middle of the first one is 0.
    return Optics(
        width=size[0],
        height=size[1],
        focal_u=float(project[0, 0]),
        focal_v=float(project[1, 1]),
        center_u=float(project[0, 2]) + 0.5,
        center_v=float(project[1, 2]) + 0.5,
    )


def _extrinsics(
    calibration: dict[str, np.ndarray], project: Float[np.ndarray, "3 4"]
) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4 4"]]:
    """Return camera_from_velodyne and camera_from_imu of the rectified camera."""
    rigid = {}
    for name in CALIBRATION[1:]:
        rigid[name] = np.eye(4)
        rigid[name][:3, :3] = calibration[f"{name} R"].reshape(3, 3)
        rigid[name][:3, 3] = calibration[f"{name} T"]
    rectified = np.eye(4)
    rectified[:3, :3] = calibration["R_rect_00"].reshape(3, 3)
    shifted = np.eye(4)
    shifted[:3, 3] = np.linalg.inv(project[:, :3]) @ project[:, 3]
    camera_from_velodyne = shifted @ rectified @ rigid["calib_velo_to_cam.txt"]
    return camera_from_velodyne, camera_from_velodyne @ rigid["calib_imu_to_velo.txt"]


def _by_number(
    folder: Path, count: int, find: Callable[[Path], list[Path]], suffix: str
) -> list[Path]:
    """Return the file of each frame, by its number, and for one without where it should lie."""
    found = {path.stem: path for path in find(folder)} if folder.is_dir() else {}
    names = (f"{frame:010d}" for frame in range(count))
    return [found.get(name, folder / f"{name}{suffix}") for name in names]


def _scan_files(folder: Path) -> list[Path]:
    return list(folder.glob("*.bin"))


def _lidar(
    files: list[Path], camera_from_velodyne: Float[np.ndarray, "4 4"], optics: Optics
) -> Callable[[int], Depth | Fault]:
    """Return what projects a frame's scan into the camera: planar metres, NaN where none fell."""

    def read(frame: int) -> Depth | Fault:
        path = files[frame]
        if not path.exists():
            return Fault(cause="missing scan", file=path, first=frame, last=frame)
        values = np.fromfile(path, np.float32)
        if not len(values) or len(values) % 4 or not np.isfinite(values).all():
            return Fault(cause="damaged scan", file=path, first=frame, last=frame)
        points = values.reshape(-1, 4)[:, :3].astype(np.float64)
        x, y, z = (points @ camera_from_velodyne[:3, :3].T + camera_from_velodyne[:3, 3]).T
        ahead = z > 0.5
        x, y, z = x[ahead], y[ahead], z[ahead]
        u = np.floor(optics.focal_u * x / z + optics.center_u).astype(int)
        v = np.floor(optics.focal_v * y / z + optics.center_v).astype(int)
        inside = (u >= 0) & (u < optics.width) & (v >= 0) & (v < optics.height)
        depth = np.full((optics.height, optics.width), np.inf)
        np.minimum.at(depth, (v[inside], u[inside]), z[inside])
        return np.where(np.isfinite(depth), depth, np.nan)

    return read
