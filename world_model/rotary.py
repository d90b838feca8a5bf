"""Rotary position embedding in three dimensions: frame, row and column of a token.

Only differences of positions reach the attention (Su et al., 2021), so that keys that were computed
once stay right when the window of frames moves on.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

FRAME_BASE, SPACE_BASE = 100.0, 30.0

Angles = Float[Tensor, "*batch token pair"]


def split_pairs(head_dim: int) -> tuple[int, int, int]:
    """Share the pairs of a head's dimensions out to frame, row and column."""
    pairs = head_dim // 2
    space = pairs // 3
    return pairs - 2 * space, space, space


def angles(frame: Int[Tensor, "*batch frame"], rows: int, columns: int, head_dim: int) -> Angles:
    """Return the angle of each pair of dimensions of each token: (..., frames rows columns, pairs).

    `frame` are the frames' places in time; tokens run over frames, then rows, then columns.
    """
    device = frame.device
    shape = (*frame.shape, rows, columns)
    places = (
        frame[..., None, None],
        torch.arange(rows, device=device)[:, None],
        torch.arange(columns, device=device),
    )
    bases = (FRAME_BASE, SPACE_BASE, SPACE_BASE)
    parts = []
    for place, pairs, base in zip(places, split_pairs(head_dim), bases, strict=True):
        frequency = base ** (-torch.arange(pairs, device=device) / pairs)
        parts.append(place.expand(shape)[..., None] * frequency)
    return torch.cat(parts, dim=-1).flatten(-4, -2)


def rotate(
    x: Float[Tensor, "batch head token dim"], cos: Angles, sin: Angles
) -> Float[Tensor, "batch head token dim"]:
    """Turn the pairs (i, i + dim / 2) of each token by its angles, (..., token, dim / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
