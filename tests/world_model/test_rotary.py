import torch

from world_model.rotary import angles, rotate, split_pairs


def test_all_pairs_are_shared_out():
    for head_dim in (32, 48, 64):
        assert sum(split_pairs(head_dim)) == head_dim // 2


def test_only_differences_of_places_matter():
    rows, columns, dim = 2, 3, 32
    query, key = torch.randn(2, 1, 1, 2 * rows * columns, dim)

    def products(frames):
        angle = angles(torch.tensor([frames]), rows, columns, dim)
        turned = [rotate(x, angle.cos(), angle.sin()) for x in (query, key)]
        return turned[0] @ turned[1].mT

    torch.testing.assert_close(products([0, 4]), products([30, 34]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(products([0, 4]), products([0, 5]), atol=1e-2)


def test_tokens_run_over_frames_then_rows_then_columns():
    angle = angles(torch.tensor([[0, 1]]), 2, 3, 12)
    frame, row, column = 2, 2, 2  # pairs of each
    assert split_pairs(12) == (frame, row, column)
    assert angle[0, :, 0].tolist() == [0] * 6 + [1] * 6
    assert angle[0, :, 2].tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert angle[0, :, 4].tolist() == [0, 1, 2] * 4
