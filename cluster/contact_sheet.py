"""Frames of recordings side by side, with the path that was driven drawn on the road.

The path is the car's own later poses, seen by the camera: it lies on the road only if poses,
camera and mount agree. It does not know which frames to show.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from drive_envs.camera import CAMERAS, cameras
from drive_envs.drawing import GREEN, Picture, draw_views, road_pixels
from drive_envs.geometry import matrix_from_quaternion
from drive_envs.photometry import PhotometryConfig, develop, draw_looks, draw_places
from drive_envs.reprojective import recorded_images
from drive_envs.segment import Segment

SIGHT = 40  # rows of the path that are drawn
FAR = 3e4  # pixels: OpenCV draws no farther
SCALE = 3


def driver_views(segment: Segment, row: int, width: int, height: int) -> dict[str, np.ndarray]:
    """Return what both of a driver's cameras saw, uint8 (3, height, width)."""
    images = recorded_images(segment, [row], cameras(width, height))
    return {name: images[name][0] for name in CAMERAS}


def frame_with_path(segment: Segment, row: int, width: int = 128, height: int = 64) -> Picture:
    """Draw both cameras at a row, enlarged, with the path of the rows after it."""
    images = driver_views(segment, row, width, height)
    picture = draw_views(images, caption=f"{segment.name} row {row}", scale=SCALE)
    later = slice(row, row + SIGHT)
    pose = matrix_from_quaternion(
        torch.tensor(segment.position[later]), torch.tensor(segment.quaternion[later])
    )
    ahead = (torch.linalg.inv(pose[0]) @ pose)[:, :3, 3]
    for number, (_, camera) in enumerate(cameras(width, height).items()):
        enlarged = camera.scaled(width * SCALE, height * SCALE)
        pixels = road_pixels(enlarged, ahead)
        pixels = pixels[pixels.isfinite().all(-1)].clamp(-FAR, FAR).numpy()
        part = picture[:, number * enlarged.width : (number + 1) * enlarged.width]
        view = np.ascontiguousarray(part)
        points = (pixels * 2**4).round().astype(int)
        cv2.polylines(view, [points], False, GREEN, 2, cv2.LINE_AA, shift=4)
        part[:] = view
    return picture


def photometry_samples(
    segment: Segment,
    row: int,
    config: PhotometryConfig,
    rng: np.random.Generator,
    num: int,
    width: int = 128,
    height: int = 64,
) -> list[Picture]:
    """Draw one frame as it was, and as `num` random cameras would have shown it."""
    images = driver_views(segment, row, width, height)
    pictures = [draw_views(images, caption="as recorded", scale=SCALE)]
    looks = draw_looks(config, [rng] * num)
    for number in range(num):
        one = looks.pick(np.array([number]))
        seen = {
            name: develop(image[None], one, draw_places(rng, 1))[0]
            for name, image in images.items()
        }
        words = f"gain {one.gain.mean():.2f} blur {one.blur[0] ** 0.5:.2f} noise {one.noise[0]:.1f}"
        pictures.append(draw_views(seen, caption=words, scale=SCALE))
    return pictures


def sheet(pictures: Sequence[Picture], columns: int) -> bytes:
    """Put pictures of one size into a grid, as a PNG."""
    blank = np.zeros_like(pictures[0])
    padded = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [np.hstack(padded[i : i + columns]) for i in range(0, len(padded), columns)]
    done, png = cv2.imencode(".png", cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    assert done
    return png.tobytes()
