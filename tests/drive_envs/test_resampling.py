import torch

from drive_envs.camera import cameras, recording_cameras
from drive_envs.resampling import read, seen_by, window


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
    """By the definition, one window at a time; between windows it is linear, or cubic."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (1, 3, 9, 12), generator=generator, dtype=torch.uint8)
    for size in (1, 2, 3):
        for row, column in ((0, 0), (2, 4), (9 - size, 12 - size)):
            u, v = column + size / 2, row + size / 2
            got = read(image, torch.tensor([[u]]), torch.tensor([[v]]), size)[0, :, 0]
            block = image[0, :, row : row + size, column : column + size].float().mean((1, 2))
            assert torch.allclose(got, block, atol=1e-3)
        before, low, high, after = (
            read(image, torch.tensor([[4 + size / 2 + d]]), torch.tensor([[4.5]]), size)
            for d in (-1, 0, 1, 2)
        )
        middle = read(image, torch.tensor([[4.5 + size / 2]]), torch.tensor([[4.5]]), size)
        expected = (low + high) / 2
        if size == 1:
            expected = (19 * (low + high) - 3 * (before + after)) / 32
        assert torch.allclose(middle, expected.clamp(0, 255), atol=1e-3)
