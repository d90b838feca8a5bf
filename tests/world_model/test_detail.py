import torch

from world_model.detail import NUM_BLOCKS, NUM_FEATURES, Detail


def test_nothing_is_drawn_at_first():
    detail = Detail(num_shown=4, num_channels=2, num_hidden=8)
    drawn = detail(torch.randn(3, NUM_FEATURES, 4, 8), torch.randn(3, 4, 4, 8))
    assert drawn.shape == (3, 2, 4, 8)
    assert not drawn.any()


def test_what_is_drawn_depends_on_what_lies_beside_it():
    torch.manual_seed(0)
    detail = Detail(num_shown=4, num_channels=2, num_hidden=8)
    for parameter in detail.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    features, shown = torch.randn(1, NUM_FEATURES, 19, 23), torch.randn(1, 4, 19, 23)
    before = detail(features, shown)
    changed = shown.clone()
    changed[:, :, 9, 11] += 1.0
    difference = (detail(features, changed) - before).abs().amax((0, 1))
    rows, columns = difference.nonzero().unbind(1)
    reach = 2 * NUM_BLOCKS + 2
    assert (rows.min(), rows.max()) == (9 - reach, 9 + reach)
    assert (columns.min(), columns.max()) == (11 - reach, 11 + reach)
