"""Attention: the two ways of computing it agree, forward and backward."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from world_model import transformer
from world_model.transformer import attention, attention_by_products


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
