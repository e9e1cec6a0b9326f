"""Strided copies, and tensors cut into chunks."""

import torch
from torch import Tensor

from tests.oracle import check, grads
from tests.rules.test_pointwise import rand

ATEN = torch.ops.aten


def test_strided_copies() -> None:
    check(lambda x: ATEN.as_strided_copy(x.contiguous(), [2, 2], [1, 2], 1), rand(3, 2), exact=True)
    check(lambda x: ATEN.as_strided_copy(x.clone()[1:], [2], [1]), rand(4))
    check(lambda x: ATEN.as_strided_copy(x.contiguous().T, [3], [1]), rand(3, 2), exact=True)
    check(lambda x: ATEN.as_strided_copy(x[:1].expand(3, 2), [2], [1], 0), rand(2, 2), layouts=False)


def test_strided_writes() -> None:
    def fn(x: Tensor, y: Tensor) -> Tensor:
        return torch.as_strided_scatter(x, y, [2], [2], 1)

    check(lambda x, y: fn(x.contiguous(), y), rand(3, 2), rand(2), exact=True)
    check(lambda x, y: fn(x.contiguous().T, y), rand(3, 2), rand(2), exact=True)
    check(lambda x, y: fn(x.clone()[1:], y), rand(6), rand(2), exact=True)
    check(lambda x, y: fn(x[:1].expand(3, 2).contiguous(), y), rand(2, 2), rand(2))
    check(grads(lambda x, y: fn(x.contiguous(), y), (0, 1)), rand(3, 2), rand(2), rand(3, 2, zeros=0.3))


def test_chunks() -> None:
    check(lambda x, y: ATEN._chunk_cat([x, y], 0, 2), rand(3, 2), rand(2), exact=True)
