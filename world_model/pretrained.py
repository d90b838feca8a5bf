"""A pretrained image autoencoder of `diffusers` as a tokenizer, such as Stable Diffusion's ft-mse.

It is named by a folder, or by a name on the hub, and used as it is. It takes the two cameras of a
frame one by one; their latents are stacked, narrow first. Weights are read as safetensors only.
"""

import importlib
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drive_envs.image_metrics import import_torchvision

STRIDE = 8
CLASSES = ("AutoencoderKL", "AutoencoderTiny")

Pair = Float[Tensor, "batch camera 3 height width"]
Latent = Float[Tensor, "batch channel rows columns"]


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """name: a folder that `save_pretrained` wrote, or a name on the hub."""

    kind: Literal["pretrained"] = "pretrained"
    name: str = "stabilityai/sd-vae-ft-mse"


class PretrainedAutoencoder(nn.Module):
    """An `AutoencoderKL` or `AutoencoderTiny`, for pairs of float images in [-1, 1]."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.network = load_network(config.name).requires_grad_(False).eval()
        self.latent_channels = 2 * int(self.network.config.latent_channels)

    def encode(self, images: Pair) -> Latent:
        """Return the likeliest latents of both cameras, stacked."""
        coded = self.network.encode(images.flatten(0, 1))
        latents = coded.latents if hasattr(coded, "latents") else coded.latent_dist.mode()
        if images.shape[-1] != STRIDE * latents.shape[-1]:
            raise ValueError(
                f"tokenizer '{self.config.name}' makes latents {images.shape[-1]} / "
                f"{latents.shape[-1]} times smaller than images; the world model takes {STRIDE}"
            )
        return latents.unflatten(0, images.shape[:2]).flatten(1, 2)

    def decode(self, latents: Latent) -> Pair:
        """Return images, which may leave [-1, 1] a little."""
        of_cameras = latents.unflatten(1, (2, -1))
        return self.network.decode(of_cameras.flatten(0, 1)).sample.unflatten(0, (-1, 2))


def load_network(name: str) -> Any:
    """Load an autoencoder; ValueError says why it cannot be had, and the mend."""
    import_torchvision()
    diffusers = importlib.import_module("diffusers")
    try:
        with warnings.catch_warnings():
            # diffusers calls the hub's client in ways that the latter calls deprecated.
            warnings.simplefilter("ignore")
            network = diffusers.AutoModel.from_pretrained(
                name, use_safetensors=True, low_cpu_mem_usage=False, torch_dtype=torch.float32
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer '{name}' cannot be loaded ({str(error).splitlines()[0]}): name a folder "
            "with config.json and diffusion_pytorch_model.safetensors, or a model on the hub"
        ) from error
    if (kind := type(network).__name__) not in CLASSES:
        raise ValueError(f"tokenizer '{name}' is a {kind}; use {' or '.join(CLASSES)}")
    return network
