"""Embedding bags: rows by bag, labelled indices, weights of indices, padding, gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracle import Index, check, grads
from tests.rules.test_pointwise import rand

#: Bags of 2, 0, 1 and 1 indices.
INDEX, OFFSETS = torch.tensor([1, 0, 2, 1]), torch.tensor([0, 2, 2, 3])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags(mode: str) -> None:
    def bags(table: Tensor, index: Tensor) -> Tensor:
        return F.embedding_bag(index, table, OFFSETS, mode=mode)

    table = rand(3, 2)
    for chosen in (torch.no_grad, torch.enable_grad):
        with chosen():
            check(lambda t: bags(t, INDEX), table, exact=True)
            check(bags, table, Index(INDEX, range(3)), exact=mode == "sum")
    g = rand(4, 2, zeros=0.4)
    check(lambda t, g: grads(lambda t: bags(t, INDEX))(t, g), table, g)
    check(lambda t, i, g: grads(lambda t: bags(t, i))(t, g), table, Index(INDEX, range(3)), g)
    if mode == "sum":
        check(lambda t, g: grads(lambda t: bags(t, INDEX))(t, g), table, rand(4, 2), exact=True)
        with torch.inference_mode():
            check(lambda t: bags(t.bfloat16(), INDEX).float(), table)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_padding_is_not_read(mode: str) -> None:
    def bags(table: Tensor, index: Tensor) -> Tensor:
        return F.embedding_bag(index, table, OFFSETS, mode=mode, padding_idx=2)

    check(lambda t: bags(t, INDEX), rand(3, 2), exact=True)
    check(bags, rand(3, 2), Index(INDEX, range(3)))
    index = Index(INDEX, range(3))
    check(lambda t, i, g: grads(lambda t: bags(t, i))(t, g), rand(3, 2), index, rand(4, 2, zeros=0.3))


def test_weights_of_indices() -> None:
    def bags(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return F.embedding_bag(index, table, OFFSETS, mode="sum", per_sample_weights=weights)

    table, weights, g = rand(3, 2), rand(4), rand(4, 2, zeros=0.5)
    check(lambda t, w: bags(t, INDEX, w), table, weights, exact=True)
    check(bags, table, Index(INDEX, range(3)), weights)
    check(lambda t, w, g: grads(lambda t, w: bags(t, INDEX, w), (0, 1))(t, w, g), table, weights, g)
    one = grads(lambda t, w: bags(t, INDEX, w), (0, 1))
    check(lambda t, w, g: one(t, w, g), table, weights, rand(4, 2), exact=True)
    index = Index(INDEX, range(3))
    check(lambda t, w, i, g: grads(lambda t, w: bags(t, i, w), (0, 1))(t, w, g), table, weights, index, g)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_borders_of_bags(mode: str) -> None:
    def bags(table: Tensor, starts: Tensor) -> Tensor:
        offsets = torch.cat((starts[:1] * 0, starts.sort().values))
        return F.embedding_bag(INDEX, table, offsets, mode=mode)

    starts = Index(torch.tensor([1, 3]), range(5))
    check(bags, rand(3, 2), starts)
    check(lambda t, o, g: grads(lambda t: bags(t, o))(t, g), rand(3, 2), starts, rand(3, 2, zeros=0.3))
    last = torch.tensor([0, 2, 4])
    check(
        lambda t: F.embedding_bag(INDEX, t, last, mode=mode, include_last_offset=True), rand(3, 2), exact=True
    )
    check(lambda t: F.embedding_bag(INDEX.view(2, 2), t, mode=mode), rand(3, 2), exact=True)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_gradients_by_frequency(mode: str) -> None:
    def bags(table: Tensor, index: Tensor) -> Tensor:
        return F.embedding_bag(index, table, OFFSETS, mode=mode, scale_grad_by_freq=True)

    g = rand(4, 2, zeros=0.4)
    check(lambda t, i, g: grads(lambda t: bags(t, i))(t, g), rand(3, 2), Index(INDEX, range(3)), g)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_gradients_without_offsets(mode: int) -> None:
    op = torch.ops.aten._embedding_bag_dense_backward
    table = torch.tensor([[0.3, 1.0], [0.5, 2.0], [0.1, 0.7]])
    _, _, size, best = torch.ops.aten._embedding_bag(table, INDEX, OFFSETS, False, mode)
    owner = torch.tensor([0, 0, 2, 3])
    exact = mode != 2
    check(lambda g: op(g, INDEX, owner, size, best, 3, False, mode, None), rand(4, 2), exact=exact)
    index = Index(INDEX, range(3))
    check(lambda g, i: op(g, i, owner, size, best, 3, False, mode, None), rand(4, 2, zeros=0.4), index)


def test_no_bags_and_no_indices() -> None:
    none = INDEX[:0]
    check(lambda t: torch.cat((F.embedding_bag(none, t, none), t)), rand(3, 2))
    check(lambda t: F.embedding_bag(none, t, torch.tensor([0, 0])) + t[:2], rand(3, 2), exact=True)


def test_gradients_land_in_their_rows() -> None:
    weights = rand(4)
    fn = lambda t, w: F.embedding_bag(INDEX, t, OFFSETS, mode="sum", per_sample_weights=w)  # noqa: E731
    check(grads(fn, (0, 1)), rand(3, 2), weights, rand(4, 2), exact=True)


def test_maxima_are_read_by_bag_and_column() -> None:
    """A row that no bag names gets nothing from those that compete; one candidate competes with none."""
    fn = lambda t: F.embedding_bag(INDEX, t, OFFSETS, mode="max")  # noqa: E731
    check(grads(fn), rand(5, 2) / 9, rand(4, 2), exact=True)
    twice = torch.tensor([1, 1, 2, 1])
    fn = lambda t: F.embedding_bag(twice, t, OFFSETS, mode="max")  # noqa: E731
    check(grads(fn), rand(3, 2) / 9, rand(4, 2), exact=True)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_padding_gets_no_gradient(mode: str) -> None:
    weights = {"per_sample_weights": rand(4)} if mode == "sum" else {}

    def bags(table: Tensor, index: Tensor) -> Tensor:
        return F.embedding_bag(index, table, OFFSETS, mode=mode, padding_idx=2, **weights)

    index, table = Index(INDEX, range(4)), rand(4, 1)
    check(lambda i, g: grads(lambda t: bags(t, i))(table, g)[1], index, rand(4, 1), exact=True)


def test_padding_has_no_weight() -> None:
    table = rand(3, 2)

    def run(index: Tensor, weights: Tensor, g: Tensor) -> Tensor:
        fn = lambda w: F.embedding_bag(  # noqa: E731
            index, table, OFFSETS, mode="sum", padding_idx=2, per_sample_weights=w
        )
        return grads(fn)(weights, g)[1]

    check(run, Index(INDEX, range(3)), rand(4), rand(4, 2), exact=True)
