"""Tensors as arrays."""

from typing import Any

import pytest

from rhapsody.backends.data.tensors import reduce_tensor

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool", "complex64"])
def test_tensor_is_rebuilt(dtype: str) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    reduced = reduce_tensor(tensor)
    assert reduced is not None
    copy = reduced[0](*reduced[1])
    assert copy.dtype == tensor.dtype
    assert torch.equal(copy, tensor)


def test_array_is_the_memory_of_the_tensor() -> None:
    tensor = torch.zeros(4)
    reduced = reduce_tensor(tensor)
    assert reduced is not None
    tensor[0] = 1.0
    assert reduced[1][0].any()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, requires_grad=True),
        torch.nn.Parameter(torch.zeros(3)),
        torch.zeros(2, 3).T,
        torch.zeros(0),
        torch.eye(3).to_sparse(),
    ],
    ids=["with a gradient", "parameter", "transposed", "empty", "sparse"],
)
def test_other_tensors_are_left_to_torch(tensor: Any) -> None:
    assert reduce_tensor(tensor) is None


def test_other_values_are_not_tensors() -> None:
    assert reduce_tensor([1.0]) is None
