"""What a camera makes of the light: exposure, white balance, blur and noise, drawn for each scene.

    y = clip(gain (k * x) + sigma n)        per channel, in [0, 255], n ~ N(0, 1) per pixel

with k a separable blur (a, 1 - 2a, a), whose variance is 2a square pixels each way. A driver that
sees many kinds of softness and grain cannot read from them how far a picture was warped.

It does not know what is in the picture. Noise is cut out of one fixed sheet at places that are
drawn, which costs a tenth of drawing it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

SHEET = 1 << 21  # numbers in the sheet of noise
MAX_BLUR = 0.8  # pixels: a blur of three taps goes no further

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PhotometryConfig:
    """Ranges that are drawn from uniformly, once for each scene and camera alike.

    exposure: factor. white_balance: each channel's factor lies within 1 +- this. blur: pixels,
    standard deviation. noise: levels of 255, standard deviation.
    """

    exposure: Range = (1.0, 1.0)
    white_balance: float = 0.0
    blur: Range = (0.0, 0.0)
    noise: Range = (0.0, 0.0)

    def __post_init__(self) -> None:
        bounds = {"exposure": (0.1, 10.0), "blur": (0.0, MAX_BLUR), "noise": (0.0, 128.0)}
        for name, (least, most) in bounds.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(
                    f"photometry.{name} is ({low}, {high}); it must rise within [{least}, {most}]"
                )
        if not 0 <= self.white_balance < 1:
            raise ValueError(
                f"photometry.white_balance is {self.white_balance}; it must be in [0, 1)"
            )

    @property
    def is_neutral(self) -> bool:
        """Whether every picture stays as it is."""
        return self == PhotometryConfig()


class Looks(NamedTuple):
    """How the cameras of some scenes see: factors a channel, variance in square pixels, levels."""

    gain: Float[np.ndarray, "scenes 3"]
    blur: Float[np.ndarray, " scenes"]
    noise: Float[np.ndarray, " scenes"]

    def pick(self, scenes: Int[np.ndarray, " images"]) -> "Looks":
        """Return the looks of these scenes, one an image."""
        return Looks(*(part[scenes] for part in self))


def draw_looks(config: PhotometryConfig, rngs: list[np.random.Generator]) -> Looks:
    """Draw the look of one scene from each generator."""
    drawn = [
        (
            rng.uniform(*config.exposure) * (1 + config.white_balance * rng.uniform(-1, 1, 3)),
            rng.uniform(*config.blur) ** 2,
            rng.uniform(*config.noise),
        )
        for rng in rngs
    ]
    gain, blur, noise = zip(*drawn, strict=True)
    return Looks(np.stack(gain), np.array(blur), np.array(noise))


def draw_places(rng: np.random.Generator, num_images: int) -> Int[np.ndarray, " images"]:
    """Draw where in the sheet each image's noise begins."""
    return rng.integers(SHEET, size=num_images)


def develop(
    images: UInt8[np.ndarray, "images 3 height width"],
    looks: Looks,
    places: Int[np.ndarray, " images"],
) -> UInt8[np.ndarray, "images 3 height width"]:
    """Return the images as their cameras see them; `places` are those of `draw_places`."""
    light = torch.from_numpy(images).float()
    light = blurred(light, torch.from_numpy(looks.blur).float() / 2)
    light.mul_(torch.from_numpy(looks.gain).float()[:, :, None, None])
    size = light[0].numel()
    for image, place, noise in zip(light, places.tolist(), looks.noise.tolist(), strict=True):
        if noise:
            image.view(-1).add_(sheet(size)[place : place + size], alpha=noise)
    return light.add_(0.5).clamp_(0, 255).to(torch.uint8).numpy()


def blurred(light: Tensor, side: Float[Tensor, " images"]) -> Tensor:
    """Convolve rows and columns with (a, 1 - 2a, a), `side` being a; the border goes on."""
    if not side.any():
        return light
    side = side[:, None, None, None]
    for dim in (2, 3):
        length = light.shape[dim]
        around = light.narrow(dim, 0, length - 1) - light.narrow(dim, 1, length - 1)
        around.mul_(side)
        light = light.clone()
        light.narrow(dim, 1, length - 1).add_(around)
        light.narrow(dim, 0, length - 1).sub_(around)
    return light


@lru_cache(maxsize=4)
def sheet(size: int) -> Tensor:
    """Return the noise, long enough for an image of `size` numbers to begin anywhere."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.standard_normal(SHEET + size, np.float32))
