"""Attention: the ways of computing it agree, forward and backward."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from world_model import transformer
from world_model.transformer import (
    attention,
    attention_by_frames,
    attention_by_products,
    sight_of,
)
from world_model.windows import window_mask


def heads(num_tokens, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, num_tokens, 16, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("is_masked", [False, True])
def test_products_equal_the_fused_attention(is_masked):
    mask = torch.ones(7, 9, dtype=torch.bool).tril(2) if is_masked else None
    query, key, value = (heads(n, seed) for seed, n in enumerate((7, 9, 9)))
    ours = attention_by_products(query, key, value, mask)
    theirs = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    weight = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (query, key, value)),
        torch.autograd.grad((theirs * weight).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_large_ones_do_not_keep_their_scores(monkeypatch):
    monkeypatch.setattr(transformer, "MAX_SCORES", 2 * 3 * 8 * 8 - 1)
    monkeypatch.setattr(
        transformer, "attention_by_products", lambda *_: pytest.fail("too many scores to keep")
    )
    query, key, value = (heads(8, seed, torch.bfloat16) for seed in range(3))
    assert attention(query, key, value, None).shape == query.shape


def test_bf16_on_a_cpu_takes_the_products(monkeypatch):
    called = []
    monkeypatch.setattr(
        transformer, "attention_by_products", lambda *given: called.append(given) or given[0]
    )
    for dtype in (torch.bfloat16, torch.float32):
        query, key, value = (heads(8, seed, dtype) for seed in range(3))
        attention(query, key, value, None)
    assert len(called) == 1


@pytest.mark.parametrize("num_frames", [3, 16, 17])
def test_some_frames_at_a_time_is_all_at_once(num_frames):
    mask, space = window_mask(num_anchors=2, num_frames=num_frames, num_history=4), 6
    sight = sight_of(mask, space)
    torch.manual_seed(0)
    parts = torch.randn(3, 2, 3, len(mask) * space, 8, requires_grad=True)
    weight = torch.randn(parts.shape[1:])
    gradients = []
    for attended in (
        attention_by_frames(parts[0], parts[1], parts[2], sight),
        scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=sight.mask),
    ):
        gradients.append(torch.autograd.grad((attended * weight).sum(), parts)[0])
        gradients.append(attended.detach())
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[3])
    # Each group computes what it needs: for a long window less than half of all.
    computed = sum(group.mask.numel() for group in sight.groups)
    assert sight.mask.sum() <= computed
    assert num_frames < 16 or computed < 0.5 * sight.mask.numel()
