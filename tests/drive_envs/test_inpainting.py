import torch

from drive_envs.inpainting import draw_out_background, is_any


def scene(hidden_columns, height=3, width=10):
    """Colours that say their column, with an obstacle's colour, 99, where hidden."""
    color = torch.arange(width, dtype=torch.float32).expand(1, 3, height, width).clone()
    hidden = torch.zeros(1, height, width, dtype=torch.bool)
    hidden[..., hidden_columns] = True
    color[:, :, hidden[0]] = 99.0
    return color, torch.full((1, height, width), 0.1), hidden


def test_the_farther_side_is_drawn_out():
    color, w, hidden = scene(slice(4, 6))
    w[..., :4] = 0.2
    draw_out_background(color, w, hidden)
    # Column 6 is beside the obstacle, so its colour may be the obstacle's: 7 is the donor.
    assert (color[..., 4:6] == 7).all()
    assert color[0, 0, 0].tolist() == [0, 1, 2, 3, 7, 7, 6, 7, 8, 9]


def test_of_two_as_far_the_nearer_in_the_image():
    color, w, hidden = scene(slice(3, 7))
    draw_out_background(color, w, hidden)
    assert color[0, 0, 0].tolist() == [0, 1, 2, 1, 1, 8, 8, 7, 8, 9]


def test_at_the_border_there_is_one_side():
    color, w, hidden = scene(slice(0, 4))
    draw_out_background(color, w, hidden)
    assert (color[..., :4] == 5).all()


def test_a_row_without_donors_takes_from_its_columns():
    color, w, hidden = scene(slice(0, 0), height=5)
    hidden[:, 3:] = True
    color[:, :, 3:] = 99.0
    draw_out_background(color, w, hidden)
    assert color[0, 0, 4].tolist() == list(range(10))


def test_without_any_donor_colours_stay():
    color, w, hidden = scene(slice(None))
    draw_out_background(color, w, hidden)
    assert (color == 99).all()


def test_is_any_is_any():
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    assert not is_any(mask)
    mask[1, 2, 4] = True
    assert is_any(mask)
    assert is_any(mask.mT)
