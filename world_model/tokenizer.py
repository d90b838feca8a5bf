"""From the two images of a frame to a standardised latent, and back.

A tokenizer is an autoencoder and the mean and deviation of each channel of its latents. The
autoencoder is our own (`autoencoder`), or any pretrained one of `diffusers` (`pretrained`). Images
are uint8 (batch, 2, 3, H, W), narrow first; latents float32 (batch, channel, H / 8, W / 8), about
normal in each channel.

On disk a tokenizer is a folder, `tokenizer.safetensors` beside `tokenizer.json`. A pretrained one
leaves its weights where they are. Nothing is pickled.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from world_model.autoencoder import Autoencoder, AutoencoderConfig
from world_model.pretrained import PretrainedAutoencoder, PretrainedConfig

WEIGHTS, STATE = "tokenizer.safetensors", "tokenizer.json"
MIN_DEVIATION = 1e-3  # of a channel: one that never varies is not blown up

Images = UInt8[Tensor, "batch 2 3 height width"]
Latent = Float[Tensor, "batch channel rows columns"]
TokenizerConfig = AutoencoderConfig | PretrainedConfig


class TokenizerError(ValueError):
    """A tokenizer's folder is incomplete, damaged, or of another network."""


@runtime_checkable
class Coder(Protocol):
    """What both autoencoders do, with float images (batch, 2, 3, H, W) in [-1, 1]."""

    latent_channels: int

    def encode(self, images: Tensor) -> Tensor:
        """Return (batch, channel, H / 8, W / 8)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Go back."""
        ...


class Tokenizer(nn.Module):
    """An autoencoder with standardised latents; without gradients."""

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
        """Return standardised latents."""
        raw = self.coder.encode(to_float(images))
        return (raw - self.mean[:, None, None]) / self.deviation[:, None, None]

    @torch.inference_mode()
    def decode(self, latents: Latent) -> Images:
        """Return images."""
        raw = latents * self.deviation[:, None, None] + self.mean[:, None, None]
        return to_uint8(self.coder.decode(raw))

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
    folder.mkdir(parents=True, exist_ok=True)
    is_own = isinstance(tokenizer.config, AutoencoderConfig)
    kept = {
        name: value.contiguous().half() if name.startswith("coder.") else value
        for name, value in tokenizer.state_dict().items()
        if is_own or not name.startswith("coder.")
    }
    content = save(kept)
    state = {
        "sha256": {WEIGHTS: hashlib.sha256(content).hexdigest()},
        "tokenizer": asdict(tokenizer.config),
    }
    (folder / WEIGHTS).write_bytes(content)
    (folder / STATE).write_text(json.dumps(state, indent=1))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Rebuild a tokenizer, in evaluation mode; TokenizerError says which file is wrong, and how."""
    config, digest = read_state(folder / STATE)
    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise TokenizerError(f"{folder / WEIGHTS} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise TokenizerError(f"{folder / WEIGHTS} is damaged: its digest is not {STATE}'s")
    try:
        weights = load(content)
    except SafetensorError as error:
        raise TokenizerError(f"{folder / WEIGHTS} is not a safetensors file: {error}") from error
    tokenizer = Tokenizer(config)
    own = tokenizer.state_dict()
    if isinstance(config, PretrainedConfig):
        weights = {name: value for name, value in own.items() if name not in weights} | weights
    if different := sorted(
        name
        for name in own.keys() | weights.keys()
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    ):
        raise TokenizerError(
            f"{folder / WEIGHTS} is of another network than {STATE} says: {len(different)} weights "
            f"are missing, unknown or of another shape, the first is '{different[0]}'"
        )
    tokenizer.load_state_dict({name: value.to(own[name]) for name, value in weights.items()})
    return tokenizer.eval().requires_grad_(False)


def read_state(path: Path) -> tuple[TokenizerConfig, str]:
    """Read a tokenizer's configuration and its weights' digest."""
    try:
        tree = json.loads(path.read_bytes())
        return config_from_json(tree["tokenizer"]), tree["sha256"][WEIGHTS]
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise TokenizerError(f"{path} does not describe a tokenizer: {error}") from error


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
