"""Packed rows to padded ones and back."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracle import Index, check, grads
from tests.rules.test_pointwise import rand

PADDED = torch.ops.aten._jagged_to_padded_dense_forward
PACKED = torch.ops.aten._padded_dense_to_jagged_forward
STARTS = torch.tensor([0, 1, 1, 4])


def test_padding_is_exact() -> None:
    check(lambda x: PADDED(x, [STARTS], [3]), rand(4, 2), exact=True)
    check(lambda x: PADDED(x, [STARTS], [2], -1.0), rand(4, 2), exact=True)


def test_packing_is_exact() -> None:
    check(lambda x: PACKED(x, [STARTS], 4), rand(3, 3, 2), exact=True)


def test_gradients_through_nested_tensors() -> None:
    def fn(x: Tensor) -> Tensor:
        nested = torch.nested.nested_tensor_from_jagged(x, STARTS)
        return torch.nested.to_padded_tensor(nested.sin(), 0.0)[:, :3]

    check(grads(fn), rand(4, 2), rand(3, 3, 2), exact=True)


def test_offsets_count() -> None:
    def padded(x: Tensor, cut: Tensor) -> Tensor:
        return PADDED(x, [torch.cat((STARTS[:1], cut, STARTS[-1:]))], [4])

    def packed(x: Tensor, cut: Tensor) -> Tensor:
        return PACKED(x, [torch.cat((STARTS[:1], cut, STARTS[-1:]))], 4)

    check(padded, rand(4, 1), Index(torch.tensor([1]), [0, 1, 2, 3, 4]))
    check(packed, rand(2, 4, 1), Index(torch.tensor([1]), [0, 1, 2, 3, 4]))


def test_bfloat16_and_no_rows() -> None:
    check(lambda x: PADDED(x.bfloat16(), [STARTS], [3]).float(), rand(4, 1))
    check(lambda x: PADDED(x[:0], [torch.tensor([0, 0, 0])], [2]), rand(1, 1))
