"""What products of matrices may be relied on for: when bf16 is quick, and when fp32 is fp32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_fast_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are quicker than in fp32: by what the hardware says, so that it is always the same."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of fp32 in fp32, and sums of bf16 products in fp32 to their end, whatever torch was told to allow.

    `torch.set_float32_matmul_precision` allows TF32 or bf16 for the first; CUDA may add parts of the second in bf16.
    """
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = cuda.fp32_precision, cpu.fp32_precision, cuda.allow_bf16_reduced_precision_reduction
    try:
        cuda.fp32_precision = cpu.fp32_precision = "ieee"
        cuda.allow_bf16_reduced_precision_reduction = False
        yield
    finally:
        cuda.fp32_precision, cpu.fp32_precision, cuda.allow_bf16_reduced_precision_reduction = before
