import pytest
import torch

from drive_actors.encoder import CHUNK, Encoder, normalized


def encoder():
    torch.manual_seed(0)
    return Encoder(64, 32, (8, 16, 16))


def images(num, height=32, width=64):
    return torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8)


@torch.no_grad()
def test_a_batch_in_parts_is_each_image_alone():
    net, batch = encoder(), images(CHUNK + 3)
    alone = torch.cat([net(image[None]) for image in batch])
    torch.testing.assert_close(net(batch), alone, atol=1e-5, rtol=1e-5)


def test_normalisation_is_exact_in_half_precision():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = (every.double() - 128) / 64
    assert torch.equal(normalized(every, torch.bfloat16).double(), expected)


@torch.no_grad()
def test_where_something_is_changes_what_is_said():
    net = encoder()
    left = torch.full((1, 3, 32, 64), 100, dtype=torch.uint8)
    right = left.clone()
    left[..., 10:12] = 255
    right[..., 42:44] = 255
    here, there = net(left), net(right)
    assert (here - there).norm() > 0.1 * here.norm()


@torch.no_grad()
def test_images_tell_more_than_biases_at_the_start():
    said = encoder()(
        torch.randint(0, 256, (200, 3, 4, 8), dtype=torch.uint8)
        .repeat_interleave(8, -1)
        .repeat_interleave(8, -2)
    )
    assert said.mean(0).square().mean() < 0.9 * said.square().mean()


def test_wrong_image_size_is_refused():
    with pytest.raises(ValueError, match="64 x 32"):
        encoder()(images(2, 16, 32))


@torch.no_grad()
def test_rows_above_the_top_are_not_read():
    torch.manual_seed(0)
    net = Encoder(64, 32, (8, 16, 16), top=10)
    batch = images(2)
    above, below = batch.clone(), batch.clone()
    above[:, :, :10] = 0
    below[:, :, 10] = 0
    assert net(above).equal(net(batch))
    assert not net(below).equal(net(batch))
    assert net(batch).shape == (2, net.num_outputs) == (2, 8 * 4 * 2)
