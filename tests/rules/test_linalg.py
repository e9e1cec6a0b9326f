"""Factorisations and solvers: triangles, columns from left to right, right-hand sides."""

import pytest
import torch
from torch import Tensor

from causaltrace.depends import dependencies
from causaltrace.rules.linalg import ONE_BLOCK
from tests.oracle import Index, check, differs, flat, grads, reported
from tests.rules.test_pointwise import rand

linalg = torch.linalg


def square(n: int, *batch: int, seed: int = 0) -> Tensor:
    """Well conditioned, and positive definite where symmetry is not looked at."""
    return rand(*batch, n, n, seed=seed) * 0.5 + torch.eye(n) * 4


def reads(fn: object, *inputs: Tensor) -> list[Tensor]:
    """What the results may depend on, for the first input."""
    return [row[0] for row in dependencies(fn, *inputs)]


def columns(n: int, limit: Tensor) -> Tensor:
    """``[*limit.shape, 1, n]``: the columns up to a limit."""
    return torch.arange(n) <= limit[..., None, None]


@pytest.mark.parametrize("upper", [False, True])
def test_cholesky(upper: bool) -> None:
    check(lambda a: linalg.cholesky_ex(a, upper=upper).L, square(3), exact=True)
    check(lambda a: list(linalg.cholesky_ex(a, upper=upper)), square(2, 2), kinds=6)
    inverse = reads(lambda a: torch.cholesky_inverse(a, upper), square(3))[0]
    place = torch.arange(3)
    read = place.new_ones(3, 3, dtype=torch.bool)
    read = (read.triu() if upper else read.tril()) & (
        (place[:, None] if upper else place) >= torch.minimum(place[:, None], place)[..., None, None]
    )
    assert torch.equal(inverse, read)
    check(lambda b, a: torch.cholesky_solve(b, a, upper), rand(3, 2), square(3), exact=True)
    one = lambda a: linalg.cholesky(a @ a.mT + torch.eye(2), upper=upper)  # noqa: E731
    check(grads(one), square(2), rand(2, 2), large=2.0)
    old, new = (reads(fn, square(4)) for fn in (torch.cholesky, linalg.cholesky))
    assert torch.equal(old[0], new[0]) and int(old[0].sum()) == 45


def test_a_large_cholesky_that_fails_is_half_done() -> None:
    n, at = 2 * ONE_BLOCK + 2, ONE_BLOCK + 2
    a = rand(n, n) @ rand(n, n).T + n * torch.eye(n)
    where = torch.full((n, n), -1, dtype=torch.int32)
    where[at, at] = 0
    factor = lambda a: linalg.cholesky_ex(a).L  # noqa: E731
    broken = a.clone()
    broken[at, at] = -9
    changed = differs(flat(factor(broken)), flat(factor(a)))
    assert bool((reported(factor, [a], [where])[changed] == 0).all())


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (3, 2), (1, 2), (2, 1), (1, 1)], ids=str)
def test_lu(shape: tuple[int, int]) -> None:
    m, n = shape
    a = rand(*shape)
    check(lambda a: list(linalg.lu_factor_ex(a)), a, kinds=6)
    check(lambda a: list(linalg.lu(a)), a, kinds=6)
    check(lambda a: list(linalg.lu(a)), rand(2, *shape), kinds=6)
    i, j = torch.arange(m)[:, None].expand(m, n), torch.arange(n).expand(m, n)
    last = min(n - 1, m - 2)
    own = j[..., None, None] == torch.arange(n)
    whole = (columns(n, i.clamp(max=last)) | own).expand(m, n, m, n)
    packed, pivots, info = reads(lambda a: list(linalg.lu_factor_ex(a)), a)
    assert torch.equal(packed, whole)
    assert not pivots[m - 1 :].any() and not info[:, m:].any()
    p, lower, upper = reads(lambda a: list(linalg.lu(a)), a)
    k = min(m, n)
    assert torch.equal(upper, whole[:k] & (i <= j)[:k, :, None, None])
    assert torch.equal(
        lower, columns(n, i.clamp(max=last))[:, :k] & (i > j)[:, :k, None, None] & lower.new_ones(m, 1)
    )
    r = torch.arange(m)
    taken = (torch.minimum(r[:, None], r) < k) | (r[:, None] == r)
    assert torch.equal(p, columns(n, r.clamp(max=last)) & taken[..., None, None] & p.new_ones(m, 1))


