"""From one camera image to a vector that still knows where things are.

Strided convolutions, each seeing all of the layer before, then the small grid that is left (1/16 of
the image each way) is flattened, not pooled: where a lane line is, is the whole message. No batch
statistics anywhere, so that an actor's 16 frames and a learner's 500 give the same features.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

STRIDE = 16  # image pixels to a cell of the last grid


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
    """Two 3x3 convolutions beside an identity."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.second = nn.Conv2d(num_channels, num_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        return x + self.second(self.first(x.relu()).relu())


class Encoder(nn.Module):
    """(batch, 3, height, width) uint8 -> (batch, num_outputs)."""

    def __init__(self, width: int, height: int, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth = channels
        self.layers = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(third, fourth, 3, stride=2, padding=1),
            Residual(fourth),
            nn.ReLU(inplace=True),
            nn.Conv2d(fourth, fourth // 2, 1),
            nn.Flatten(),
        )
        self.apply(keep_variance)
        self.num_outputs = fourth // 2 * (width // STRIDE) * (height // STRIDE)

    def forward(
        self, image: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch outputs"]:
        pixels = image.contiguous(memory_format=torch.channels_last).float()
        return self.layers(pixels / 64 - 2)
