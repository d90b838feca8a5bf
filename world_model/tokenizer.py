"""From the two images of a frame to a latent, and back.

A tokenizer is an autoencoder, and the mean and the unit of each channel of its latents. The
autoencoder is our own (`autoencoder`), or any pretrained one of `diffusers` (`pretrained`). Images
are uint8 (batch, 2, 3, H, W), narrow first; latents float32 (batch, channel, H / 8, W / 8).
Standardised, every channel has mean 0 and deviation 1; weighed, those have more that show more.

On disk a tokenizer is a folder, `tokenizer.safetensors` beside `tokenizer.json`. A pretrained one
leaves its weights where they are. See `drive_envs.network_file` for what is refused.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from drive_envs.network_file import check_weights, read_described, rebuilt, write_network
from world_model.autoencoder import Autoencoder, AutoencoderConfig
from world_model.pretrained import PretrainedAutoencoder, PretrainedConfig

WEIGHTS, STATE = "tokenizer.safetensors", "tokenizer.json"
MIN_DEVIATION = 1e-3  # of a channel: one that never varies is not blown up

Images = UInt8[Tensor, "batch 2 3 height width"]
Latent = Float[Tensor, "batch channel rows columns"]
TokenizerConfig = AutoencoderConfig | PretrainedConfig


class Tokenizer(nn.Module):
    """An autoencoder with standardised or weighed latents; without gradients.

    mean, deviation: (channel,), of the autoencoder's latents: what is 0, and the unit.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.coder = make_coder(config)
        channels = self.latent_channels
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    @property
    def latent_channels(self) -> int:
        """Channels of a latent, both cameras together."""
        return self.coder.latent_channels

    @torch.inference_mode()
    def encode(self, images: Images) -> Latent:
        """Return latents."""
        raw = self.coder.encode(to_float(images))
        return (raw - self.mean[:, None, None]) / self.deviation[:, None, None]

    @torch.inference_mode()
    def decode(self, latents: Latent) -> Images:
        """Return images."""
        return to_uint8(self._drawn(latents))

    @torch.inference_mode()
    def standardise(self, batches: Iterable[Images]) -> None:
        """Measure mean and deviation of each channel over some images."""
        total, squares, count = 0.0, 0.0, 0
        for images in batches:
            raw = self.coder.encode(to_float(images)).double()
            total = total + raw.sum((0, 2, 3))
            squares = squares + raw.square().sum((0, 2, 3))
            count += raw[:, 0].numel()
        mean = torch.as_tensor(total) / count
        variance = torch.as_tensor(squares) / count - mean**2
        self.mean.copy_(mean)
        self.deviation.copy_(variance.clamp(min=0.0).sqrt().clamp(min=MIN_DEVIATION))

    @torch.inference_mode()
    def visibility(self, images: Images) -> Float[Tensor, " channel"]:
        """Return by how many levels of 255 (rms) each channel moves pixels, its unit for a step.

        images: on which it is tried, once each with a random half unit at every place.
        """
        latents = self.encode(images)
        generator = torch.Generator(latents.device).manual_seed(0)
        before, found = self._drawn(latents), []
        for channel in range(self.latent_channels):
            moved = latents.clone()
            size, device = moved[:, channel].shape, moved.device
            moved[:, channel] += 0.5 * torch.randn(size, generator=generator, device=device)
            found.append((self._drawn(moved) - before).square().mean().sqrt() / 0.5)
        return 127.5 * torch.stack(found)

    def weigh(self, images: Images) -> None:
        """Let standardised channels differ as the roots of what can be seen of them do.

        Most channels hold the grain of the road, a level or two of 255. Standardised, they count
        for as much in a loss, and are made for as long out of noise, as where a lane line is. In
        units of pixels they would hardly be learnt at all; the root is half way between.
        """
        size = self.visibility(images)
        self.deviation.div_((size / size.mean()).sqrt().clamp(min=MIN_DEVIATION))

    def _drawn(self, latents: Latent) -> Float[Tensor, "batch 2 3 height width"]:
        """Decode without rounding to pixels."""
        raw = latents * self.deviation[:, None, None] + self.mean[:, None, None]
        return self.coder.decode(raw)

    @property
    def digest(self) -> str:
        """A number of weights and statistics: latents of two tokenizers must not be mixed."""
        total = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            total.update(name.encode())
            total.update(value.contiguous().cpu().numpy().tobytes())
        return total.hexdigest()[:16]


def make_coder(config: TokenizerConfig) -> Autoencoder | PretrainedAutoencoder:
    """Build the autoencoder that a configuration describes."""
    match config:
        case AutoencoderConfig():
            return Autoencoder(config)
        case PretrainedConfig():
            return PretrainedAutoencoder(config)


def to_float(images: Images) -> Float[Tensor, "batch 2 3 height width"]:
    """Bring pixels into [-1, 1]."""
    return images.float().mul_(1 / 127.5).sub_(1)


def to_uint8(images: Float[Tensor, "batch 2 3 height width"]) -> Images:
    """Bring [-1, 1] to pixels."""
    return images.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer into a folder, which is made if need be; weights as float16."""
    is_own = isinstance(tokenizer.config, AutoencoderConfig)
    kept = {
        name: value.half() if name.startswith("coder.") else value
        for name, value in tokenizer.state_dict().items()
        if is_own or not name.startswith("coder.")
    }
    described = asdict(tokenizer.config)
    write_network(folder / WEIGHTS, folder / STATE, kept, tokenizer=described)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Rebuild a tokenizer, in evaluation mode and without gradients.

    NetworkFileError says which file is wrong, and how.
    """
    config, weights = read_described(
        folder / STATE,
        folder / WEIGHTS,
        "a tokenizer",
        lambda tree: config_from_json(tree["tokenizer"]),
    )
    if isinstance(config, AutoencoderConfig):
        make = partial(Tokenizer, config)
        return rebuilt(make, weights, folder / WEIGHTS, STATE).requires_grad_(False)
    tokenizer = Tokenizer(config)
    statistics = {"mean": tokenizer.mean, "deviation": tokenizer.deviation}
    check_weights(weights, statistics, folder / WEIGHTS, STATE)
    tokenizer.load_state_dict(weights, strict=False)
    return tokenizer.eval().requires_grad_(False)


def config_from_json(tree: Mapping[str, Any]) -> TokenizerConfig:
    """Turn what JSON holds into a configuration; ValueError or TypeError if it is none."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()
    }
    match fields.get("kind"):
        case "own":
            return AutoencoderConfig(**fields)
        case "pretrained":
            return PretrainedConfig(**fields)
        case kind:
            raise ValueError(f"kind is {kind!r}; it must be own or pretrained")
