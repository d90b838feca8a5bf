"""Plausible colour behind an obstacle that has moved aside: what lies farther away goes on.

Roads, verges and horizons run along rows, so rows come first. This does not know what was there.
"""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from drive_envs import reprojection_loops

Color = UInt8[Tensor, "batch 3 height width"]
Map = Float[Tensor, "batch height width"]
Mask = Bool[Tensor, "batch height width"]
TIE = float(reprojection_loops.TIE)


def draw_out_background(color: Color, w: Map, hidden: Mask) -> None:
    """Give hidden pixels the colour of what is farther beside them, in place.

    `w` is inverse depth in 1/m. Rows first; columns for rows in which all is hidden. A pixel that
    has neither keeps its colour.
    """
    if color.device.type == "cpu":
        reprojection_loops.draw_out_background(color.numpy(), w.numpy(), hidden.numpy())
    else:
        draw_out_with_tensors(color, w, hidden)


def draw_out_with_tensors(color: Color, w: Map, hidden: Mask) -> None:
    """Do so on any device."""
    left_over = draw_out_rows(color, w, hidden)
    if is_any(left_over):
        draw_out_rows(color.mT, w.mT, left_over.mT)


def draw_out_rows(color: Color, w: Map, hidden: Mask) -> Mask:
    """Give hidden pixels the colour of the farther of the two nearest donors in the row, in place.

    Pixels next to a hidden one are no donors, as the obstacle's outline bleeds into them. Of two
    as far, the one nearer in the image is taken. Returns what is left, in rows without donors.
    """
    width = w.shape[2]
    left_over = torch.zeros_like(hidden)
    image, row = hidden.any(dim=2).nonzero(as_tuple=True)
    hidden, w = hidden[image, row], w[image, row]
    is_donor = ~hidden
    is_donor[:, 1:] &= ~hidden[:, :-1]
    is_donor[:, :-1] &= ~hidden[:, 1:]
    number = torch.arange(1, width + 1, device=w.device)
    left = is_donor.mul(number).cummax(1).values - 1
    right = width - is_donor.flip(1).mul(number).cummax(1).values.flip(1)
    left_over[image, row] = hidden & ~is_donor.any(dim=1, keepdim=True)

    line, column = hidden.nonzero(as_tuple=True)
    left, right = left[line, column], right[line, column]
    w_left = w[line, left.clamp(min=0)] + TIE * (column - left)
    w_right = w[line, right.clamp(max=width - 1)] + TIE * (right - column)
    is_left = (left >= 0) & ((right >= width) | (w_left <= w_right))
    donor = torch.where(is_left, left, torch.where(right < width, right, column))
    image, row = image[line], row[line]
    color[image, :, row, column] = color[image, :, row, donor]
    return left_over


def is_any(mask: Bool[Tensor, "*size"]) -> bool:
    """Tell whether any is set; `mask.any()` takes ten times as long on a CPU."""
    return bool(mask.view(torch.uint8).amax())
