"""Pickling of PyTorch's tensors as arrays: their own pickling copies all data."""

from __future__ import annotations

import importlib
import sys
from typing import Any

__all__ = ["reduce_tensor"]


def reduce_tensor(value: Any) -> tuple[Any, ...] | None:
    """Return how to rebuild a tensor from a NumPy array of its bytes.

    Returns:
        A value for `__reduce__`. None: not a tensor, or one that is more than its data.
    """
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not getattr(torch, "Tensor", None):
        return None
    if (
        value.device.type != "cpu"
        or value.layout != torch.strided
        or not value.is_contiguous()
        or value.requires_grad
        or value.is_quantized
        or value.is_conj()
        or value.is_neg()
        or not value.numel()
        or vars(value)
    ):
        return None
    try:
        array = value.reshape(-1).view(torch.uint8).numpy()
    except RuntimeError:  # without NumPy, or a type that has no bytes
        return None
    return _rebuild, (array, value.dtype, tuple(value.shape))


def _rebuild(array: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    torch = importlib.import_module("torch")
    return torch.from_numpy(array).view(dtype).reshape(shape)
