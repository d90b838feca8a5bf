"""Pictures of driving: what the cameras saw, with the plan (green) and the teacher's (blue) on it.

Plans are drawn where they lie on the road, through each camera's own optics. Images are RGB, uint8
(height, width, 3), as video and picture files have them.
"""

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from torch import Tensor

from drive_envs.camera import CAMERAS, Camera, cameras, project
from drive_envs.plan import POSITION, STEP, TIMES

GREEN, BLUE, WHITE = (40, 220, 60), (50, 120, 255), (255, 255, 255)
STRIP = 24  # rows darkened behind the caption
FAR = 30_000.0  # pixels: beyond it OpenCV's fixed-point coordinates would overflow
MARKS = tuple(int((TIMES - second).abs().argmin()) for second in (1, 2, 4))

Pixels = UInt8[np.ndarray, "3 height width"]
Picture = UInt8[np.ndarray, "rows columns 3"]
Plan = Float[np.ndarray, "33 15"]


def draw_views(
    images: Mapping[str, Pixels],
    *,
    plan: Plan | None = None,
    teacher: Plan | None = None,
    teacher_valid: Bool[np.ndarray, "33"] | None = None,
    caption: str = "",
    scale: int = 4,
) -> Picture:
    """Put both cameras side by side, enlarged, with plans in SI units drawn into them."""
    views = []
    for name in CAMERAS:
        image = images[name]
        camera = cameras(image.shape[2], image.shape[1])[name]
        picture = cv2.resize(
            np.ascontiguousarray(image.transpose(1, 2, 0)),
            None,
            fx=scale,
            fy=scale,
            interpolation=cv2.INTER_CUBIC,
        )
        enlarged = camera.scaled(camera.width * scale, camera.height * scale)
        if teacher is not None:
            draw_plan(picture, enlarged, teacher, BLUE, teacher_valid)
        if plan is not None:
            draw_plan(picture, enlarged, plan, GREEN)
        views.append(picture)
    picture = np.concatenate(views, axis=1)
    if caption:
        picture[:STRIP] //= 3
        cv2.putText(
            picture, caption, (8, STRIP - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, WHITE, 1, cv2.LINE_AA
        )
    return picture


def draw_plan(
    picture: Picture,
    camera: Camera,
    plan: Plan,
    colour: tuple[int, int, int],
    valid: Bool[np.ndarray, "33"] | None = None,
) -> None:
    """Draw a plan onto the road of a picture, in place; dots are 1, 2 and 4 s ahead."""
    pixels = road_pixels(camera, torch.from_numpy(plan[:, POSITION]).double())
    if valid is not None:
        pixels[~torch.from_numpy(valid)] = torch.nan
    seen = pixels.isfinite().all(-1).numpy()
    if not seen.any():
        return
    fixed = (pixels.clamp(-FAR, FAR).nan_to_num() * 2**4).round().int().numpy()
    size = max(1, camera.height // 128)
    cv2.polylines(picture, [fixed[seen]], False, colour, size, cv2.LINE_AA, shift=4)
    for mark in MARKS:
        if seen[mark]:
            u, v = fixed[mark].tolist()
            cv2.circle(picture, (u, v), 32 * size, colour, -1, cv2.LINE_AA, shift=4)


def road_pixels(camera: Camera, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 2"]:
    """Project points of the ego frame to pixels; NaN for what is not in front of the camera."""
    camera_from_ego = torch.linalg.inv(camera.ego_from_camera)
    return project(camera, points @ camera_from_ego[:3, :3].T + camera_from_ego[:3, 3])


def caption(step: int, lateral_error: float, speed: float) -> str:
    """Say when, how far left of where it should be, and how fast."""
    return f"{step * STEP:4.1f} s  lateral {lateral_error:+.2f} m  {speed:4.1f} m/s"


def write_sheet(path: Path, pictures: Sequence[Picture], num: int = 3) -> None:
    """Write `num` pictures, evenly spread over all, below each other as one PNG."""
    shown = np.linspace(0, len(pictures) - 1, num).round().astype(int)
    sheet = np.concatenate([pictures[index] for index in shown])
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


def write_video(path: Path, pictures: Sequence[Picture], fps: int = 5) -> None:
    """Write an mp4, H.264 where this PyAV can encode it, else MPEG-4."""
    if not pictures:
        raise ValueError(f"{path}: a video needs at least one picture")
    rows, columns, _ = pictures[0].shape
    if rows % 2 or columns % 2:
        raise ValueError(f"{path}: pictures must have even sides, got {columns} x {rows}")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
        stream.bit_rate = 2_000_000
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def moving_image(tag: str, pictures: Sequence[np.ndarray]) -> Summary:
    """Encode pictures, uint8 (H, W, 3) at 5 Hz, as a GIF that plays in TensorBoard's image tab.

    `SummaryWriter.add_video` makes the same, but takes a package more.
    """
    images = [Image.fromarray(picture) for picture in pictures]
    encoded = io.BytesIO()
    duration = round(1000 * STEP)
    images[0].save(
        encoded, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0
    )
    image = Summary.Image(
        height=images[0].height,
        width=images[0].width,
        colorspace=3,
        encoded_image_string=encoded.getvalue(),
    )
    return Summary(value=[Summary.Value(tag=tag, image=image)])
