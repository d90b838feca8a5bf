"""Drives written in the layouts of real ones: a camera, not quite level, over a textured plane.

The car drives a winding road at 10 m/s; its camera is 1.5 m ahead of the rear axle, pitched and
turned on its mount, and filmed in the same texture as `synthetic`, so that what an importer makes
can be compared with what the driver's cameras see there.
"""

import importlib.util
import json
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.stream import VideoStream
from scipy.spatial.transform import Rotation

WIDTH, HEIGHT, FOCAL = 194, 146, 910 * 194 / 1164
AHEAD, SPEED = 1.5, 10.0
AXES = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
ORIGIN = np.radians([49.0, 8.4])  # latitude and longitude
WALL = 60.0  # m in the world's x: where the lidar's points on something upright are


def _synthetic():
    path = Path(__file__).with_name("synthetic.py")
    spec = importlib.util.spec_from_file_location("synthetic_of_real", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


synthetic = _synthetic()


class Drive:
    """What really happened: `ego` (N, 4, 4) below the camera, `camera` (N, 4, 4), `time` (N,)."""

    def __init__(self, num_frames=160, rate=20.0, height=1.22, pitch=0.03, yaw=-0.02, roll=0.0):
        self.time = np.arange(num_frames) / rate
        fine = np.arange(num_frames * 50) / (50 * rate)
        heading = 0.25 * np.sin(0.9 * fine)
        x = np.cumsum(SPEED * np.cos(heading)) / (50 * rate)
        y = np.cumsum(SPEED * np.sin(heading)) / (50 * rate)
        pose = np.stack([x, y, heading], -1)[::50]
        self.ego = np.tile(np.eye(4), (num_frames, 1, 1))
        self.ego[:, :3, :3] = Rotation.from_euler("z", pose[:, 2:]).as_matrix()
        self.ego[:, 0, 3] = pose[:, 0] + AHEAD * np.cos(pose[:, 2])
        self.ego[:, 1, 3] = pose[:, 1] + AHEAD * np.sin(pose[:, 2])
        mount = np.eye(4)
        mount[:3, :3] = Rotation.from_euler("ZYX", [yaw, pitch, roll]).as_matrix() @ AXES
        mount[2, 3] = height
        self.camera = self.ego @ mount
        self.velocity = np.gradient(self.ego[:, :3, 3], self.time, axis=0)

    def rays(self):
        v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        return np.stack([(u - WIDTH / 2) / FOCAL, (v - HEIGHT / 2) / FOCAL, np.ones_like(u)], -1)

    def depth(self, frame):
        """Planar depth of the plane z = 0, inf above it."""
        down = -(self.rays() @ self.camera[frame, :3, :3].T)[..., 2]
        with np.errstate(divide="ignore"):
            z = np.where(down > 1e-6, self.camera[frame, 2, 3] / down, np.inf)
        return np.where(z > 300, np.inf, z)

    def image(self, frame):
        """RGB (H, W, 3)."""
        z = self.depth(frame)
        points = self.rays() * np.where(np.isfinite(z), z, 0)[..., None]
        world = points @ self.camera[frame, :3, :3].T + self.camera[frame, :3, 3]
        colour = synthetic.texture(world[..., 0], world[..., 1])
        colour = cv2.GaussianBlur(colour, (3, 3), 0)
        return np.where(np.isfinite(z)[..., None], colour, synthetic.SKY_COLOUR)


def write_video(path, images, codec="libx265", form="hevc", rate=20):
    """Encode pictures without frames that depend on later ones, a key frame every ten."""
    options = {
        "libx265": {"x265-params": "bframes=0:keyint=10:min-keyint=10:crf=12:log-level=none"},
        "libx264": {"crf": "12", "g": "10"},
    }
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=options[codec])
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def packets(path):
    """Return (position in the file, size) of each packet, in the order of the file."""
    with av.open(str(path)) as container:
        demuxed = container.demux(container.streams.video[0])
        return [(packet.pos, packet.size) for packet in demuxed if packet.size]


