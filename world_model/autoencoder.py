"""A small convolutional autoencoder of both cameras together, eight pixels to one of the latent.

The two images of a frame are one picture of six channels: much of what one shows the other shows
too, so their latent is shared (as in later tokenizers of the paper's authors). The
encoder tells a mean and a log variance (a VAE); used as a tokenizer it gives the mean.

Beside the convolutions a linear map leads each patch of 8 x 8 pixels to its latent, and back. Set
to the patches' principal components (`start_linear`) it is, before any training, better than the
convolutions alone are after thousands of steps: they have the rest to learn, thin lines first.

Images are float in [-1, 1]. The module knows no losses.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

GROUP = 16  # channels that are normed together
STEM = 2  # pixels that are stacked into channels before the first convolution
MAX_LOG_VARIANCE = 10.0
FIRST_LOG_VARIANCE = -5.0  # of latents whose own variance is one
PATCH = 8  # pixels to one place of the latent

Pair = Float[Tensor, "batch camera 3 height width"]
Latent = Float[Tensor, "batch channel rows columns"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes.

    channels: at a half, a quarter and an eighth of the image's size. num_blocks: residual blocks
    at each. is_linear_too: whether there is a linear map beside the convolutions.
    """

    kind: Literal["own"] = "own"
    latent_channels: int = 32
    channels: tuple[int, int, int] = (32, 64, 128)
    num_blocks: int = 2
    is_linear_too: bool = True

    def __post_init__(self) -> None:
        if self.latent_channels < 1 or self.num_blocks < 1:
            raise ValueError(
                f"tokenizer.latent_channels is {self.latent_channels} and num_blocks "
                f"{self.num_blocks}; they must be 1 or more"
            )
        if any(number < 1 or number % GROUP for number in self.channels):
            raise ValueError(
                f"tokenizer.channels must be multiples of {GROUP}, got {self.channels}"
            )


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(channels // GROUP, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(channels // GROUP, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Autoencoder(nn.Module):
    """Encoder and decoder; see the module's docstring."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_channels = config.latent_channels
        half, quarter, eighth = config.channels
        pixels = 6 * STEM**2

        def blocks(channels: int) -> list[nn.Module]:
            return [ResidualBlock(channels) for _ in range(config.num_blocks)]

        self.encoder = nn.Sequential(
            nn.Conv2d(pixels, half, 3, padding=1),
            *blocks(half),
            nn.Conv2d(half, quarter, 4, stride=2, padding=1),
            *blocks(quarter),
            nn.Conv2d(quarter, eighth, 4, stride=2, padding=1),
            *blocks(eighth),
            nn.GroupNorm(eighth // GROUP, eighth),
            nn.SiLU(),
            nn.Conv2d(eighth, 2 * config.latent_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.latent_channels, eighth, 3, padding=1),
            *blocks(eighth),
            *doubled(eighth, quarter),
            *blocks(quarter),
            *doubled(quarter, half),
            *blocks(half),
            nn.GroupNorm(half // GROUP, half),
            nn.SiLU(),
            nn.Conv2d(half, pixels, 3, padding=1),
        )
        self.linear_in = self.linear_out = None
        if config.is_linear_too:
            self.linear_in = nn.Conv2d(6, config.latent_channels, PATCH, stride=PATCH)
            self.linear_out = nn.ConvTranspose2d(config.latent_channels, 6, PATCH, stride=PATCH)
        # A CPU decodes a tenth faster.
        convert_conv2d_weight_memory_format(self, torch.channels_last)

    def moments(self, images: Pair) -> tuple[Latent, Latent]:
        """Return mean and log variance of the latents."""
        stacked = "batch camera color (row p) (column q) -> batch (camera color p q) row column"
        x = self.encoder(rearrange(images, stacked, p=STEM, q=STEM))
        mean, log_variance = x.float().chunk(2, dim=1)
        if self.linear_in is not None:
            mean = mean + self.linear_in(images.flatten(1, 2)).float()
        return mean, log_variance.clamp(-3 * MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)

    def encode(self, images: Pair) -> Latent:
        """Return the likeliest latents."""
        return self.moments(images)[0]

    def decode(self, latents: Latent) -> Pair:
        """Return images, which may leave [-1, 1] a little."""
        spread = "batch (camera color p q) row column -> batch camera color (row p) (column q)"
        x = self.decoder(latents).float()
        x = rearrange(x, spread, camera=2, color=3, p=STEM, q=STEM)
        if self.linear_out is not None:
            x = x + self.linear_out(latents).float().unflatten(1, (2, 3))
        return x

    @torch.no_grad()
    def start_linear(self, images: Pair) -> None:
        """Begin with the principal components of some frames' patches, and with nothing else.

        Without a linear map there is nothing to be done.
        """
        if self.linear_in is None or self.linear_out is None:
            return
        patches = "batch camera color (row p) (column q) -> (batch row column) (camera color p q)"
        values = rearrange(images, patches, p=PATCH, q=PATCH)
        mean = values.unflatten(1, (6, -1)).mean((0, 2)).repeat_interleave(PATCH**2)
        variance, directions = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
        chosen = slice(-self.latent_channels, None)
        variance, directions = variance[chosen].clamp(min=1e-8).flip(0), directions[:, chosen]
        directions = directions.flip(1).T
        shape = self.latent_channels, 6, PATCH, PATCH
        whitened = directions / variance.sqrt()[:, None]
        set_layer(self.linear_in, whitened.view(shape), -whitened @ mean)
        unwhitened = directions * variance.sqrt()[:, None]
        set_layer(self.linear_out, unwhitened.view(shape), mean[:: PATCH**2])
        no_variance = torch.zeros(2 * self.latent_channels)
        no_variance[self.latent_channels :] = FIRST_LOG_VARIANCE
        zero = torch.zeros(())
        set_layer(self.encoder[-1], zero, no_variance)
        set_layer(self.decoder[-1], zero, zero)


def set_layer(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Give a convolution its weights."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    assert layer.bias is not None
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def doubled(channels: int, fewer: int) -> list[nn.Module]:
    """Make the layers that double an image's size."""
    return [nn.Conv2d(channels, 4 * fewer, 3, padding=1), nn.PixelShuffle(2)]
