"""Reductions of segments, by lengths and by offsets."""

import pytest
import torch
from torch import Tensor

from tests.oracle import Index, check, grads
from tests.rules.test_pointwise import rand


@pytest.mark.parametrize("kind", ["sum", "mean", "max", "min", "prod"])
def test_segments(kind: str) -> None:
    layouts = [{"lengths": torch.tensor([1, 0, 3])}, {"offsets": torch.tensor([0, 1, 1, 4])}]
    for layout in layouts:

        def fn(x: Tensor, layout: dict[str, Tensor] = layout) -> Tensor:
            return torch.segment_reduce(x, kind, **layout, unsafe=True, initial=0.5)

        exact = kind in ("sum", "mean")
        check(fn, rand(4, 2), exact=exact, large=4.0)
        check(grads(fn), rand(4, 2), rand(3, 2), large=4.0)
        check(grads(fn), rand(4), rand(3, zeros=0.4), large=4.0)


def test_lengths_with_labels() -> None:
    def fn(x: Tensor, n: Tensor) -> Tensor:
        ends = torch.cat((n[:1] * 0, n.sort().values, n[:1] * 0 + 4))
        return torch.segment_reduce(x, "sum", offsets=ends, unsafe=True, initial=0)

    borders = Index(torch.tensor([1, 3]), range(5))
    check(fn, rand(4, 2), borders)
    check(lambda x, n, g: grads(lambda x: fn(x, n))(x, g), rand(4, 2), borders, rand(3, 2))


@pytest.mark.parametrize("kind", ["sum", "max", "prod"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 2)], ids=str)
def test_a_layout_for_each_batch(kind: str, shape: tuple[int, ...]) -> None:
    lengths, offsets = torch.tensor([[1, 2], [3, 0]]), torch.tensor([[0, 1, 3], [0, 3, 3]])
    x, grad = rand(*shape), rand(2, 2, *shape[2:], zeros=0.3)
    for layout in ({"lengths": lengths}, {"offsets": offsets}):

        def fn(x: Tensor, layout: dict[str, Tensor] = layout) -> Tensor:
            return torch.segment_reduce(x, kind, **layout, axis=1, initial=0.5)

        check(fn, x, exact=kind != "max", large=4.0)
        check(grads(fn), x, grad, large=4.0)
        check(lambda g, fn=fn: grads(fn)(x, g)[1], grad, exact=kind != "max")