def packet_of(path, frame):
    """Return which packet a frame of a video with time stamps is in."""
    with av.open(str(path)) as container:
        demuxed = container.demux(container.streams.video[0])
        stamps = [packet.pts for packet in demuxed if packet.size and packet.pts is not None]
    return stamps.index(sorted(stamps)[frame])


def write_comma(folder, drive):
    """Write a minute of comma2k19, short."""
    poses, can = folder / "global_pose", folder / "processed_log" / "CAN" / "car_speed"
    poses.mkdir(parents=True)
    can.mkdir(parents=True)
    write_video(folder / "video.hevc", [drive.image(i) for i in range(len(drive.time))])
    lat, lon = ORIGIN
    up = np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    east = np.array([-np.sin(lon), np.cos(lon), 0])
    turn = np.stack([east, np.cross(up, east), up], -1)
    radius = 6378137 / np.sqrt(1 - 0.00669437999014 * np.sin(lat) ** 2)
    origin = radius * up * [1, 1, 1 - 0.00669437999014]
    device = drive.camera[:, :3, :3] @ np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0.0]])
    quaternion = Rotation.from_matrix(turn @ device).as_quat()[:, [3, 0, 1, 2]]
    for name, array in {
        "frame_times": drive.time + 1000.0,
        "frame_gps_times": np.stack([np.full(len(drive.time), 2012.0), drive.time], -1),
        "frame_positions": drive.camera[:, :3, 3] @ turn.T + origin,
        "frame_orientations": quaternion,
        "frame_velocities": drive.velocity @ turn.T,
    }.items():
        save(poses / name, array)
    save(can / "t", np.arange(1000, 1010, 0.1))
    save(can / "value", np.full((100, 1), SPEED))
    return folder


def save(path, array):
    """Write a NumPy file whose name has no suffix."""
    with path.open("wb") as file:
        np.save(file, array)


def write_kitti(folder, drive):
    """Write a KITTI raw drive with its calibration beside it; the lidar hangs above the camera."""
    date, scale = folder / "2011_09_26", np.cos(ORIGIN[0])
    root = date / "2011_09_26_drive_0001_sync"
    for part in ("image_02/data", "oxts/data", "velodyne_points/data"):
        (root / part).mkdir(parents=True)
    camera_from_velodyne = np.eye(4)
    camera_from_velodyne[:3, :3] = AXES.T
    camera_from_velodyne[:3, 3] = [0.0, -0.08, -0.27]
    velodyne_from_imu = np.eye(4)
    velodyne_from_imu[:3, 3] = [-0.8, 0.3, -0.8]
    # P_rect shifts the colour camera, K^-1 P[:, 3], from the rectified one.
    project = np.array([[FOCAL, 0, WIDTH / 2 - 0.5, 0.06 * FOCAL], [0, FOCAL, HEIGHT / 2 - 0.5, 0]])
    project = np.vstack([project, [0, 0, 1, 0.0]])
    shift = np.eye(4)
    shift[:3, 3] = np.linalg.inv(project[:, :3]) @ project[:, 3]
    camera_from_velodyne = shift @ camera_from_velodyne
    unshifted = np.linalg.inv(shift) @ camera_from_velodyne
    rigid = {"calib_velo_to_cam": unshifted, "calib_imu_to_velo": velodyne_from_imu}
    for name, matrix in rigid.items():
        turn, move = (" ".join(map(str, m.ravel())) for m in (matrix[:3, :3], matrix[:3, 3]))
        text = f"calib_time: 15-Mar-2012 11:37:16\nR: {turn}\nT: {move}\n"
        (date / f"{name}.txt").write_text(text)
    numbers = " ".join(map(str, project.ravel()))
    eye = " ".join(map(str, np.eye(3).ravel()))
    (date / "calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012\nR_rect_00: {eye}\nP_rect_02: {numbers}\nP_rect_03: {numbers}\n"
    )
    world_from_imu = drive.camera @ camera_from_velodyne @ velodyne_from_imu
    start = datetime(2011, 9, 26, 13, 2, 25)
    stamps = [start + timedelta(seconds=float(second)) for second in drive.time]
    lines = [f"{stamp:%Y-%m-%d %H:%M:%S.%f}000" for stamp in stamps]
    (root / "image_02" / "timestamps.txt").write_text("\n".join(lines) + "\n")
    for frame, pose in enumerate(world_from_imu):
        east = pose[0, 3] / scale / 6378137 + ORIGIN[1]
        north = pose[1, 3] / scale / 6378137 + np.log(np.tan(np.pi / 4 + ORIGIN[0] / 2))
        lat = 2 * np.arctan(np.exp(north)) - np.pi / 2
        yaw, pitch, roll = Rotation.from_matrix(pose[:3, :3]).as_euler("ZYX")
        packet = np.zeros(30)
        packet[:6] = [np.degrees(lat), np.degrees(east), 100 + pose[2, 3], roll, pitch, yaw]
        packet[[7, 6, 10]] = drive.velocity[frame]
        words = " ".join(map(repr, packet.tolist()))
        (root / "oxts" / "data" / f"{frame:010d}.txt").write_text(words)
        picture = cv2.cvtColor(drive.image(frame), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(root / "image_02" / "data" / f"{frame:010d}.png"), picture)
        scan = _scan(drive, frame, np.linalg.inv(camera_from_velodyne))
        scan.astype(np.float32).tofile(root / "velodyne_points" / "data" / f"{frame:010d}.bin")
    return date


