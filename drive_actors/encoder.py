"""From one camera image to a vector that still knows where things are.

Overlapping patches four pixels apart (the stem of Xie et al. 2021, "SegFormer": on a CPU a layer
at half size takes as long as all behind it), strided convolutions, then the small grid that is
left, 1/16 of the image each way, is flattened, not pooled: where a lane line is, is the message.
No batch statistics anywhere, so that an actor's 16 frames and a learner's 500 give the same
features. `drive_actors.fastvit` is another network for the same place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

STRIDE = 16  # image pixels to a cell of the last grid
CHUNK = 64  # images at once on a CPU, so that a layer's output stays in the cache

Images = UInt8[Tensor, "batch 3 height width"]
Outputs = Float[Tensor, "batch outputs"]


@dataclass(frozen=True, kw_only=True)
class Convolutional:
    """`Encoder`; how wide its layers are is the policy's `channels`."""

    kind: Literal["convolutional"] = "convolutional"


def keep_variance(module: nn.Module) -> None:
    """Initialise convolutions after He et al. (2015), without bias; a residual begins as nothing.

    PyTorch's own start shrinks the signal in every layer below the biases: after the fourth, 99.5 %
    of a feature's power was the same for all images, and the bottleneck has unit power to spend.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        assert module.bias is not None
        nn.init.zeros_(module.bias)
    if isinstance(module, Residual):
        nn.init.zeros_(module.second.weight)


class Residual(nn.Module):
    """Two 3x3 convolutions beside an identity, half as wide between them."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_channels, num_channels // 2, 3, padding=1)
        self.second = nn.Conv2d(num_channels // 2, num_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        return x + self.second(self.first(x.relu()).relu())


class Encoder(nn.Module):
    """(batch, 3, height, width) uint8 -> (batch, num_outputs); rows above `top` are not read."""

    def __init__(
        self, width: int, height: int, channels: tuple[int, int, int], *, top: int = 0
    ) -> None:
        super().__init__()
        self.width, self.height, self.top = width, height, top
        first, second, third = channels
        self.layers = nn.Sequential(
            nn.Conv2d(3, first, 7, stride=4, padding=3),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            Residual(third),
            nn.ReLU(inplace=True),
            nn.Conv2d(third, third // 2, 1),
            nn.Flatten(),
        )
        self.apply(keep_variance)
        self.num_outputs = third // 2 * ceil(width / STRIDE) * ceil((height - top) / STRIDE)

    def forward(self, image: Images) -> Outputs:
        read = rows_read(image, self.width, self.height, self.top)
        dtype = input_dtype(self, image.device)
        return in_parts(lambda part: self.layers(normalized(part, dtype)), read)


def rows_read(
    image: Images, width: int, height: int, top: int
) -> UInt8[Tensor, "batch 3 rows width"]:
    """Leave out the rows above `top`; ValueError when images have another size than agreed."""
    if image.shape[2:] != (height, width):
        raise ValueError(
            f"images are {image.shape[3]} x {image.shape[2]} pixels, but the policy reads "
            f"{width} x {height}: set the environment's width and height to these"
        )
    return image[:, :, top:]


def input_dtype(network: nn.Module, device: torch.device) -> torch.dtype:
    """Return the precision in which images enter a network."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(network.parameters()).dtype


def in_parts(encode: Callable[[Images], Outputs], image: Images) -> Outputs:
    """Encode images, on a CPU a few at a time."""
    size = CHUNK if image.device.type == "cpu" else len(image)
    return torch.cat([encode(part) for part in image.split(size)])


def normalized(image: Images, dtype: torch.dtype) -> Float[Tensor, "batch 3 height width"]:
    """Bring pixels into [-2, 2), grey to 0, channels last. Exact even in bfloat16."""
    return image.to(dtype, memory_format=torch.channels_last).sub_(128).div_(64)
