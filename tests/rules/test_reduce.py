"""Reductions, softmax, running operations, sorting and decompositions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from causaltrace import dependencies
from tests.oracle import Index, check, grads
from tests.rules.test_pointwise import rand


@pytest.mark.parametrize(
    "fn",
    [
        torch.sum,
        torch.mean,
        torch.prod,
        torch.amax,
        torch.amin,
        torch.logsumexp,
        torch.var,
        torch.std,
        torch.nansum,
        torch.linalg.vector_norm,
        torch.argmax,
        torch.argmin,
        torch.norm,
        torch.count_nonzero,
    ],
    ids=lambda f: f.__name__,
)
def test_over_dims(fn: object) -> None:
    x = rand(3, 2, 2)
    whole = fn not in (torch.logsumexp,)
    norm = fn in (torch.norm,)
    check(lambda x: [fn(x, dim=1), *([fn(x)] if whole else [])], x, large=4.0)
    if fn not in (torch.count_nonzero,):
        check(lambda x: [fn(x, dim=-1, keepdim=True), fn(x[:, 0], dim=0)] if not norm else fn(x, dim=0), x)
    if fn not in (torch.prod, torch.argmax, torch.argmin, torch.count_nonzero):
        check(lambda x: fn(x, dim=(0, 2)), x, exact=fn in (torch.sum, torch.mean, torch.linalg.vector_norm))
    if fn not in (torch.argmax, torch.argmin, torch.count_nonzero):
        check(grads(lambda x: fn(x.abs() + 0.1 if fn is torch.prod else x, dim=1)), x, rand(3, 2, zeros=0.4))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: list(torch.max(x, 1)),
        lambda x: list(torch.min(x, 0, keepdim=True)),
        lambda x: torch.max(x),
        lambda x: list(torch.median(x, 1)),
        lambda x: torch.median(x),
        lambda x: list(torch.mode(x)),
        lambda x: list(torch.kthvalue(x, 2)),
        lambda x: list(torch.kthvalue(x, 2, 0)),
        lambda x: list(torch.var_mean(x, 1)),
        lambda x: list(torch.std_mean(x)),
        lambda x: list(torch.aminmax(x)),
        lambda x: list(torch.aminmax(x, dim=1, keepdim=True)),
        lambda x: list(torch.nanmedian(x, 1)),
        lambda x: torch.nanmedian(x),
        lambda x: torch.nanmean(x, 1),
        lambda x: list(torch.sort(x, 1)),
        lambda x: list(torch.sort(x, stable=True, dim=0)),
        lambda x: list(torch.topk(x, 2)),
        lambda x: list(torch.topk(x, 1, 0)),
        lambda x: torch.argsort(x, descending=True),
        lambda x: torch.msort(x),
        lambda x: torch.softmax(x, 1),
        lambda x: torch.log_softmax(x, 0),
        lambda x: torch.softmax(x[0, 0], 0),
        lambda x: F.normalize(x),
        lambda x: torch.renorm(x, 2, 0, 0.5),
        lambda x: torch.trace(x[:, :2]),
        lambda x: torch.trace(x[:2, 1:]),
        lambda x: F.cosine_similarity(x, x.flip(0)),
        lambda x: torch.any(x > 0, 1),
        lambda x: torch.all(x > 0),
        lambda x: torch.histc(x),
        lambda x: torch.dist(x[0], x[1]),
        lambda x: F.gumbel_softmax(x, hard=True) * 0 + x,
        lambda x: torch.logcumsumexp(x, 1),
        lambda x: torch.diff(x, dim=0),
        lambda x: torch.cov(x),
        lambda x: torch.quantile(x, 0.5, dim=1),
    ],
)
def test_more_reductions(fn: object) -> None:
    check(fn, rand(3, 3), large=4.0)


@pytest.mark.parametrize("fn", [torch.cumsum, torch.cumprod, torch.cummax, torch.cummin, torch.logcumsumexp])
@pytest.mark.parametrize("dim", [0, -1])
def test_running(fn: object, dim: int) -> None:
    def values(x: Tensor) -> Tensor:
        out = fn(x, dim)
        return out if isinstance(out, Tensor) else out.values

    check(
        lambda x: list(out) if not isinstance(out := fn(x, dim), Tensor) else out,
        rand(3, 2),
        exact=fn is torch.cumsum,
    )
    check(grads(values), rand(3, 2, zeros=0.2), rand(3, 2, zeros=0.4), large=3.0)
    check(lambda x: values(x[0, 0]), rand(2, 2))


@pytest.mark.parametrize("fn", [torch.softmax, torch.log_softmax])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1)], ids=str)
def test_softmax_backward(fn: object, shape: tuple[int, ...]) -> None:
    for dim in (0, -1):
        check(grads(lambda x, dim=dim: fn(x, dim)), rand(*shape), rand(*shape, zeros=0.5))
        check(grads(lambda x, dim=dim: fn(x, dim)), rand(*shape), torch.zeros(shape))


def test_softmax_is_exact() -> None:
    check(lambda x: torch.softmax(x, 1), rand(3, 2), exact=True, large=3.0)
    check(lambda x: torch.log_softmax(x, 0), rand(3, 2), exact=True, large=3.0)


#: Keys that a query may not see; every query sees two at least, so that its softmax is no constant.
LATER = torch.ones(3, 4).triu(2).bool()


@pytest.mark.parametrize("low", [float("-inf"), -1e9, torch.finfo(torch.float32).min])
def test_causal_softmax_backward_reads_no_masked_gradient(low: float) -> None:
    fill = torch.zeros(3, 4).masked_fill(LATER, low)

    def scores(add: bool) -> object:
        both = grads(lambda x: torch.softmax(x + fill if add else x.masked_fill(LATER, low), -1))
        return lambda x, g: both(x, g)[1].masked_select(~LATER)

    check(scores(False), rand(3, 4), rand(3, 4, seed=1), exact=True, large=3.0)
    check(scores(True), rand(3, 4), rand(3, 4, seed=1), exact=True, large=3.0)


def test_softmax_backward_where_gradient_and_output_are_zero() -> None:
    out = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    grad = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    for dim in (0, 1):
        check(
            lambda g, o, dim=dim: torch.ops.aten._softmax_backward_data(g, o, dim, torch.float32), grad, out
        )
        check(
            lambda g, o, dim=dim: torch.ops.aten._log_softmax_backward_data(g, o, dim, torch.float32),
            grad,
            out,
            large=2.0,
        )


def test_attention_by_hand_is_exact() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax((q @ k.T).masked_fill(LATER, float("-inf")), -1) @ v

    inputs = rand(3, 2), rand(4, 2, seed=1), rand(4, 2, seed=2)
    rows = lambda *x: attend(*x)[:, 0]  # noqa: E731
    check(rows, *inputs, exact=True, large=3.0)
    check(grads(attend, (0, 1, 2)), *inputs, rand(3, 2, zeros=0.5), large=3.0)
    same = grads(attend, (0, 1, 2))

    def shared(x: Tensor, g: Tensor) -> list[Tensor]:
        """Gradients by position, as in a model: queries, keys and values come from one stream."""
        return [d.sum(1) for d in same(x[:3] * 1.5, x * 2, x - 1, g)]

    check(shared, rand(4, 1), rand(3, 1, seed=3), exact=True, large=3.0)


def test_search() -> None:
    rows = torch.tensor([[0.0, 1.0, 2.0], [0.5, 1.5, 2.5]])
    check(torch.searchsorted, rows, rand(2, 2))
    check(torch.searchsorted, rows[0], rand(2, 2))
    check(lambda x: torch.bucketize(x, rows[0]), rand(3), exact=True)
    check(
        lambda i, j: torch.isin(i, j),
        Index(torch.tensor([1, 2]), range(4)),
        Index(torch.tensor([2, 3]), range(4)),
    )


def test_multinomial() -> None:
    def draw(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return torch.multinomial(torch.softmax(x, -1), 2)

    check(draw, rand(2, 4), large=3.0)


def test_decompositions_keep_batches_apart() -> None:
    eye = torch.eye(2) * 3

    def fn(x: Tensor) -> list[Tensor]:
        sym = x @ x.mT + eye
        parts = [
            torch.linalg.cholesky(sym),
            torch.linalg.inv(sym),
            *torch.linalg.qr(sym),
            torch.linalg.svdvals(sym),
        ]
        parts += [torch.linalg.det(sym), torch.linalg.slogdet(sym).logabsdet, torch.linalg.solve(sym, x)]
        parts += [
            torch.linalg.eigvalsh(sym),
            torch.linalg.solve_triangular(sym, x, upper=True),
            torch.matrix_exp(x),
        ]
        return parts

    check(fn, rand(2, 2, 2), large=2.0)
    one = lambda x: torch.linalg.inv(x @ x.mT + eye).sum((1, 2))  # noqa: E731
    check(one, rand(2, 2, 2), exact=True, large=2.0)


def test_fourier_transforms() -> None:
    fft = torch.fft
    check(lambda x: fft.rfft(x).abs(), rand(2, 3), exact=True)
    check(lambda x: fft.rfft2(x, dim=(0, 2)).abs(), rand(2, 2, 3), exact=True)
    check(lambda x: fft.fft(torch.complex(x, x.flip(1)), dim=0).abs(), rand(3, 2), exact=True)
    check(lambda x: fft.irfft(torch.complex(x, x), n=4).abs(), rand(2, 3), exact=True)
    check(lambda x: fft.ifftn(torch.complex(x, x * 2)), rand(2, 2))
    check(lambda x: fft.fftshift(fft.fft(x, n=4)), rand(2, 3))
    check(grads(lambda x: fft.irfft(fft.rfft(x) * 2, n=3)), rand(2, 3), rand(2, 3))
    check(grads(lambda x: fft.rfft(x).abs()), rand(2, 3), rand(2, 2, zeros=0.4))
    check(lambda x: torch.stft(x, 4, 2, window=torch.ones(4), return_complex=True).abs(), rand(8))


def test_histograms() -> None:
    edges = torch.tensor([-2.0, 0.0, 2.0])
    check(lambda x: list(torch.histogram(x, 3, range=(-2.0, 2.0))), rand(4), large=3.0)
    check(lambda x, w: list(torch.histogram(x, 2, weight=w)), rand(4), rand(4, seed=1), large=3.0)
    check(lambda x, e: list(torch.histogram(x, e.sort().values)), rand(4), edges, large=3.0)
    check(lambda x: [(h := torch.histogramdd(x, [2, 2])).hist, *h.bin_edges], rand(3, 2), large=3.0)
    check(lambda x: torch.histogramdd(x, [edges, edges]).hist, rand(3, 2), large=3.0)
    check(lambda x: torch.histogramdd(x, [2, 2], range=[-2.0, 2.0, -2.0, 2.0]).hist, rand(3, 2), large=3.0)


def test_numbers_between_tensors() -> None:
    check(lambda a, b: torch.linspace(a, b, 3), rand(), rand(1)[0])
    check(lambda a: [torch.linspace(a, 2.0, 3), torch.logspace(0.0, a, 3)], rand(), large=3.0)


def test_the_ends_of_a_range_are_what_was_given() -> None:
    for steps in (1, 2, 4):
        check(lambda a, b, n=steps: torch.linspace(a, b, n), rand(), rand(1)[0], exact=True, large=3.0)
    reach = dependencies(lambda a, b: torch.linspace(a, b, 4), torch.tensor(1.0), torch.tensor(2.0))[0]
    assert reach[0].tolist() == [True, True, True, False]
    assert reach[1].tolist() == [False, True, True, True]


def test_hashes() -> None:
    check(lambda x: torch.hash_tensor(x, 1).double(), rand(2, 2), exact=True)


def test_solvers_with_pivots_keep_batches_apart() -> None:
    def fn(x: Tensor, b: Tensor) -> list[Tensor]:
        symmetric = x @ x.mT + torch.eye(2) * 3
        lu, ldl = torch.linalg.lu_factor(symmetric), torch.linalg.ldl_factor(symmetric)
        return [torch.linalg.lu_solve(*lu, b).sum((-1, -2)), torch.linalg.ldl_solve(*ldl, b).sum((-1, -2))]

    check(fn, rand(2, 1, 2, 2), rand(2, 1, 2, 1), exact=True, large=2.0, kinds=4)
    check(fn, rand(1, 3, 2, 2), rand(1, 3, 2, 1), large=2.0, kinds=4)


def test_reflectors_of_two_batch_dims() -> None:
    check(torch.linalg.householder_product, rand(2, 1, 2, 2), rand(2, 1, 2, seed=1))
    check(grads(torch.linalg.householder_product, (0, 1)), rand(2, 1, 2, 2), rand(2, 1, 2), rand(2, 1, 2, 2))
