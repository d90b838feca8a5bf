"""What the frame before says of the next: its latents, read where things come from.

Between two frames the car moves as it was told, and the road is a plane: so of every place in the
next image it is known where that lay in the last one, w = 1 / depth being (v - c_v) / (f h) below
the horizon and 0 above:

    X = cos yaw - sin yaw s + w x,    Y = sin yaw + cos yaw s + w y,    s = -(u - c_u) / f
    u' = c_u - f Y / X,    v' = c_v + (v - c_v) / X

for a motion of (x, y, yaw). A place of a latent is eight pixels wide, and what lies between two
places is not their mean: a small network is told the nine latents around the source, and how far
off their centre it is, for both cameras, and learns to read them. What stands on the road is drawn
as if painted on it, and what comes into view is a guess; the transformer mends both. How far off
each value is to be expected is learnt beside it: the sky stays as it is, the road's grain does not.

Published for images with depth (GEN3C, Ren et al., 2025); the paper's model has none of it and
learns such motion from examples alone, more of them than two cores see in a day.
"""

from math import log, pi
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import grid_sample, pad, unfold

from drive_envs.camera import Camera, cameras

WINDOW = 3  # places of a latent, in each direction, around where something comes from
PLACE_DIM = 32  # numbers that tell a place of the image from others
NUM_OFFSETS = 8  # sines and cosines of the distance to the window's centre, of two waves
FIRST_DEVIATION, LEAST_DEVIATION = 0.4, 0.05  # of latents whose own is one

Latent = Float[Tensor, "frame channel rows columns"]
Motion = Float[Tensor, "frame 3"]  # x, y, yaw of the car as seen from the frame before
Cells = Float[Tensor, "frame rows columns"]


class Expected(NamedTuple):
    """Mean and standard deviation of each value of a latent."""

    mean: Float[Tensor, "*frame channel rows columns"]
    deviation: Float[Tensor, "*frame channel rows columns"]


class Transport(nn.Module):
    """Reads frames of latents from where the car is one frame later."""

    def __init__(self, channels: int, width: int, height: int, stride: int, hidden: int) -> None:
        super().__init__()
        self.stride = stride
        self.views = list(cameras(width, height).values())
        rows, columns = height // stride, width // stride
        num_read = channels * len(self.views)
        num_told = num_read * (WINDOW**2 + 1) + NUM_OFFSETS * len(self.views) + PLACE_DIM
        self.place = nn.Parameter(0.1 * torch.randn(rows, columns, PLACE_DIM))
        self.mix = nn.Linear(num_read, channels)
        self.layers = nn.Sequential(
            nn.Linear(num_told, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2 * channels),
        )
        # To begin with, the mean of what both cameras' places say, read between the places.
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(channels).repeat(1, len(self.views)) / len(self.views))
            self.mix.bias.zero_()
            last.bias[channels:] = log(FIRST_DEVIATION)

    def forward(self, before: Latent, motion: Motion) -> Expected:
        """Foretell the latents of the next frames, as far as that can be."""
        read, told = [], []
        for view in self.views:
            u, v = source_cells(view, motion.float(), self.stride)
            read.append(between(before, u, v))
            told += list(around(before, u, v))
        between_places = torch.cat(read, dim=-1)
        place = self.place.to(between_places.dtype).expand(len(before), -1, -1, -1)
        told = torch.cat([between_places, place, *told], dim=-1)
        found, log_deviation = self.layers(told).float().chunk(2, dim=-1)
        found = found + self.mix(between_places).float()
        mean, log_deviation = (
            rearrange(part, "frame row column channel -> frame channel row column")
            for part in (found, log_deviation)
        )
        return Expected(mean, log_deviation.exp().clamp(min=LEAST_DEVIATION))


def source_cells(camera: Camera, motion: Motion, stride: int) -> tuple[Cells, Cells]:
    """Return the column and row, in places, at which each place's centre lay in the frame before.

    Places are `stride` pixels wide, and their centres whole numbers. What lay behind the camera or
    out of its view is taken from the border.
    """
    columns, rows = camera.width // stride, camera.height // stride
    device = motion.device
    u = (torch.arange(columns, device=device) + 0.5) * stride
    v = (torch.arange(rows, device=device)[:, None] + 0.5) * stride
    side, down = -(u - camera.center_u) / camera.focal, (v - camera.center_v) / camera.focal
    w = down.clamp(min=0) / camera.mount_height
    x, y, yaw = motion[:, :, None, None].unbind(1)
    ahead = (yaw.cos() - yaw.sin() * side + w * x).clamp(min=0.1)
    left = yaw.sin() + yaw.cos() * side + w * y
    at_u = (camera.center_u - camera.focal * left / ahead) / stride - 0.5
    at_v = (camera.center_v + camera.focal * down / ahead) / stride - 0.5
    return at_u.clamp(-1, columns), at_v.clamp(-1, rows)


def between(latents: Latent, u: Cells, v: Cells) -> Float[Tensor, "frame rows columns channel"]:
    """Read latents bicubically at columns and rows that need not be whole."""
    rows, columns = latents.shape[-2:]
    grid = torch.stack([(2 * u + 1) / columns - 1, (2 * v + 1) / rows - 1], dim=-1)
    read = grid_sample(
        latents.float(), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return rearrange(read, "frame channel row column -> frame row column channel")


def around(
    latents: Latent, u: Cells, v: Cells
) -> tuple[Float[Tensor, "frame rows columns values"], Float[Tensor, "frame rows columns wave"]]:
    """Return the window of latents about each place, and what tells how far off its centre."""
    rows, columns = latents.shape[-2:]
    column = u.round().clamp(0, columns - 1)
    row = v.round().clamp(0, rows - 1)
    windows = unfold(pad(latents.float(), (WINDOW // 2,) * 4, mode="replicate"), WINDOW)
    index = (row * columns + column).long().flatten(1)
    chosen = windows.gather(2, index[:, None].expand(-1, windows.shape[1], -1))
    chosen = rearrange(chosen, "frame values (row column) -> frame row column values", row=rows)
    off = torch.stack([u - column, v - row], dim=-1)
    angle = torch.cat([pi * off, 2 * pi * off], dim=-1)
    return chosen, torch.cat([angle.sin(), angle.cos()], dim=-1)
