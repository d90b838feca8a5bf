"""With how many bits a network computes: bfloat16 where the processor multiplies it, else float32.

Half of the x86 processors in use have no products of bfloat16 numbers (AVX512-BF16 or AMX). PyTorch
computes there what it is asked for, number by number, and a training step takes a hundred times
as long; so `auto` asks first, and `bf16` by name is warned of.
"""

import logging
from functools import cache
from typing import Literal

import torch

log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16"]


@cache
def has_bf16(kind: str) -> bool:
    """Tell whether devices of this type ("cpu", "cuda") multiply bfloat16 numbers."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def dtype_of(precision: Precision, kind: str) -> torch.dtype:
    """Return what networks compute with on devices of this type."""
    if precision == "fp32" or (precision == "auto" and not has_bf16(kind)):
        return torch.float32
    if not has_bf16(kind):
        _warn_of_emulation(kind)
    return torch.bfloat16


@cache
def _warn_of_emulation(kind: str) -> None:
    log.warning(
        "precision is bf16, which this %s does not multiply: that can take a hundred times as "
        "long; precision=auto or fp32 would not",
        "processor" if kind == "cpu" else "GPU",
    )


def autocast(precision: Precision, kind: str) -> torch.autocast:
    """Return the context in which networks compute with this precision."""
    dtype = dtype_of(precision, kind)
    return torch.autocast(kind, torch.bfloat16, enabled=dtype == torch.bfloat16)
