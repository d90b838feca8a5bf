"""Images read at any place, averaged where they are finer than the pixels they end up in.

An image with r times as many pixels a radian as its target is averaged over windows of n x n of
its pixels, n = round(r), and read bilinearly between windows. A target pixel that covers whole
source pixels is exactly their mean; elsewhere reading softens by a fraction 1/r of a target pixel,
which is why a fine source looks alike wherever it is seen from.

An image that is no finer than its target has nothing to spare, and may be read bicubically: sharper
(on real pixels LPIPS is a quarter less, for 0.3 dB), and with a rim of two pixels around what is
nearer than its surroundings, where bilinear reading has one.
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

from drive_envs import reprojection_loops
from drive_envs.camera import Camera, pixel_centers

Image = UInt8[Tensor, "batch 3 height width"]
Seen = UInt8[Tensor, "batch 3 rows columns"]
Color = Float[Tensor, "batch 3 rows columns"]

LARGEST_WINDOW = 11  # whose sum of bytes two bytes hold
PART_PIXELS = 1 << 17  # of images, at once on a CPU: their sums are read while the cache has them


def window(source: Camera, target: Camera) -> int:
    """Return n: how many pixels of a source lie side by side in one of the target's."""
    return max(1, round(source.focal / target.focal))


def sliding_sum(image: Image, size: int) -> Color:
    """Add up every window of size x size pixels; the result is `size` - 1 smaller each way."""
    if size == 1:
        return image.to(torch.float32)
    # Whole numbers of two bytes are half of what floats take to move.
    total = image.to(torch.int16 if size <= LARGEST_WINDOW else torch.int32)
    for dim in (2, 3):
        length = total.shape[dim] - size + 1
        part = total.narrow(dim, 0, length)
        for start in range(1, size):
            part = part + total.narrow(dim, start, length)
        total = part
    return total.to(torch.float32)


def read(
    image: Image,
    u: Float[Tensor, "batch *columns"],
    v: Float[Tensor, "batch *columns"],
    size: int = 1,
    *,
    is_sharp: bool = False,
) -> Float[Tensor, "batch 3 *columns"]:
    """Read images at pixels (u, v), as float in [0, 255]; beyond the border, the border.

    is_sharp: bicubically where no windows are averaged.
    """
    count = max(1, PART_PIXELS // image[0, 0].numel()) if image.device.type == "cpu" else len(image)
    parts = zip(
        *(values.split(count) for values in (image, u.flatten(1), v.flatten(1))), strict=True
    )
    color = torch.cat([read_part(a, b, c, size, is_sharp=is_sharp) for a, b, c in parts])
    return color.view(*color.shape[:2], *u.shape[1:])


def read_rounded(
    images: UInt8[Tensor, "batch source 3 height width"],
    source: int,
    u: Float[Tensor, "batch column"],
    v: Float[Tensor, "batch column"],
    factor: float = 1.0,
    size: int = 1,
    *,
    is_sharp: bool = False,
) -> UInt8[Tensor, "batch 3 column"]:
    """Read images of one source as `read` does, at `factor` times (u, v), rounded."""
    is_cubic = is_sharp and size == 1
    if images.device.type == "cpu" and size <= LARGEST_WINDOW:
        color = torch.empty(len(images), 3, u.shape[1], dtype=torch.uint8)
        places = u.contiguous().numpy(), v.contiguous().numpy(), np.float32(factor)
        frames = images.contiguous().numpy()
        if is_cubic:
            reprojection_loops.read_sharp(frames, source, *places, color.numpy())
        else:
            reprojection_loops.read(frames, source, *places, size, color.numpy())
        return color
    color = read(images[:, source], u * factor, v * factor, size, is_sharp=is_sharp)
    return color.add_(0.5).to(torch.uint8)


def read_part(
    image: Image,
    u: Float[Tensor, "batch column"],
    v: Float[Tensor, "batch column"],
    size: int,
    *,
    is_sharp: bool,
) -> Float[Tensor, "batch 3 column"]:
    """Read as many images as fit the cache."""
    windows = sliding_sum(image, size)
    height, width = windows.shape[2:]
    # Complex numbers interleave u and v five times as fast as `torch.stack` does.
    grid = torch.view_as_real(
        torch.complex(
            (u * (2 / width)).add_((1 - size) / width - 1),
            (v * (2 / height)).add_((1 - size) / height - 1),
        )
    )
    is_cubic = is_sharp and size == 1
    mode = "bicubic" if is_cubic else "bilinear"
    color = grid_sample(
        windows, grid[:, None], mode=mode, padding_mode="border", align_corners=False
    )
    if is_cubic:
        color = color.clamp_(0, 255)  # cubics overshoot beside edges
    return color[:, :, 0].mul_(1 / size**2)


def seen_by(target: Camera, image: Image, source: Camera) -> Seen:
    """Return what `target` sees of images of `source`, a camera in the same place."""
    u, v = pixel_centers(target, image.device)
    ratio = source.focal / target.focal
    u = (u - target.center_u) * ratio + source.center_u
    v = (v - target.center_v) * ratio + source.center_v
    shape = (len(image), target.height, target.width)
    places = u.expand(shape).flatten(1), v.expand(shape).flatten(1)
    color = read_rounded(image[:, None], 0, *places, size=window(source, target))
    return color.view(len(image), 3, *shape[1:])
