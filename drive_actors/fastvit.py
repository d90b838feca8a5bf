"""FastViT as an encoder (Vasu et al., 2023, arXiv:2303.14189), as timm has it.

The paper's choice. Of the network the stem and the stages up to `stride` are kept, and the grid
that they leave goes through a 1x1 convolution and is flattened, as in `drive_actors.encoder`.

FastViT normalises by batch. Here its statistics are constants: those of one pass over noise, taken
when the network is made, or those that come with `weights`. So no image depends on another, an
actor and the learner agree on every feature, and V-trace's ratios are 1 at equal weights. Putting
another norm in their place would have done as much, but pretrained weights mean something with
their own statistics only, and FastViT's branches fold into one convolution only as long as what
follows them is affine. Dropout and drop path are off, so training and evaluation are the same.
"""

import importlib
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
from einops import repeat
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from drive_actors.encoder import (
    Images,
    Outputs,
    in_parts,
    input_dtype,
    keep_variance,
    normalized,
    rows_read,
)
from drive_envs.image_metrics import import_torchvision

MIN_CELLS = 2  # of the last grid, each way: with one, nothing says where something is
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRIDES = (8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class FastVit:
    """Which FastViT.

    model: one of timm's. stride: image pixels to a cell of the grid that is read; the stages behind
    it, which hold most of the parameters, are left out. 32 is the whole network and wants images
    of 256 x 128. num_channels: of a cell, after the 1x1 convolution. weights: a safetensors file of
    timm's for this model, with which training begins; null for random ones.
    """

    kind: Literal["fastvit"] = "fastvit"
    model: str = "fastvit_t8"
    stride: Literal[8, 16, 32] = 16
    num_channels: int = 32
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.model[:8] != "fastvit_":
            raise ValueError(f"model must be a FastViT of timm, as fastvit_t8, got {self.model!r}")
        if self.stride not in STRIDES:
            raise ValueError(f"stride must be one of {STRIDES}, got {self.stride}")
        if self.num_channels < 1:
            raise ValueError(f"num_channels must be 1 or more, got {self.num_channels}")

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return the rows and columns left of so many pixels; ValueError when they are too few."""
        rows, columns = ceil(height / self.stride), ceil(width / self.stride)
        if min(rows, columns) < MIN_CELLS:
            raise ValueError(
                f"a stride of {self.stride} leaves {columns} x {rows} cells of the {width} x "
                f"{height} pixels below the sky, and {MIN_CELLS} x {MIN_CELLS} are the least: take "
                "a smaller encoder.stride or larger images"
            )
        return rows, columns


class FastVitEncoder(nn.Module):
    """(batch, 3, height, width) uint8 -> (batch, num_outputs); rows above `top` are not read."""

    def __init__(self, config: FastVit, width: int, height: int, *, top: int = 0) -> None:
        super().__init__()
        self.config = config
        self.width, self.height, self.top = width, height, top
        rows, columns = config.grid(width, height - top)
        self.backbone, num_found = backbone(config)
        self.cells = nn.Conv2d(num_found, config.num_channels, 1)
        keep_variance(self.cells)
        self.num_outputs = config.num_channels * rows * columns
        # From our [-2, 2) to the units of timm's weights.
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", (64 / 255 / std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((128 / 255 - mean) / std)[:, None, None], persistent=False)
        self.measure_statistics()
        self.train()

    def forward(self, image: Images) -> Outputs:
        read = rows_read(image, self.width, self.height, self.top)
        dtype = input_dtype(self, image.device)
        return in_parts(lambda part: self.cells(self.grid(part, dtype)).flatten(1), read)

    def grid(self, image: Images, dtype: torch.dtype) -> Float[Tensor, "batch c rows columns"]:
        """Return what the last stage says of each cell."""
        scale, shift = (self.get_buffer(name).to(dtype) for name in ("scale", "shift"))
        pixels = normalized(image, dtype) * scale + shift
        # Channels last, the gradient corrupts memory on a CPU (torch 2.13, at times).
        return self.backbone(pixels.contiguous() if pixels.device.type == "cpu" else pixels)

    def train(self, mode: bool = True) -> "FastVitEncoder":
        """Stay in evaluation mode, whatever is asked for: the norms' statistics are constants."""
        return super().train(False)

    @torch.no_grad()
    def measure_statistics(self) -> None:
        """Set the norms' statistics so that noise has unit variance behind each of them."""
        generator = torch.Generator().manual_seed(0)
        blocks = torch.rand((16, 3, 8, 8), generator=generator, device="cpu") * 256
        image = repeat(blocks.to(torch.uint8), "n c h w -> n c (h 8) (w 8)")
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train().momentum = 1.0  # the last batch alone
        self.grid(image.to(self.cells.weight.device), self.cells.weight.dtype)

    def read_weights(self) -> None:
        """Take the weights that `config.weights` names, if any; ValueError says what is amiss."""
        if self.config.weights is None:
            return
        told = f"encoder.weights: {self.config.weights}"
        mend = f"name a safetensors file with timm's weights of {self.config.model}, or null"
        try:
            found = load_file(Path(self.config.weights))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{told} cannot be read ({error}): {mend}") from error
        wanted = {
            name: value
            for name, value in self.backbone.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        amiss = [
            name
            for name, value in wanted.items()
            if name not in found or found[name].shape != value.shape
        ]
        if amiss:
            raise ValueError(
                f"{told} is of another network: {len(amiss)} of {len(wanted)} weights are missing "
                f"or of another shape, the first is '{amiss[0]}': {mend}"
            )
        self.backbone.load_state_dict({name: found[name] for name in wanted}, strict=False)


def backbone(config: FastVit) -> tuple[nn.Module, int]:
    """Make the stem and the stages that are needed, and return how many channels they end in."""
    import_torchvision()
    timm: Any = importlib.import_module("timm")  # takes seconds, and only this encoder needs it
    if config.model not in (known := timm.list_models("fastvit_*")):
        raise ValueError(f"timm has no encoder.model {config.model!r}: take {' or '.join(known)}")
    network = timm.create_model(
        config.model,
        pretrained=False,
        num_classes=0,
        drop_rate=0.0,
        proj_drop_rate=0.0,
        drop_path_rate=0.0,
    )
    stage = [each["reduction"] for each in network.feature_info].index(config.stride)
    network.prune_intermediate_layers([stage])
    return network, network.feature_info[stage]["num_chs"]
