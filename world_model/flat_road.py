"""What the frame before shows from where the car has gone since, if the world is a flat road.

Between two frames the car moves as it was told. Of every place in the next image it is then known
where it lay in the last one, w = 1 / depth being (v - c_v) / (f h) below the horizon, 0 above:

    X = cos yaw - sin yaw s + w x,    Y = sin yaw + cos yaw s + w y,    s = -(u - c_u) / f
    u' = c_u - f Y / X,    v' = c_v + (v - c_v) / X

for a motion of (x, y, yaw). Lane lines are where they belong; what stands on the road is drawn as
if painted on it, what comes into view is drawn out from the border, and what is near is soft, as it
was X times as far away. The two cameras are at one place, so that the wide one's road is read from
the narrow one where this sees it, twice as sharply. A world model mends the rest (`dit`), and is
spared learning what geometry says.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

from drive_envs.camera import CAMERAS, Camera, cameras, pixel_centers
from drive_envs.geometry import compose, invert
from drive_envs.precision import Precision, autocast
from world_model.tokenizer import Tokenizer

NEAREST = 0.1  # of the distance ahead: what is passed on the way is taken from the border
SOFT = 1.1  # times as far away: then another camera is looked for, that has seen it more sharply

Images = UInt8[Tensor, "frame 2 3 height width"]
Latent = Float[Tensor, "frame channel rows columns"]
Motion = Float[Tensor, "frame 3"]  # x, y, yaw of the car as seen from the frame before


def moved_latents(
    tokenizer: Tokenizer, latents: Latent, motion: Motion, precision: Precision
) -> Latent:
    """Return the latents of what frames show from where the car has gone since."""
    with autocast(precision, latents.device.type):
        images = tokenizer.decode(latents)
        return tokenizer.encode(moved_images(images, motion)).float()


def motion_between(
    world_from_before: Float[Tensor, "frame 3"], world_from_now: Float[Tensor, "frame 3"]
) -> Motion:
    """Return how the car moved from poses to others."""
    return compose(invert(world_from_before), world_from_now).float()


def moved_images(images: Images, motion: Motion) -> Images:
    """Draw frames, both cameras', from where the car has gone since."""
    height, width = images.shape[-2:]
    views = cameras(width, height)
    narrow, wide = (images[:, index].float() for index in range(len(CAMERAS)))
    u, v, _ = source_pixels(views["narrow"], motion)
    narrow_moved = read(narrow, u, v)
    u, v, ahead = source_pixels(views["wide"], motion)
    wide_moved = read(wide, u, v)
    u, v = as_seen_by(views["narrow"], views["wide"], u, v)
    is_seen = (u > 1) & (u < width - 1) & (v > 1) & (v < height - 1) & (ahead > SOFT)
    wide_moved = torch.where(is_seen[:, None], read(narrow, u, v), wide_moved)
    moved = torch.stack([narrow_moved, wide_moved], dim=1)
    return moved.round_().clamp_(0, 255).to(torch.uint8)


def read(images: Float[Tensor, "frame 3 height width"], u: Tensor, v: Tensor) -> Tensor:
    """Read images between their pixels, and at their borders for what is beyond."""
    height, width = images.shape[-2:]
    grid = torch.stack([2 * u / width - 1, 2 * v / height - 1], dim=-1)
    return grid_sample(images, grid, "bicubic", padding_mode="border", align_corners=False)


def as_seen_by(camera: Camera, other: Camera, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return where a camera sees what another one at its place sees at (u, v)."""
    scale = camera.focal / other.focal
    return (
        camera.center_u + scale * (u - other.center_u),
        camera.center_v + scale * (v - other.center_v),
    )


def source_pixels(camera: Camera, motion: Motion) -> tuple[Tensor, Tensor, Tensor]:
    """Return u and v of where each pixel's centre lay a frame before, and how far ahead.

    All (frame, height, width). How far: X, in distances of today.
    """
    side, down = rays(camera, motion.device)
    w = down.clamp(min=0) / camera.mount_height
    x, y, yaw = motion.float()[:, :, None, None].unbind(1)
    ahead = (yaw.cos() - yaw.sin() * side + w * x).clamp(min=NEAREST)
    left = yaw.sin() + yaw.cos() * side + w * y
    u = camera.center_u - camera.focal * left / ahead
    v = camera.center_v + camera.focal * down / ahead
    return u, v, ahead


@lru_cache(maxsize=8)
def rays(camera: Camera, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how far to the left (1, W) and down (H, 1) each pixel looks, a metre ahead."""
    u, v = pixel_centers(camera, device)
    return -(u - camera.center_u) / camera.focal, (v - camera.center_v) / camera.focal
