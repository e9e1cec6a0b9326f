"""Matrix products, with zeros on either side."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from causaltrace import dependencies
from tests.oracle import Index, check, grads
from tests.rules.test_pointwise import rand

SHAPES = [
    ((2, 3), (3, 2)),
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 2)),
    ((2, 2, 3), (3, 2)),
    ((2, 2, 2), (2, 2, 2)),
    ((1, 2, 2), (2, 2, 1)),
    ((2, 1), (1, 2)),
    ((1, 1), (1, 1)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_matmul(shapes: tuple[tuple[int, ...], tuple[int, ...]], zeros: float) -> None:
    a, b = rand(*shapes[0], zeros=zeros), rand(*shapes[1], zeros=zeros, seed=1)
    check(torch.matmul, a, b, exact=not zeros)
    seed = rand(*torch.matmul(a, b).shape, zeros=zeros, seed=2)
    check(grads(torch.matmul, (0, 1)), a, b, seed)


def test_a_constant_mask_is_exact() -> None:
    mask = torch.ones(3, 3).tril()
    check(lambda x: mask @ x, rand(3, 2), exact=True)
    check(lambda x: x @ mask, rand(2, 3), exact=True)
    check(lambda x: torch.bmm(mask[None].expand(2, 3, 3), x), rand(2, 3, 1), exact=True)
    check(lambda x: torch.mv(mask, x), rand(3), exact=True)
    check(grads(lambda x: mask @ x), rand(3, 2), rand(3, 2), exact=True)


def test_a_masked_product_of_labels() -> None:
    mask = torch.ones(3, 3).tril()
    check(lambda p, x: (p * mask) @ x, rand(3, 3), rand(3, 2), exact=True)


@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_with_bias(zeros: float) -> None:
    bias, a, b = rand(2, zeros=zeros), rand(3, 2, zeros=zeros), rand(2, 2, zeros=zeros, seed=1)
    check(lambda c, a, b: torch.addmm(c, a, b), bias, a, b, exact=not zeros)
    check(lambda c, a, b: torch.addmm(c, a, b, beta=0, alpha=2), bias, a, b)
    check(lambda c, a, b: torch.addmv(c, b, a[0]), bias, a, b)
    check(lambda c, a, b: torch.addr(c, a[:, 0], b[0]), bias, a, b)
    check(lambda c, a, b: torch.baddbmm(c, a[None], b[None]), bias, a, b)
    check(lambda c, a, b: torch.addbmm(c, torch.stack((a, a + 1)), torch.stack((b, b))), bias, a, b)
    check(lambda c, a, b: c.new_zeros(3, 2).addmm_(a, b).add_(c), bias, a, b)
    check(lambda c, a, b: torch.mm(a, b, out=c.new_ones(3, 2)), bias, a, b)


@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_linear_and_einsum(zeros: float) -> None:
    x, w = rand(2, 2, 2, zeros=zeros), rand(3, 2, zeros=zeros)
    check(grads(lambda x, w, b: F.linear(x, w, b), (0, 1, 2)), x, w, rand(3), rand(2, 2, 3, zeros=zeros))
    check(lambda x, w: torch.einsum("btd,ed->bet", x, w), x, w)
    with torch.inference_mode():
        check(lambda x, w, b: F.linear(x, w, b), x, w, rand(3), exact=not zeros)
    with torch.no_grad():
        check(lambda x, w, b: F.linear(x, w, b), x, w, rand(3), exact=not zeros)


def test_outer_dot_and_distances() -> None:
    a, b = rand(3, zeros=0.4), rand(3, zeros=0.4, seed=1)
    check(torch.outer, a, b)
    check(torch.vdot, a, b)
    check(grads(torch.dot, (0, 1)), a, b, torch.tensor(1.0))
    check(lambda a, b: torch.linalg.multi_dot([a[None], b[:, None], a[None]]), a, b)
    check(grads(lambda x, y: torch.cdist(x, y), (0, 1)), rand(2, 2), rand(3, 2), rand(2, 3), large=3.0)
    check(lambda a, b: F.pairwise_distance(a[None], b[None]), a, b)
    check(lambda a, b: torch.kron(a, b) + torch.cross(a, b, dim=0).sum(), a, b)


def test_distances_of_pairs() -> None:
    for p in (1.0, 2.0, float("inf")):
        check(lambda x: torch.pdist(x, p), rand(3, 2), exact=p != float("inf"))  # noqa: B023
        check(grads(lambda x: torch.pdist(x, p)), rand(3, 2), rand(3))  # noqa: B023


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, float("inf")])
def test_gradients_of_distances(p: float) -> None:
    pairs = grads(lambda x: torch.pdist(x, p))
    check(pairs, rand(4, 2), rand(6), exact=p == 2)
    check(pairs, rand(1, 2), rand(0), kinds=4)
    between = grads(lambda x, y: torch.cdist(x, y, p, "donot_use_mm_for_euclid_dist"), (0, 1))
    check(between, rand(2, 2), rand(3, 2), rand(2, 3), exact=p == 2)
    check(between, rand(2, 2, 2), rand(1, 3, 2), rand(2, 2, 3), kinds=6)
    check(between, rand(2, 2), rand(0, 2), rand(2, 0), exact=True, kinds=4)


def test_bilinear() -> None:
    fn = torch.nn.functional.bilinear
    inputs = rand(3, 2), rand(3, 2, seed=1), rand(2, 2, 2), rand(2, seed=2)
    check(fn, *inputs, exact=True, kinds=6)
    check(grads(fn, (0, 1, 2, 3)), *inputs, rand(3, 2, zeros=0.4), kinds=6)
    check(lambda a, b, w: fn(a, b, w), rand(2, 1, 2), rand(2, 1, 3), rand(1, 2, 3), kinds=6)


def test_a_matrix_of_decays_that_is_zero_for_the_future() -> None:
    future = torch.ones(3, 3, dtype=torch.bool).triu(1)

    def fn(products: Tensor, decays: Tensor, x: Tensor) -> Tensor:
        cumulative = decays.cumsum(0)
        pairs = (cumulative[:, None] - cumulative).masked_fill(future, -torch.inf).exp()
        return (products * pairs) @ x

    inputs = rand(3, 3), rand(3), rand(3, 1)
    check(fn, *inputs, large=3.0)
    past = ~future
    products, decays, x = dependencies(fn, *inputs)[0]
    assert torch.equal(products[:, 0], torch.eye(3, dtype=torch.bool)[:, :, None] & past[:, None])
    assert torch.equal(x[:, 0, :, 0], past) and torch.equal(decays[:, 0], past)


def test_keys_that_were_chosen_query_by_query() -> None:
    """A sparse mask is one for all heads, and the same from key to key."""
    low = torch.finfo(torch.float32).min
    causal = torch.zeros(3, 3).masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(1), low)

    def fn(scores: Tensor, chosen: Tensor) -> Tensor:
        dropped = torch.ones(3, 3, dtype=torch.bool).scatter(-1, chosen, False)
        return (scores + causal.masked_fill(dropped, low)).softmax(-1)

    check(fn, rand(2, 3, 3), Index(torch.tensor([[0], [1], [0]]), range(3)), large=3.0)
    scores, chosen = dependencies(fn, rand(2, 3, 3), torch.tensor([[0], [1], [0]]))[0]
    own = torch.eye(3, dtype=torch.bool)
    assert torch.equal(scores[0, :, :, 0].any(1).any(1), own[[0, 1, 0]])
    assert torch.equal(chosen[0, :, 0, :, 0], own)


def test_a_bias_of_the_query_among_masked_scores() -> None:
    future = torch.ones(3, 3, dtype=torch.bool).triu(1)

    def fn(scores: Tensor, bias: Tensor) -> Tensor:
        mask = (bias * torch.arange(1.0, 4.0)).masked_fill(future, -torch.inf)
        return (scores + mask).softmax(-1)

    inputs = rand(1, 2, 3, 3), rand(1, 2, 3, 1)
    check(fn, *inputs, large=3.0, kinds=5)
    scores, _ = dependencies(fn, *inputs)[0]
    assert torch.equal(scores[0, 0, :, 0, 0, 0].any(1), ~future)


@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_grouped_products(zeros: float) -> None:
    """Rows that offsets share out between the matrices of a batch (16 bytes apart)."""
    a, b = rand(3, 4, zeros=zeros), rand(2, 4, 4, zeros=zeros, seed=1)
    offs = torch.tensor([1, 3], dtype=torch.int32)
    check(lambda a, b: F.grouped_mm(a, b, offs=offs), a, b, kinds=5, layouts=False)
    check(
        lambda a, g: torch.autograd.grad(F.grouped_mm(a.requires_grad_(), b, offs=offs), a, g),
        a,
        rand(3, 4),
        layouts=False,
    )
    check(
        lambda b, g: torch.autograd.grad(F.grouped_mm(a, b.requires_grad_(), offs=offs), b, g),
        b,
        rand(3, 4, zeros=zeros),
        kinds=4,
        layouts=False,
    )
    check(lambda a: F.grouped_mm(a, b, offs=offs), a, exact=not zeros, layouts=False)
    check(lambda a: F.grouped_mm(a.expand(2, 3, 4).contiguous(), b), a, exact=not zeros, layouts=False)
    wide = torch.tensor([2, 4], dtype=torch.int32)
    check(
        lambda a: F.grouped_mm(a.expand(2, 3, 4).contiguous(), b[0], offs=wide),
        a,
        exact=not zeros,
        layouts=False,
    )
    check(lambda i: F.grouped_mm(a, b, offs=i), Index(offs, (0, 1, 2, 3)), kinds=4)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("unitriangular", [False, True])
def test_triangular_systems(upper: bool, left: bool, unitriangular: bool) -> None:
    def fn(a: Tensor, b: Tensor) -> Tensor:
        b = b if left else b.mT
        return torch.linalg.solve_triangular(a, b, upper=upper, left=left, unitriangular=unitriangular)

    a = rand(3, 3) + 3 * torch.eye(3)
    check(fn, a, rand(3, 2), exact=True, large=2.0)
    check(lambda b: fn(a, b), rand(2, 3, 1), exact=True)
    check(lambda a: fn(a, torch.ones(3, 2)), torch.stack((a, a * 2)), large=2.0)
