"""The pinhole camera: x right, y down, z forward (OpenCV), pixels (u, v) from the top-left corner.

    u = f x / z + c_u,    v = f y / z + c_v

Pixel i covers [i, i + 1), so its centre is at i + 0.5, and intrinsics scale linearly with size.
Depth is planar: z in metres, infinite in the sky. Lens distortion is unknown here.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, isfinite, sin

import torch
from jaxtyping import Float
from torch import Tensor

CAMERAS = ("narrow", "wide")  # of every car, in this order


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Intrinsics in pixels and the mount on the car.

    `mount_height` is metres above the road, `pitch` radians, positive nose down.
    """

    width: int
    height: int
    focal: float
    center_u: float
    center_v: float
    mount_height: float = 1.22
    pitch: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a camera needs at least one pixel, got {self.width} x {self.height}")
        if not (self.focal > 0 and isfinite(self.focal)):
            raise ValueError(f"the focal length must be positive pixels, got {self.focal}")

    def scaled(self, width: int, height: int) -> "Camera":
        """Return the same camera at another resolution of the same aspect ratio.

        Raises ValueError when width : height is not this camera's.
        """
        if width < 1 or width * self.height != height * self.width:
            raise ValueError(
                f"images {width} wide and {height} high do not have the camera's aspect ratio "
                f"{self.width}:{self.height}: choose a size such as "
                f"{self.width} x {self.height} or {self.width // 2} x {self.height // 2}"
            )
        scale = width / self.width
        return replace(
            self,
            width=width,
            height=height,
            focal=self.focal * scale,
            center_u=self.center_u * scale,
            center_v=self.center_v * scale,
        )

    def widened(self, margin: int) -> "Camera":
        """Return the same camera on a sensor that is `margin` pixels wider on either side."""
        if margin < 0:
            raise ValueError(f"a camera's margin is {margin} pixels; it must not be negative")
        return replace(self, width=self.width + 2 * margin, center_u=self.center_u + margin)

    @property
    def intrinsics(self) -> Float[Tensor, "3 3"]:
        """K with pixel = K point / z, float64."""
        return torch.tensor(
            [[self.focal, 0, self.center_u], [0, self.focal, self.center_v], [0, 0, 1]],
            dtype=torch.float64,
        )

    @property
    def ego_from_camera(self) -> Float[Tensor, "4 4"]:
        """The mount: the camera sits `mount_height` above the ego origin, float64."""
        c, s = cos(self.pitch), sin(self.pitch)
        return torch.tensor(
            [[0, -s, c, 0], [-1, 0, 0, 0], [0, -c, -s, self.mount_height], [0, 0, 0, 1]],
            dtype=torch.float64,
        )


def narrow(width: int = 256, height: int = 128) -> Camera:
    """The long-range camera of openpilot, scaled to `width` x `height`."""
    camera = Camera(width=256, height=128, focal=455.0, center_u=128.0, center_v=23.8)
    return camera.scaled(width, height)


def wide(width: int = 256, height: int = 128) -> Camera:
    """The wide-angle camera of openpilot, scaled to `width` x `height`."""
    camera = Camera(width=256, height=128, focal=227.5, center_u=128.0, center_v=75.9)
    return camera.scaled(width, height)


def cameras(width: int = 256, height: int = 128) -> dict[str, Camera]:
    """Both cameras by name, narrow first."""
    return {"narrow": narrow(width, height), "wide": wide(width, height)}


def recording_cameras(
    width: int = 256, height: int = 128, *, scale: int = 1, margin: int = 0
) -> dict[str, Camera]:
    """Both cameras on the sensors of recordings, which show more than a driver sees.

    width, height: of the driver's images. The sensor has `scale` times as many pixels in each
    direction, and `margin` of the driver's pixels more on either side: a frame seen from beside
    where it was recorded is then neither softer than the truth nor cut off.
    """
    if scale < 1:
        raise ValueError(f"a recording's scale is {scale}; it must be 1 or more")
    return {
        name: camera.scaled(scale * width, scale * height).widened(scale * margin)
        for name, camera in cameras(width, height).items()
    }


def project(camera: Camera, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 2"]:
    """Project camera-frame points in metres to pixels (u, v); NaN unless in front of the camera."""
    x, y, z = points.unbind(-1)
    z = torch.where(z > 0, z, torch.nan)
    u = camera.focal * x / z + camera.center_u
    v = camera.focal * y / z + camera.center_v
    return torch.stack([u, v], dim=-1)


def unproject(
    camera: Camera, depth: Float[Tensor, "*batch height width"]
) -> Float[Tensor, "*batch height width 3"]:
    """Lift the pixel centres of a planar depth map (..., H, W) in metres into the camera frame.

    Unknown depth (NaN) stays NaN; infinite depth gives points that are not finite.
    Raises ValueError when the depth map has another size than the camera.
    """
    if depth.shape[-2:] != (camera.height, camera.width):
        raise ValueError(
            f"a depth map of {depth.shape[-1]} x {depth.shape[-2]} pixels does not fit a camera of "
            f"{camera.width} x {camera.height}: scale the camera first (Camera.scaled)"
        )
    v, u = torch.meshgrid(
        torch.arange(camera.height, dtype=depth.dtype, device=depth.device) + 0.5,
        torch.arange(camera.width, dtype=depth.dtype, device=depth.device) + 0.5,
        indexing="ij",
    )
    x = (u - camera.center_u) / camera.focal * depth
    y = (v - camera.center_v) / camera.focal * depth
    return torch.stack([x, y, depth], dim=-1)


@lru_cache(maxsize=8)
def pixel_centers(camera: Camera, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return u (1, W) of the columns and v (H, 1) of the rows, float32."""
    u = torch.arange(camera.width, device=device) + 0.5
    v = torch.arange(camera.height, device=device) + 0.5
    return u[None], v[:, None]
