import pytest
import torch

from drive_envs.camera import wide
from drive_envs.inverse_depth import (
    HOLE,
    close,
    fill,
    inverse_depth,
    nearest_around,
    surface_from_inverse_depth,
)

CAMERA = wide(16, 8)


def plane(slope_u, slope_v, offset):
    v, u = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(16) + 0.5, indexing="ij")
    return (slope_u * u + slope_v * v + offset)[None]


def with_holes(share, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    w = torch.rand(2, height, width, generator=generator)
    return w.masked_fill(torch.rand(w.shape, generator=generator) < share, HOLE)


def test_sky_is_zero_and_unknown_is_a_hole():
    depth = torch.tensor([[[4.0, torch.inf], [torch.nan, 0.0]]])
    assert inverse_depth(depth).equal(torch.tensor([[[0.25, 0.0], [HOLE, HOLE]]]))


def test_a_plane_is_found_exactly():
    surface = surface_from_inverse_depth(plane(0.01, -0.02, 0.3), CAMERA)
    for found, value in zip(surface, (0.01, -0.02, 0.3), strict=True):
        torch.testing.assert_close(found, torch.full_like(found, value), atol=1e-6, rtol=0)


def test_no_slope_crosses_an_edge():
    w = plane(0.0, 0.01, 0.1)
    w[..., 6:10] = 0.9
    slope_u, slope_v, _ = surface_from_inverse_depth(w, CAMERA)
    assert slope_u.abs().max() < 1e-6
    torch.testing.assert_close(slope_v[..., :6], torch.full((1, 8, 6), 0.01), atol=1e-6, rtol=0)


def test_closing_fills_cracks_and_leaves_planes():
    w = plane(0.01, 0.02, 0.3)
    assert close(w.clone()).equal(w)
    cracked = w.clone()
    cracked[:, 3], cracked[:, :, 7] = HOLE, 0.0
    closed = close(cracked)
    assert (closed[:, 1:-1, 1:-1] >= w[:, 1:-1, 1:-1] - 0.031).all()


@pytest.mark.parametrize("size", [(8, 16), (6, 10), (5, 7), (1, 3)])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_filling_takes_the_nearest_surface_of_the_smallest_cell(size, share):
    height, width = size
    w = with_holes(share, height, width)
    filled = fill(w)
    assert filled[w >= 0].equal(w[w >= 0])
    for image, row, column in (w < 0).nonzero().tolist():
        cell, expected = 1, HOLE
        while expected < 0 and cell < 2 * max(size):
            cell *= 2
            top, left = row // cell * cell, column // cell * cell
            expected = w[image, top : top + cell, left : left + cell].max().item()
        assert filled[image, row, column].item() == pytest.approx(expected, abs=1e-6)


def test_nearest_around_is_the_maximum_of_nine():
    w = with_holes(0.2, 8, 16)
    expected = torch.nn.functional.max_pool2d(w, 3, stride=1, padding=1)
    some = torch.arange(w.numel())[::3]
    assert nearest_around(w, some).equal(expected.flatten()[some])