def test_lu_unpack() -> None:
    pivots = Index(torch.tensor([2, 3, 3], dtype=torch.int32), range(1, 4))
    check(lambda a, p: list(torch.lu_unpack(a, p)), rand(3, 3), pivots)
    two = Index(torch.tensor([[2, 2], [1, 2]], dtype=torch.int32), range(1, 3))
    check(lambda a, p: list(torch.lu_unpack(a, p)), rand(2, 2, 3), two)
    check(lambda a: list(torch.lu_unpack(a, two.tensor)), rand(2, 3, 2), exact=True)
    tall = Index(torch.tensor([2, 4], dtype=torch.int32), range(1, 5))
    check(lambda p: list(torch.lu_unpack(rand(4, 2), p)), tall)
    check(lambda a, p: list(torch.lu_unpack(a, p, unpack_pivots=False)), rand(2, 2, 3), two)
    check(lambda a, p: list(torch.lu_unpack(a, p, unpack_data=False)), rand(2, 2, 3), two)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("adjoint", [True, False])
def test_lu_solve(left: bool, adjoint: bool) -> None:
    fn = lambda a, p, b: linalg.lu_solve(a, p, b, left=left, adjoint=adjoint)  # noqa: E731
    pivots = Index(torch.tensor([2, 3, 3], dtype=torch.int32), range(1, 4))
    other = (3, 2) if left else (2, 3)
    check(fn, square(3), pivots, rand(*other), large=3.0)
    check(lambda a, b: fn(a, pivots.tensor, b), square(3), rand(*other), exact=True, large=3.0)
    check(
        grads(lambda a, b: fn(a, pivots.tensor, b), (0, 1)), square(3), rand(*other), rand(*other), large=3.0
    )
    two = Index(torch.tensor([[2, 2], [1, 2]], dtype=torch.int32), range(1, 3))
    check(fn, square(2, 2), two, rand(2, 2, 2), large=3.0)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (3, 2), (1, 2), (2, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("mode", ["reduced", "complete", "r"])
def test_qr(shape: tuple[int, int], mode: str) -> None:
    check(lambda a: list(linalg.qr(a, mode)), rand(*shape), exact=min(shape) > 1)
    check(lambda a: list(linalg.qr(a, mode)), rand(2, *shape), kinds=6)
    if mode == "reduced":
        check(lambda a: list(torch.geqrf(a)), rand(*shape), exact=min(shape) > 1)
        check(lambda a: list(torch.geqrf(a)), rand(2, *shape), kinds=6)


def test_qr_backward() -> None:
    check(grads(lambda a: linalg.qr(a)[0]), rand(3, 2), rand(3, 2))
    check(grads(lambda a: linalg.qr(a)[1]), rand(3, 3), rand(3, 3))


def test_complex_qr_reflects_a_single_number() -> None:
    check(lambda x, y: list(linalg.qr(torch.complex(x, y))), rand(2, 2), rand(2, 2, seed=1))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_reflections(count: int) -> None:
    v, tau, c = rand(3, 3), rand(count, seed=1), rand(3, 3, seed=2)
    check(linalg.householder_product, v, tau, exact=count > 1)
    check(grads(linalg.householder_product, (0, 1)), v, tau, rand(3, 3), kinds=4)
    check(linalg.householder_product, v, rand(0))
    for left in (True, False):
        for transpose in (True, False):
            fn = lambda v, t, c: torch.ormqr(v, t, c, left, transpose)  # noqa: B023, E731
            check(fn, v[:, :count], tau, c, exact=True)
            check(fn, rand(2, 3, count), rand(2, count), rand(2, 3, 3), kinds=4)


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_triangular_systems(upper: bool, unit: bool) -> None:
    a = square(3)
    for left in (True, False):
        fn = lambda a, b: linalg.solve_triangular(a, b, upper=upper, left=left, unitriangular=unit)  # noqa: B023, E731
        b = rand(3, 2) if left else rand(2, 3)
        check(fn, a, b, exact=True)
        check(fn, square(2, 2), rand(1, 2, 2), kinds=6)
        check(grads(fn, (0, 1)), a, b, rand(*b.shape))
    for transpose in (True, False):
        old = lambda b, a: list(torch.triangular_solve(b, a, upper, transpose, unit))  # noqa: B023, E731
        check(old, rand(3, 2), a, exact=True)


def test_right_hand_sides_are_solved_one_by_one() -> None:
    solve = lambda a, b: linalg.solve_ex(a, b).result  # noqa: E731
    check(solve, square(3), rand(3, 2), exact=True)
    check(lambda a, b: linalg.solve_ex(a, b, left=False).result, square(3), rand(2, 3), exact=True)
    check(solve, square(3), rand(3))
    check(solve, square(2, 3), rand(3, 2), kinds=6)
    check(solve, square(2), rand(3, 2, 2), kinds=6)
    check(solve, square(2, 2), rand(2, 2), kinds=6)
    check(grads(linalg.solve, (0, 1)), square(3), rand(3, 2), rand(3, 2), large=2.0)
    assert not dependencies(grads(linalg.solve, (1,)), square(3), rand(3, 2), rand(3, 2))[1][1].any()
    full = lambda a, b: list(torch.ops.aten._linalg_solve_ex(a, b))  # noqa: E731
    assert not any(bool(row[1].any()) for row in dependencies(full, square(3), rand(3, 2))[1:])


def test_one_triangle() -> None:
    for side in ("L", "U"):
        check(lambda a: linalg.eigvalsh(a, side), square(3), exact=True)  # noqa: B023
        check(lambda a: list(linalg.eigh(a, side))[1].abs(), square(2), large=3.0)  # noqa: B023
    check(lambda a: linalg.pinv(a, hermitian=True), square(3), kinds=4)
    assert not any(
        row[:, :, 0, 1].any() for row in reads(lambda a: linalg.pinv(a, hermitian=True), square(3))
    )
    with torch.inference_mode():
        check(lambda a: linalg.pinv(a, rtol=1e-3), square(3), kinds=4, large=2.0)
    check(lambda a: list(linalg.ldl_factor_ex(a)), rand(3, 3))
    packed, pivots = reads(lambda a: list(linalg.ldl_factor_ex(a))[:2], rand(3, 3))
    lower = torch.ones(3, 3, dtype=torch.bool).tril()
    assert torch.equal(packed, lower[:, :, None, None] & lower) and torch.equal(pivots[0], lower)


def test_ldl_solve() -> None:
    packed, pivots, _ = linalg.ldl_factor_ex(square(3))
    check(lambda a, b: linalg.ldl_solve(a, pivots, b), packed, rand(3, 2), large=3.0)
    fn = lambda a, b: linalg.ldl_solve(*linalg.ldl_factor_ex(a)[:2], b)  # noqa: E731
    check(fn, rand(3, 3), rand(3, 2), large=3.0)


def test_the_rank_of_a_system_does_not_read_its_right_hand_side() -> None:
    fn = lambda a, b: list(linalg.lstsq(a, b, driver="gelsd"))  # noqa: E731
    for shape in ((3, 2), (2, 3)):
        found = dependencies(fn, rand(*shape), rand(shape[0], 2))
        assert found[0][1].all() and not found[2][1].any() and not found[3][1].any()
    one = lambda a, b: linalg.lstsq(a, b, driver="gelsd").solution  # noqa: E731
    check(one, rand(3, 2), rand(3, 2), large=3.0, opaque=True)
    check(one, rand(2, 3, 2), rand(2, 3, 1), large=3.0, opaque=True)
    assert not dependencies(grads(one, (1,)), square(2), rand(2, 2), rand(2, 2))[1][1].any()


def test_cross_products_read_the_other_places() -> None:
    a, b = rand(3, 2), rand(3, 2, seed=1)
    check(lambda a, b: linalg.cross(a, b, dim=0), a, b, exact=True)
    check(grads(lambda a, b: linalg.cross(a, b, dim=0), (0, 1)), a, b, rand(3, 2))
    check(lambda a, b: linalg.cross(a, b), rand(2, 3), rand(1, 3), exact=True)


@pytest.mark.parametrize("left", [True, False])
def test_a_zero_gradient_asks_nothing_of_a_matrix(left: bool) -> None:
    matrix = torch.eye(3) * 2 + torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).tril() / 4

    def gradient(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
        b = b.clone().requires_grad_()
        x = torch.linalg.solve_triangular(a, b if left else b.mT, upper=False, left=left)
        return torch.autograd.grad(x if left else x.mT, b, g)[0]

    seed = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    by_matrix, _, by_seed = dependencies(gradient, matrix, torch.randn(3, 2), seed)[0]
    assert by_matrix[:, 0].any() and not by_matrix[:, 1].any()
    assert by_seed[:, 1, :, 1].any() and not by_seed[:, 1, :, 0].any()
