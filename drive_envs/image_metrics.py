"""How near an image is to the true one: PSNR, and LPIPS v0.1 (Zhang et al., 2018).

Images are uint8 (N, 3, H, W). LPIPS knows nothing of driving: a lane line that is a pixel off costs
little in it, and sharp texture in the wrong place costs as much as blur.
"""

import importlib
import warnings
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn

Images = UInt8[Tensor, "image 3 height width"]
Mask = Bool[Tensor, "image height width"]
Figures = Float[Tensor, " image"]

BACKBONES = {"alex": "alexnet_features", "squeeze": "squeezenet1_1_features"}


def psnr(images: Images, truth: Images, mask: Mask | None = None) -> Figures:
    """Return 10 log10(255^2 / mean squared error) of each image, float64 (N,), in dB.

    With a `mask` only over its pixels. Infinite where equal, NaN where the mask is empty.
    """
    error = (images.double() - truth.double()).square().mean(dim=1)
    if mask is None:
        mask = torch.ones_like(error, dtype=torch.bool)
    error = (error * mask).sum((1, 2)) / mask.sum((1, 2))
    return 10 * torch.log10(255.0**2 / error)


@torch.no_grad()
def lpips_distance(network: nn.Module, images: Images, truth: Images) -> Figures:
    """Return the LPIPS of each image to the true one, (N,); 0 where equal.

    `network` is from `load_lpips`.
    """
    scaled = (batch.to(torch.float32) / 127.5 - 1 for batch in (images, truth))
    return network(*scaled).flatten()


def load_lpips(weights: Path | None, backbone: Literal["alex", "squeeze"] = "alex") -> nn.Module:
    """Make the LPIPS network, in evaluation mode and without gradients.

    `weights` is a folder that holds the backbone's and the linear heads' weights as safetensors
    (alexnet_features, lpips_lin_v0.1_alex, ...); None lets torchvision download the backbone.
    Raises ValueError when a file is missing or the download fails.
    """
    import_torchvision()
    lpips = importlib.import_module("lpips")
    with warnings.catch_warnings():
        # lpips calls torchvision the old way, pretrained=True, and torchvision says so.
        warnings.simplefilter("ignore")
        try:
            network = lpips.LPIPS(net=backbone, pnet_rand=weights is not None, verbose=False)
        except URLError as error:
            raise ValueError(
                f"torchvision could not download the weights of {backbone} ({error.reason}): "
                "give the folder of a local copy as `weights`"
            ) from error
    if weights is not None:
        load_local_weights(network, weights, backbone)
    return network.requires_grad_(False).eval()


def load_local_weights(network: nn.Module, folder: Path, backbone: str) -> None:
    """Copy the weights in `folder` into an LPIPS network; ValueError when a file is missing."""
    tensors = {}
    for name in (BACKBONES[backbone], f"lpips_lin_v0.1_{backbone}"):
        file = folder / f"{name}.safetensors"
        if not file.is_file():
            raise ValueError(
                f"no LPIPS weights at {file}: give a folder that holds {name}.safetensors, "
                "or None to let torchvision download them"
            )
        tensors.update(load_file(file))
    # lpips cuts the backbone into slices, "features.3.bias" is "net.slice2.3.bias" there, and holds
    # its linear heads a second time as a list, `lins`.
    for key, parameter in network.state_dict().items():
        kind, _, rest = key.partition(".")
        if kind == "net":
            parameter.copy_(tensors[f"features.{rest.partition('.')[2]}"])
        elif key in tensors:
            parameter.copy_(tensors[key])


def import_torchvision() -> None:
    """Import torchvision although its compiled part may not fit this torch.

    PyPI's torchvision is built for CUDA. Beside a torch for the CPU its operators do not load, and
    its import then fails where it gives two of them shape functions. Declared, with nothing behind
    the declaration, they do no harm: no metric here calls them.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
        importlib.import_module("torchvision")
