"""Reads and writes by index, with fixed indices and with indices that are labels."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import causaltrace
from tests.oracle import Index, check, grads
from tests.rules.test_pointwise import rand


def ids(*values: object, below: int = 3) -> Index:
    return Index(torch.tensor(values), range(below))


PAIR = ids([0, 2], [1, 1])  # [2, 2]


def test_embedding() -> None:
    check(lambda w, i: F.embedding(i, w), rand(3, 2), PAIR)
    check(lambda i: F.embedding(i, torch.arange(6.0).view(3, 2)), PAIR, exact=True)
    seed = rand(2, 2, 2, zeros=0.3)
    seed[0, 1] = 0
    check(lambda w, i, g: grads(lambda w: F.embedding(i, w))(w, g), rand(3, 2), PAIR, seed)
    fixed = torch.tensor([2, 0])
    check(lambda w, g: grads(lambda w: F.embedding(fixed, w))(w, g), rand(3, 2), rand(2, 2), exact=True)
    check(
        lambda i, g: torch.ops.aten.embedding_dense_backward(g, i, 3, -1, True),
        ids(0, 2, 0),
        rand(3, 1) * torch.tensor([[1.0], [1.0], [0.0]]),
    )
    check(lambda i, g: torch.ops.aten.embedding_dense_backward(g, i, 3, 1, False), ids(0, 2, 0), rand(3, 1))


@pytest.mark.parametrize("dim", [0, 1])
def test_gather_and_its_backward(dim: int) -> None:
    x, index = rand(3, 3), ids([0, 2], [1, 1])
    check(lambda x, i: torch.gather(x, dim, i), x, index)
    check(lambda x: torch.gather(x, dim, index.tensor), x, exact=True)
    seed = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    check(lambda x, i, g: grads(lambda x: torch.gather(x, dim, i))(x, g), x, index, seed)
    check(lambda x, g: grads(lambda x: torch.gather(x, dim, index.tensor))(x, g), x, seed, exact=True)
    check(
        lambda x, i: torch.take_along_dim(x, i, dim),
        rand(3, 3),
        ids([0], [1], [2]) if dim else ids([0, 1, 2]),
    )
    check(lambda x, i: torch.gather(x, 0, i), rand(3), ids(1, 1, 0))


def test_index_select_and_take() -> None:
    check(lambda x, i: torch.index_select(x, 1, i), rand(2, 3), ids(0, 2))
    check(lambda x, i: torch.index_select(x, 0, i), torch.tensor(1.5), Index(torch.tensor([0]), [0]))
    check(lambda x: x.index_select(0, torch.tensor([1, 1, 0])), rand(2, 2), exact=True)
    check(
        lambda x, g: grads(lambda x: x.index_select(0, torch.tensor([1, 1, 0])))(x, g),
        rand(2, 2),
        rand(3, 2),
        exact=True,
    )
    check(
        lambda x, i, g: grads(lambda x: x.index_select(1, i))(x, g),
        rand(2, 3),
        ids(0, 2),
        rand(2, 2, zeros=0.4),
    )
    check(lambda x, i: torch.take(x, i), rand(2, 3), ids([0, 5], below=6))
    check(lambda x, i, y: x.put_(i, y), rand(2, 2), ids(0, 3, below=4), rand(2))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, i, j: x[i],
        lambda x, i, j: x[:, i],
        lambda x, i, j: x[i, j],
        lambda x, i, j: x[i[:, None], j],
        lambda x, i, j: x[:, :, None][i, :, 0],
        lambda x, i, j: x.unsqueeze(1)[i, :, j],
        lambda x, i, j: x[i, None, :2],
        lambda x, i, j: x[..., i],
        lambda x, i, j: x[-i - 1],
        lambda x, i, j: x[i][:, j],
        lambda x, i, j: x[i[:1]],
        lambda x, i, j: x[0, i[:1]],
        lambda x, i, j: x[torch.tensor([0, 1]), j],
        lambda x, i, j: x[torch.tensor([[True, False, True]] * 3)],
    ],
)
def test_advanced_reads(fn: object) -> None:
    check(fn, rand(3, 3), ids(0, 2), ids(1, 1))
    check(lambda x, i, j: fn(x.t(), i, j), rand(3, 3), ids(0, 2), ids(1, 1))
    shape = fn(rand(3, 3), ids(0, 2).tensor, ids(1, 1).tensor).shape
    check(
        lambda x, i, j, g: grads(lambda x: fn(x, i, j))(x, g),
        rand(3, 3),
        ids(0, 2),
        ids(1, 1),
        rand(*shape, zeros=0.3),
    )
    check(lambda x: fn(x, torch.tensor([0, 2]), torch.tensor([1, 0])), rand(3, 3), exact=True)


def test_rows_picked_at_labels_stay_apart_in_backward() -> None:
    rows = torch.arange(3)

    def fn(x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        return grads(lambda x: x[rows, y])(x, g)[1]

    check(fn, rand(3, 2), Index(torch.tensor([0, 1, 1]), [0, 1]), rand(3) + 0.1, exact=True)
    check(fn, rand(3, 2), Index(torch.tensor([0, 1, 1]), [0, 1]), torch.tensor([0.0, 1.0, 0.0]))


def slice_all(n: int) -> Tensor:
    return torch.arange(n)[:, None]


def put(x: Tensor, where: object, values: Tensor, add: bool) -> Tensor:
    x = x.clone()
    return x.index_put_(where, values, accumulate=add)


@pytest.mark.parametrize("add", [False, True])
def test_index_put(add: bool) -> None:
    i, j = ids(0, 2), ids(1, 0)
    check(lambda x, i, j, v: put(x, (i, j), v, add), rand(3, 3), i, j, rand(2, zeros=0.5))
    check(lambda x, i, v: put(x, (i,), v, add), rand(3, 2), i, rand(2, 2, zeros=0.5))
    check(lambda x, i, v: put(x, (i,), v, add), rand(3, 2), i, rand(2))
    check(lambda x, i, v: put(x, (i, torch.tensor([1, 1])), v, add), rand(3, 2), i, rand(2, zeros=0.5))
    check(lambda x, v: put(x, (i.tensor, j.tensor), v, add), rand(3, 3), rand(2), exact=True)
    check(lambda x, v: put(x, (slice_all(2), j.tensor), v, add), rand(2, 3), rand(2, 2), exact=True)
    check(
        lambda x, v: put(x, (j.tensor[:, None], j.tensor), v, add), rand(2, 2), torch.tensor(0.7), exact=True
    )
    check(
        lambda x, m, v: put(x, (m,), v, add), rand(3, 2), torch.tensor([True, False, True]), torch.tensor(0.5)
    )
    check(
        lambda x, m, v: put(x, (m,), v[: int(m.sum())], add),
        rand(3),
        torch.tensor([True, False, True]),
        rand(3),
    )


def test_assignment() -> None:
    def fn(x: Tensor, m: Tensor, i: Tensor, v: Tensor) -> Tensor:
        x[m] = 0.0
        x[i, 1] = v[0]
        x[1] += v[:2]
        x[:, i] = v[2]
        return x

    check(fn, rand(3, 2), rand(3, 2) > 0, Index(torch.tensor([0, 1]), [0, 1]), rand(3))
    check(lambda x, m: x.masked_fill(m, 1.0), rand(3, 2), rand(3, 2) > 0, exact=True)
    mask = torch.tensor([[True, False], [False, False], [True, True]])

    def zeroed(x: Tensor) -> Tensor:
        x[mask] = 0.0
        return x

    check(zeroed, rand(3, 2), exact=True)


@pytest.mark.parametrize("op", ["scatter", "scatter_add", "amax", "prod", "mean"])
@pytest.mark.parametrize("dim", [0, 1])
def test_scatter(op: str, dim: int) -> None:
    def fn(x: Tensor, i: Tensor, v: Tensor) -> Tensor:
        return getattr(x, op)(dim, i, v) if op.startswith("scatter") else x.scatter_reduce(dim, i, v, op)

    check(fn, rand(3, 3), PAIR, rand(2, 3, zeros=0.4))
    distinct = torch.tensor([[0, 1], [1, 0]])
    check(lambda x, v: fn(x, distinct, v), rand(3, 3), rand(2, 2), exact=op.startswith("scatter"))
    check(lambda x, v: x.scatter_reduce(dim, distinct, v, "sum", include_self=False), rand(2, 2), rand(2, 2))


def test_more_scatter() -> None:
    check(lambda x, i: x.scatter_(1, i, 0.0), rand(2, 3), PAIR)
    check(lambda i: F.one_hot(i, 3), ids(0, 2))
    check(lambda i: torch.zeros(2, 3).scatter_(1, i[:, None], 1.0), ids(0, 2), exact=True)
    check(lambda x, i, v: x.scatter(0, i, v), rand(3), ids(0, 2), rand(2))
    index = torch.tensor([1, 0, 1])
    check(lambda x, v: x.scatter_add(0, index[:, None].expand(3, 2), v), rand(2, 2), rand(3, 2), exact=True)
    check(lambda x, i, v: x.scatter_(1, i, v, reduce="add"), rand(2, 3), PAIR, rand(2, 2, zeros=0.5))


@pytest.mark.parametrize("dim", [0, 1])
def test_index_add_copy_fill(dim: int) -> None:
    fixed = torch.tensor([2, 0])
    v = rand(2, 3) if dim == 0 else rand(3, 2)
    check(lambda x, i, v: x.index_add(dim, i, v), rand(3, 3), ids(0, 0), v * (v > 0))
    check(lambda x, v: x.index_add(dim, fixed, v, alpha=2), rand(3, 3), v, exact=True)
    check(lambda x, i, v: x.index_copy(dim, i, v), rand(3, 3), ids(0, 2), v)
    check(lambda x, v: x.index_copy_(dim, fixed, v), rand(3, 3), v, exact=True)
    check(lambda x, i, v: x.index_fill(dim, i, v), rand(3, 3), ids(0, 2), torch.tensor(2.0))
    check(lambda x: x.index_fill_(dim, fixed, 1.0), rand(3, 3))
    check(lambda x, i, v: x.index_reduce(dim, i, v, "amax"), rand(3, 3), ids(0, 2), v)


def test_masked() -> None:
    mask = torch.tensor([[True, False], [False, True]])
    check(lambda x, m: x.masked_fill(m, 3.0), rand(2, 2), mask, exact=True)
    check(lambda x, m, v: x.masked_fill(m, v), rand(2, 2), mask, torch.tensor(1.5))
    check(lambda x: x.masked_select(mask), rand(2, 2), exact=True)
    check(lambda x, v: x.masked_scatter(mask, v), rand(2, 2), rand(3), exact=True)
    check(lambda x, m, v: x.masked_scatter(m, v), rand(2, 2), mask, rand(4))
    check(
        lambda x, v, g: grads(lambda x, v: x.masked_scatter(mask, v), (0, 1))(x, v, g),
        rand(2, 2),
        rand(3),
        rand(2, 2),
    )
    check(lambda x, g: grads(lambda x: x.masked_select(mask))(x, g), rand(2, 2), rand(2), exact=True)
    check(lambda x, g: grads(lambda x: x.masked_fill(mask, 0.0))(x, g), rand(2, 2), rand(2, 2), exact=True)
    check(lambda c, a, b: torch.where(c, a, b), mask, rand(2, 2), rand(2))
    check(lambda c, a: torch.where(c, a, 0.0), mask[0], rand(2, 2))
    check(lambda a, b: torch.where(mask, a, b), rand(2, 2), rand(2, 2), exact=True)
    check(
        lambda a, b, g: grads(lambda a, b: torch.where(mask, a, b), (0, 1))(a, b, g),
        rand(2, 2),
        rand(2),
        rand(2, 2),
    )


def test_counting() -> None:
    check(lambda i, w: torch.bincount(i, w, minlength=3), ids(0, 2), rand(2))
    check(lambda w: torch.bincount(torch.tensor([0, 2, 0]), w, minlength=5), rand(3), exact=True)
    check(lambda x: torch.nonzero_static(x > 0, size=3), rand(3), opaque=True)


def test_places_of_a_fixed_number() -> None:
    check(lambda x: torch.nonzero_static((x > 0).float(), size=3), rand(4))
    check(lambda i: torch.ops.aten._unique(i, True, True)[1], Index(torch.tensor([2, 1, 2]), range(3)))


def test_masked_indices() -> None:
    mask, at = torch.tensor([True, False]), torch.tensor([1, 0])
    op, put = torch.ops.aten._unsafe_masked_index, torch.ops.aten._unsafe_masked_index_put_accumulate
    check(lambda x: op(x, mask, [at], 0.0), rand(3), exact=True)
    check(lambda x, m, i: op(x, m, [i], 0.0), rand(3), mask, Index(at, range(-1, 4)))
    check(lambda x, v: put(x, mask, [at], v), rand(3), rand(2), exact=True)
    check(lambda x, m, i, v: put(x, m, [None, i], v), rand(2, 3), mask, Index(at, range(4)), rand(2, 2))
    check(lambda x, i, v: put(x, mask, [i[:, None], at], v), rand(3, 2), Index(at, range(3)), rand(2, 2))


def test_a_mask_decides_order_only_up_to_a_place() -> None:
    x, m = torch.arange(1.0, 7), torch.tensor([True, False, True, True, False, True])
    reach = causaltrace.dependencies(lambda x, m, v: x.masked_scatter(m, v), x, m, torch.arange(9.0, 15))[0]
    assert reach[1].tolist() == [[j <= i if m[i] else j == i for j in range(6)] for i in range(6)]
    assert reach[2].nonzero().tolist() == [[0, 0], [2, 1], [3, 2], [5, 3]]
    check(lambda x, v: x.masked_scatter(m.view(2, 3), v), rand(3), rand(6), exact=True)  # self is broadcast
    reach = causaltrace.dependencies(
        lambda x, m: x.index_put((m,), torch.ones(1, 2)), torch.ones(3, 2), m[:3]
    )[0]
    assert reach[1].nonzero().tolist() == [[i, c, i] for i in range(3) for c in range(2)]
    reach = causaltrace.dependencies(lambda m: torch.ones(3).index_put((m,), torch.ones(2)), m[:3])[0]
    assert reach[0].nonzero().tolist() == [[0, 0], [1, 1], [2, 0], [2, 1], [2, 2]]


def test_values_land_where_the_index_says() -> None:
    x, i = torch.ones(4), torch.tensor([2, 0])
    for fn in (
        lambda x, i, v: x.put(i, v),
        lambda x, i, v: x.scatter(0, i, v),
        lambda x, i, v: x.scatter_add(0, i, v),
        lambda x, i, v: F.embedding(i, x[:, None] * torch.ones(2)).pow(2).sum(1) * v,
    ):
        reach = causaltrace.dependencies(fn, x, i, torch.tensor([3.0, 5.0]))[0]
        assert reach[2].sum() == 2, fn
    grad = lambda i, g: torch.ops.aten.embedding_dense_backward(g, i, 4, -1, False)  # noqa: E731
    reach = causaltrace.dependencies(grad, i, torch.ones(2, 3))[0]
    assert reach[0].all() and reach[1].sum() == 6


def test_the_only_place_there_is() -> None:
    one, at = torch.ones(1, 2), torch.tensor([0, 0])
    for fn in (
        lambda x, i: x.index_select(0, i),
        lambda x, i: x[:, 0].take(i),
        lambda x, i: F.embedding(i, x),
    ):
        assert not causaltrace.dependencies(fn, one, at)[0][1].any()
    reach = causaltrace.dependencies(lambda x, i: x.index_fill(0, i, 2.0), torch.tensor(1.0), at[:1])[0]
    assert not any(part.any() for part in reach)


def test_a_zero_that_takes_the_place_of_self() -> None:
    x, i, v = rand(4), Index(torch.tensor([2, 0]), range(4)), torch.zeros(2)
    check(lambda x, i, v: x.scatter_reduce(0, i, v, "sum", include_self=False), x, i, v)
    check(lambda x, i, v: x.index_reduce(0, i, v, "mean", include_self=False), x, i, v)


def test_numbers_and_single_indices() -> None:
    """An index of one dim into a number, a single index into a vector, and the other way round."""
    one, x = torch.tensor(1.5), rand(3)
    here, at = Index(torch.tensor([0, 0]), [0]), Index(torch.tensor(1), range(3))
    check(lambda x, i: x.gather(0, i), one, here, exact=True)
    check(lambda x, i: x.gather(0, i), x, at)
    check(lambda x: x.gather(0, torch.tensor(1)), x, exact=True)
    none = torch.zeros(2, 0, dtype=torch.int64)
    check(lambda x: (x.gather(0, none), x.scatter(0, none, 1.0)), x, exact=True)
    check(lambda x, v: x.scatter(0, torch.tensor([0]), v), one, rand(1), exact=True)
    check(lambda x, i, v: x.scatter(0, i, v), x, at, torch.tensor(2.0))
    check(lambda x, v: x.scatter_reduce(0, here.tensor, v, "mean", include_self=False), one, rand(2))
    check(lambda x, v: x.put(torch.tensor([[0, 1], [2, 3]]), v), rand(2, 3), rand(4), exact=True)
    check(lambda x, i, v: x.put(i, v), rand(2, 3), ids([0, 1], [2, 3], below=6), rand(4))
    check(lambda x, i, v: x.put(i, v), rand(2, 3), Index(torch.tensor(2), range(6)), rand(1))


def test_what_is_replaced_or_not_added_is_not_depended_on() -> None:
    x, v, at = torch.ones(2, 3), torch.ones(2, 2), torch.tensor([0, 2])
    for fn in (
        lambda x, v: x.index_reduce(1, at, v, "amax", include_self=False),
        lambda x, v: x.scatter_reduce(1, at.expand(2, 2), v, "prod", include_self=False),
    ):
        reach = causaltrace.dependencies(fn, x, v)[0]
        assert reach[0].nonzero().tolist() == [[0, 1, 0, 1], [1, 1, 1, 1]]
        assert reach[1].sum() == 4
        check(fn, rand(2, 3), rand(2, 2))
    reach = causaltrace.dependencies(lambda i, v: x.index_add(1, i, v, alpha=0), at, v)[0]
    assert not any(part.any() for part in reach)


def test_weights_decide_nothing_but_their_bin() -> None:
    at = torch.tensor([0, 2, 0])
    reach = causaltrace.dependencies(lambda i, w: torch.bincount(i, w), at, torch.ones(3))[0]
    assert reach[0].all() and reach[1].nonzero().tolist() == [[0, 0], [0, 2], [2, 1]]


def test_a_nonzero_is_placed_by_what_comes_before() -> None:
    x = torch.tensor([0.0, 1.0, 0.0, 1.0])
    check(lambda x: torch.nonzero_static(x, size=6).double(), x, large=2.0)
    (reach,) = causaltrace.dependencies(lambda x: torch.nonzero_static(x, size=6), x)[0]
    up_to = [[True, True, False, False], [True] * 4, [True] * 4, [True] * 4, [False] * 4, [False] * 4]
    assert reach[:, 0].tolist() == up_to


def test_one_element_is_the_only_distinct_one() -> None:
    out, inverse, counts = causaltrace.dependencies(
        lambda x: torch.unique(x, return_inverse=True, return_counts=True), torch.randn(1)
    )
    assert out[0].all() and not inverse[0].any() and not counts[0].any()
    _, inverse, counts = causaltrace.dependencies(
        lambda x: torch.unique(x, return_inverse=True, return_counts=True), torch.randn(3)
    )
    assert inverse[0].all() and counts[0].all()
