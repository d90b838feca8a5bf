import pytest
import torch

from drive_envs.inpainting import draw_out_background, draw_out_with_tensors, is_any


@pytest.fixture(params=[draw_out_background, draw_out_with_tensors])
def draw_out(request):
    return request.param


def scene(hidden_columns, height=3, width=10):
    """Colours that say their column, with an obstacle's colour, 99, where hidden."""
    color = torch.arange(width, dtype=torch.uint8).expand(1, 3, height, width).clone()
    hidden = torch.zeros(1, height, width, dtype=torch.bool)
    hidden[..., hidden_columns] = True
    color[:, :, hidden[0]] = 99
    return color, torch.full((1, height, width), 0.1), hidden


def test_the_farther_side_is_drawn_out(draw_out):
    color, w, hidden = scene(slice(4, 6))
    w[..., :4] = 0.2
    draw_out(color, w, hidden)
    # Column 6 is beside the obstacle, so its colour may be the obstacle's: 7 is the donor.
    assert (color[..., 4:6] == 7).all()
    assert color[0, 0, 0].tolist() == [0, 1, 2, 3, 7, 7, 6, 7, 8, 9]


def test_of_two_as_far_the_nearer_in_the_image(draw_out):
    color, w, hidden = scene(slice(3, 7))
    draw_out(color, w, hidden)
    assert color[0, 0, 0].tolist() == [0, 1, 2, 1, 1, 8, 8, 7, 8, 9]


def test_at_the_border_there_is_one_side(draw_out):
    color, w, hidden = scene(slice(0, 4))
    draw_out(color, w, hidden)
    assert (color[..., :4] == 5).all()


def test_a_row_without_donors_takes_from_its_columns(draw_out):
    color, w, hidden = scene(slice(0, 0), height=5)
    hidden[:, 3:] = True
    color[:, :, 3:] = 99
    draw_out(color, w, hidden)
    assert color[0, 0, 4].tolist() == list(range(10))


def test_without_any_donor_colours_stay(draw_out):
    color, w, hidden = scene(slice(None))
    draw_out(color, w, hidden)
    assert (color == 99).all()


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_loops_draw_out_what_tensors_do(share):
    generator = torch.Generator().manual_seed(0)
    color = torch.randint(0, 256, (2, 3, 30, 20), generator=generator, dtype=torch.uint8)
    hidden = torch.rand(2, 30, 20, generator=generator) < share
    w = torch.rand(2, 30, 20, generator=generator).mul(5).round()
    loops, tensors = color.clone(), color.clone()
    draw_out_background(loops, w, hidden)
    draw_out_with_tensors(tensors, w, hidden)
    assert not loops.equal(color)
    assert loops.equal(tensors)


def test_is_any_is_any():
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    assert not is_any(mask)
    mask[1, 2, 4] = True
    assert is_any(mask)
    assert is_any(mask.mT)
