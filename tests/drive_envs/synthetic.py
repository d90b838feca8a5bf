"""Recordings made without a simulator: a textured plane, seen by the real cameras, with depth."""

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch

from drive_envs.camera import cameras
from drive_envs.frames import encode_depth, encode_image
from drive_envs.geometry import matrix_from_planar, quaternion_from_matrix
from drive_envs.path import RecordedPath
from drive_envs.plan import STEP
from drive_envs.segment import Segment

SKY_COLOUR = np.array([150, 190, 230], np.uint8)


def arc_path(speed=12.0, curvature=0.004, num_rows=130, desire=()):
    """Drive a circle at constant speed; `desire` is {row: value} as pairs."""
    time = torch.arange(num_rows, dtype=torch.float64) * STEP
    yaw = speed * curvature * time
    if curvature:
        x, y = yaw.sin() / curvature, (1 - yaw.cos()) / curvature
    else:
        x, y = speed * time, 0 * time
    wish = torch.zeros(num_rows, dtype=torch.int64)
    for row, value in desire:
        wish[row] = value
    poses = torch.stack([x, y, yaw], -1)
    return RecordedPath(time=time, poses=poses, speed=torch.full_like(time, speed), desire=wish)


def winding_path(num_rows=130, speed=12.0):
    """Drive a road whose curvature swings between +-0.01, at a speed that varies."""
    substeps = 200
    time = np.arange((num_rows - 1) * substeps + 1) * STEP / substeps
    fine_speed = speed + 2.0 * np.sin(0.3 * time)
    curvature = 0.01 * np.sin(0.5 * time)

    def integrated(values):
        steps = (values[1:] + values[:-1]) / 2 * STEP / substeps
        return np.concatenate([[0.0], np.cumsum(steps)])

    yaw = 1.0 + integrated(fine_speed * curvature)
    x, y = integrated(fine_speed * np.cos(yaw)), integrated(fine_speed * np.sin(yaw))
    rows = torch.from_numpy(np.stack([time, x, y, yaw, fine_speed], -1)[::substeps].copy())
    return RecordedPath(
        time=rows[:, 0],
        poses=rows[:, 1:4].clone(),
        speed=rows[:, 4],
        desire=torch.zeros(num_rows, dtype=torch.int64),
    )


def stopping_path(curvature=0.0, wait=4.0, num_rows=120):
    """Drive a circle at 8 m/s, stand from row 40 on for `wait` s, and be as fast 8 s later."""
    substeps = 20
    time = np.arange((num_rows - 1) * substeps + 1) * STEP / substeps
    speed = np.interp(time, [4.0, 8.0, 8.0 + wait, 16.0 + wait], [8.0, 0.0, 0.0, 8.0])
    station = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2 * STEP / substeps)])
    yaw = curvature * station
    x = station * np.sinc(yaw / (2 * np.pi)) * np.cos(yaw / 2)
    y = station * np.sinc(yaw / (2 * np.pi)) * np.sin(yaw / 2)
    rows = torch.from_numpy(np.stack([time, x, y, yaw, speed], -1)[::substeps].copy())
    return RecordedPath(
        time=rows[:, 0],
        poses=rows[:, 1:4].clone(),
        speed=rows[:, 4],
        desire=torch.zeros(num_rows, dtype=torch.int64),
    )


def texture(x, y):
    """Colour the ground at world (x, y): checks of 1.5 m on soft stripes, uint8 (..., 3)."""
    checks = (np.floor(x / 1.5) + np.floor(y / 1.5)) % 2
    red = 90 + 60 * checks
    green = 110 + 40 * np.sin(0.7 * x)
    blue = 100 + 40 * np.cos(0.9 * y)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def view(camera, pose):
    """Render the plane from a planar pose: uint8 (3, H, W) and planar depth (H, W) m, sky inf."""
    v, u = np.mgrid[: camera.height, : camera.width] + 0.5
    right = (u - camera.center_u) / camera.focal
    down = (v - camera.center_v) / camera.focal
    with np.errstate(divide="ignore"):
        depth = np.where(down > 0, camera.mount_height / down, np.inf)
    depth[depth > 300] = np.inf
    forward = np.where(np.isfinite(depth), depth, 0.0)
    x, y, yaw = (float(value) for value in pose)
    left = -right * forward
    ground = texture(
        x + np.cos(yaw) * forward - np.sin(yaw) * left,
        y + np.sin(yaw) * forward + np.cos(yaw) * left,
    )
    ground = cv2.GaussianBlur(ground, (3, 3), 0)
    image = np.where(np.isfinite(depth)[..., None], ground, SKY_COLOUR)
    return np.ascontiguousarray(image.transpose(2, 0, 1)), depth


def segment_from_path(
    path, name="synthetic", width=128, height=64, split="train", depth=True, sensors=None
):
    """Record a drive along a path over the textured plane, with `sensors` if they are given."""
    views = sensors or cameras(width, height)
    images = {camera: [] for camera in views}
    depths = {camera: [] for camera in views}
    for pose in path.poses:
        for camera, optics in views.items():
            image, metres = view(optics, pose)
            images[camera].append(encode_image(image))
            depths[camera].append(encode_depth(metres) if depth else None)
    yaw = path.poses[:, 2]
    zero = torch.zeros_like(yaw)
    velocity = torch.stack([path.speed * yaw.cos(), path.speed * yaw.sin(), zero], -1)
    return Segment(
        name=name,
        split=split,
        cameras=views,
        time=path.time.numpy(),
        position=torch.cat([path.poses[:, :2], zero[:, None]], -1).numpy(),
        quaternion=quaternion_from_matrix(matrix_from_planar(path.poses)).numpy(),
        velocity=velocity.numpy(),
        desire=path.desire.numpy().astype(np.int8),
        valid=np.ones(len(path), bool),
        images=images,
        depths=depths,
    )


def make_segment(**options):
    """Record 100 frames of a gentle left curve; `options` as of `segment_from_path`."""
    return segment_from_path(arc_path(num_rows=100), **options)


def damage(path, group, column):
    """Turn over one byte in the middle of a column of a row group."""
    found = pq.ParquetFile(path).metadata.row_group(group)
    chunks = [found.column(i) for i in range(found.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(damaged)