def _scan(drive, frame, velodyne_from_camera):
    """Points where every third pixel of every third row sees the ground."""
    z = drive.depth(frame)[::3, ::3]
    near = z < 60
    points = drive.rays()[::3, ::3][near] * z[near][:, None]
    points = points @ velodyne_from_camera[:3, :3].T + velodyne_from_camera[:3, 3]
    return np.concatenate([points, np.zeros((len(points), 1))], -1)


def write_plain(folder, drive, *, video=False, depth=False, poses="poses.csv", height=True):
    """Write a plain drive: pictures or a video, poses as CSV, Parquet or JSON, a camera."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [drive.image(i) for i in range(len(drive.time))]
    if video:
        write_video(folder / "video.mp4", images, "libx264", "mp4")
    else:
        (folder / "images").mkdir()
        for number, image in enumerate(images):
            path = folder / "images" / f"{number:04d}.png"
            cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if depth:
        (folder / "depth").mkdir()
        for number in range(len(images)):
            z = drive.depth(number)
            code = np.where(np.isfinite(z), z * 100, 0).clip(0, 65535).round().astype(np.uint16)
            cv2.imwrite(str(folder / "depth" / f"{number:04d}.png"), code)
    camera = {"fx": FOCAL, "fy": FOCAL, "cx": WIDTH / 2 - 0.5, "cy": HEIGHT / 2 - 0.5}
    if height:
        camera["height"] = float(drive.camera[0, 2, 3])
    (folder / "camera.json").write_text(json.dumps(camera))
    write_poses(folder / poses, drive.time, drive.camera)
    return folder


def write_poses(path, time, camera, **columns):
    """Write poses as the suffix says: quaternions in CSV, matrices in Parquet and JSON."""
    if path.suffix == ".json":
        frames = [
            {"t": float(t), "pose": pose.tolist()} for t, pose in zip(time, camera, strict=True)
        ]
        path.write_text(json.dumps({"frames": frames}))
        return
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    table = {"time": time, **columns}
    if path.suffix == ".parquet":
        for row in range(3):
            table |= {f"m{row}{column}": camera[:, row, column] for column in range(4)}
        pq.write_table(pa.table(table), path)
        return
    quaternion = Rotation.from_matrix(camera[:, :3, :3]).as_quat()
    table |= dict(zip("xyz", camera[:, :3, 3].T, strict=True))
    table |= dict(zip(("qx", "qy", "qz", "qw"), quaternion.T, strict=True))
    pyarrow.csv.write_csv(pa.table(table), path)
