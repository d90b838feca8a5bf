import time

import pytest
import torch

from drive_envs.precision import autocast, dtype_of, has_bf16


def seconds_of(dtype):
    """Time a product, the best of many: other processes may hold the cores for a while."""
    a = torch.randn(256, 256).to(dtype)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - began)
    return min(times)


def test_bf16_is_said_to_be_there_where_it_is_no_slower():
    # With products of its own it takes about half of float32's time, emulated 20 to 100 times it.
    assert has_bf16("cpu") == (seconds_of(torch.bfloat16) < 4 * seconds_of(torch.float32))


@pytest.mark.parametrize("is_there", [True, False])
def test_auto_takes_what_is_there(monkeypatch, is_there):
    monkeypatch.setattr("drive_envs.precision.has_bf16", lambda kind: is_there)
    assert dtype_of("auto", "cpu") == (torch.bfloat16 if is_there else torch.float32)
    assert dtype_of("fp32", "cpu") == torch.float32
    with autocast("auto", "cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == dtype_of("auto", "cpu")


def test_what_is_asked_for_by_name_is_done_and_its_price_is_said(monkeypatch, caplog):
    from drive_envs import precision

    monkeypatch.setattr(precision, "has_bf16", lambda kind: False)
    precision._warn_of_emulation.cache_clear()
    assert dtype_of("bf16", "cpu") == dtype_of("bf16", "cpu") == torch.bfloat16
    assert caplog.text.count("a hundred times as long") == 1
