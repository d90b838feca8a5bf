"""Images read at any place, averaged where they are finer than the pixels they end up in.

An image with r times as many pixels a radian as its target is averaged over windows of n x n of
its pixels, n = round(r), and read bilinearly between windows. A target pixel that covers whole
source pixels is exactly their mean; elsewhere reading softens by a fraction 1/r of a target pixel,
which is why a fine source looks alike wherever it is seen from.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

from drive_envs.camera import Camera, pixel_centers

Image = UInt8[Tensor, "batch 3 height width"]
Seen = UInt8[Tensor, "batch 3 rows columns"]
Color = Float[Tensor, "batch 3 rows columns"]


def window(source: Camera, target: Camera) -> int:
    """Return n: how many pixels of a source lie side by side in one of the target's."""
    return max(1, round(source.focal / target.focal))


def sliding_mean(image: Image, size: int) -> Color:
    """Average every window of size x size pixels; the result is `size` - 1 smaller each way."""
    mean = image.to(torch.float32)
    for dim in (2, 3):
        length = mean.shape[dim] - size + 1
        total = mean.narrow(dim, 0, length)
        for start in range(1, size):
            total = total + mean.narrow(dim, start, length)
        mean = total
    return mean.mul_(1 / size**2) if size > 1 else mean


def read(
    image: Image,
    u: Float[Tensor, "batch *columns"],
    v: Float[Tensor, "batch *columns"],
    size: int = 1,
) -> Float[Tensor, "batch 3 *columns"]:
    """Read images at pixels (u, v), as float in [0, 255]; beyond the border, the border."""
    windows = sliding_mean(image, size)
    height, width = windows.shape[2:]
    grid = torch.stack([u.flatten(1), v.flatten(1)], dim=-1)
    grid[..., 0].mul_(2 / width).add_((1 - size) / width - 1)
    grid[..., 1].mul_(2 / height).add_((1 - size) / height - 1)
    color = grid_sample(windows, grid[:, None], padding_mode="border", align_corners=False)
    return color.view(*color.shape[:2], *u.shape[1:])


def seen_by(target: Camera, image: Image, source: Camera) -> Seen:
    """Return what `target` sees of images of `source`, a camera in the same place."""
    u, v = pixel_centers(target, image.device)
    ratio = source.focal / target.focal
    u = (u - target.center_u) * ratio + source.center_u
    v = (v - target.center_v) * ratio + source.center_v
    shape = (len(image), target.height, target.width)
    color = read(image, u.expand(shape), v.expand(shape), window(source, target))
    return color.add_(0.5).to(torch.uint8)
