import math

import pytest
import torch

from drive_envs.camera import cameras, recording_cameras
from drive_envs.resampling import read, read_rounded, seen_by, window


def test_a_pixel_that_covers_whole_ones_is_their_mean():
    generator = torch.Generator().manual_seed(0)
    source = recording_cameras(128, 64, scale=2, margin=3)["narrow"]
    image = torch.randint(0, 256, (2, 3, 128, 268), generator=generator, dtype=torch.uint8)
    seen = seen_by(cameras(128, 64)["narrow"], image, source)
    blocks = image[..., 6:-6].reshape(2, 3, 64, 2, 128, 2).float().mean((3, 5))
    assert (seen - blocks).abs().max() <= 0.5


def test_the_same_camera_sees_the_image_itself():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 64, 128), generator=generator, dtype=torch.uint8)
    camera = cameras(128, 64)["wide"]
    assert seen_by(camera, image, camera).equal(image)
    assert window(camera, camera) == 1


def test_reading_is_the_mean_of_a_window_around_the_place():
    """By the definition, one window at a time; between windows it is linear."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (1, 3, 9, 12), generator=generator, dtype=torch.uint8)
    for size in (1, 2, 3):
        for row, column in ((0, 0), (2, 4), (9 - size, 12 - size)):
            u, v = column + size / 2, row + size / 2
            got = read(image, torch.tensor([[u]]), torch.tensor([[v]]), size)[0, :, 0]
            block = image[0, :, row : row + size, column : column + size].float().mean((1, 2))
            assert torch.allclose(got, block, atol=1e-3)
        low, high = (
            read(image, torch.tensor([[4 + size / 2 + d]]), torch.tensor([[4.0]]), size)
            for d in (0, 1)
        )
        middle = read(image, torch.tensor([[4.5 + size / 2]]), torch.tensor([[4.0]]), size)
        assert torch.allclose(middle, (low + high) / 2, atol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 3, 11, 12])
@pytest.mark.parametrize("is_sharp", [False, True])
def test_rounded_is_what_is_read_also_beyond_the_border(size, is_sharp):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, 3, 15, 22), generator=generator, dtype=torch.uint8)
    u, v = 40 * torch.rand((2, 2, 300), generator=generator) - 9
    rounded = read_rounded(images, 1, u, v, 0.7, size, is_sharp=is_sharp)
    exact = read(images[:, 1], 0.7 * u, 0.7 * v, size, is_sharp=is_sharp)
    assert rounded.shape == exact.shape
    assert (rounded - exact).abs().max() < 0.51


def test_sharp_reading_is_cubic_and_stays_in_range():
    """Against the kernel of Keys (1981) with a = -3/4, at places whose 16 pixels are all there."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 2, (1, 3, 9, 12), generator=generator, dtype=torch.uint8) * 255
    places = torch.rand((40, 2), generator=generator) * torch.tensor([8.0, 5.0]) + 2
    expected = []
    for u, v in places.tolist():
        columns, rows = (math.floor(at - 0.5) + torch.arange(-1, 3) for at in (u, v))
        patch = image[0][:, rows][:, :, columns].float()
        across, down = keys(u - 0.5 - columns), keys(v - 0.5 - rows)
        expected.append(torch.einsum("crk,r,k->c", patch, down, across))
    exact = torch.stack(expected, dim=1)
    assert exact.min() < -1
    got = read(image, places[None, :, 0], places[None, :, 1], is_sharp=True)[0]
    assert torch.allclose(got, exact.clamp(0, 255), atol=1e-2)
    windows = [
        read(image, places[None, :, 0], places[None, :, 1], 2, is_sharp=s) for s in (False, True)
    ]
    assert windows[0].equal(windows[1])


def keys(distance):
    """Weigh pixels at some distances."""
    d = distance.abs()
    near = (1.25 * d - 2.25) * d * d + 1
    far = -0.75 * (((d - 5) * d + 8) * d - 4)
    return torch.where(d < 1, near, torch.where(d < 2, far, 0))
