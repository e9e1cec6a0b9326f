"""Functions of numpy that compute, and what numpy's numbers are made of, agree with perturbation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.arrays import Case, agrees
from tests.boundary.test_numpy_functions import C, D, I, J, K, M, N, V, W

NAN = torch.tensor([[0.3, float("nan"), 2.1], [0.7, 1.1, -0.4]])
WHERE = np.array([[True, False, True], [True, True, False]])

#: Names, and what else they are called with: each with axis None, 0, (0, 1), keepdims.
OVER = (
    "sum prod max min amax amin mean std var median ptp "
    "nansum nanprod nanmax nanmin nanmean nanstd nanvar nanmedian"
)
FOLDED: dict[str, Case] = {
    **{f"{n} 0": Case(lambda a, n=n: getattr(np, n)(a, axis=0), (M,), loose=True) for n in OVER.split()},
    **{
        f"{n} -1 kept": Case(lambda a, n=n: getattr(np, n)(a, axis=-1, keepdims=True), (M,), loose=True)
        for n in OVER.split()
    },
    **{f"{n} all": Case(lambda a, n=n: getattr(np, n)(a), (M,), told=True) for n in OVER.split()},
    **{
        f"{n} all kept": Case(lambda a, n=n: getattr(np, n)(a, keepdims=True), (M,), loose=True)
        for n in OVER.split()
    },
    **{
        f"{n} two": Case(lambda a, n=n: getattr(np, n)(a, axis=(0, 2)), (C,), loose=True)
        for n in OVER.split()
    },
    **{
        f"{n} out": Case(
            lambda a, n=n: getattr(np, n)(a, axis=0, out=np.zeros(3, np.float32)), (M,), loose=True
        )
        for n in OVER.split()
    },
    **{
        f"{n} nan": Case(lambda a, n=n: getattr(np, n)(a, axis=0), (NAN,), loose=True)
        for n in OVER.split()
        if "nan" in n
    },
    **{
        f"{n} where": Case(lambda a, n=n: getattr(np, n)(a, axis=1, where=WHERE), (M,), loose=True)
        for n in ("sum", "prod", "mean", "std", "var", "nansum")
    },
    **{
        f"{n} where labels": Case(lambda a, c, n=n: getattr(np, n)(a, axis=1, where=c), (M, D), loose=True)
        for n in ("sum", "prod", "mean", "std")
    },
    **{
        f"{n} list": Case(lambda a, b, n=n: getattr(np, n)([a, b], axis=0), (W, W), loose=True)
        for n in ("sum", "max", "mean", "median")
    },
    "sum exact": Case(lambda a: [np.sum(a, axis=0), np.sum(a, axis=()), np.mean(a, 1)], (M,)),
    "sum dtype": Case(lambda a: np.sum(a, axis=0, dtype=np.float64), (M,)),
    "sum initial": Case(
        lambda a, b: np.sum(a, axis=1, initial=b.sum(keepdims=True)[0:1].reshape(())), (M, W), loose=True
    ),
    "max where": Case(lambda a, c: np.max(a, axis=1, where=c, initial=-9.0), (M, D), loose=True),
    "var mean": Case(lambda a: np.var(a, axis=0, mean=np.mean(a, axis=0, keepdims=True)), (M,), told=True),
    "std ddof": Case(lambda a: np.std(a, 0, ddof=1), (M,), loose=True),
    "all any": Case(lambda a: [np.all(a, axis=0), np.any(a, axis=1, keepdims=True)], (D,), loose=True),
    "all where": Case(
        lambda a, c: [np.all(a, axis=0, where=c), np.any(a, axis=0, where=c)], (D, ~D), loose=True
    ),
    "count_nonzero": Case(
        lambda a: [np.count_nonzero(a, axis=0), np.count_nonzero(a, axis=0, keepdims=True)], (D,)
    ),
    "count_nonzero all": Case(lambda a: np.count_nonzero(a), (D,), told=True),
    "argmax": Case(
        lambda a: [
            np.argmax(a, axis=0),
            np.argmin(a, axis=1),
            np.nanargmax(a, axis=1),
            np.nanargmin(a, axis=1),
        ],
        (M,),
        loose=True,
    ),
    "argmax all": Case(lambda a: np.argmax(a), (M,), told=True),
    "argmax kept": Case(lambda a: np.argmax(a, axis=1, keepdims=True), (M,), loose=True),
    "argmax out": Case(lambda a: np.argmax(a, axis=1, out=np.zeros(2, np.int64)), (M,), loose=True),
    "percentile": Case(
        lambda a: [np.percentile(a, 30, axis=0), np.quantile(a, [0.1, 0.7], axis=1)], (M,), loose=True
    ),
    "percentile methods": Case(
        lambda a: [
            np.quantile(a, 0.4, axis=0, method=m, keepdims=True) for m in ("nearest", "lower", "hazen")
        ],
        (M,),
        loose=True,
    ),
    "nanpercentile": Case(
        lambda a: [np.nanpercentile(a, 30, axis=1), np.nanquantile(a, 0.5, 1)], (NAN,), loose=True
    ),
    "average": Case(lambda a: np.average(a, axis=0), (M,)),
    "average weights": Case(lambda a, w: np.average(a, axis=1, weights=w), (M, abs(W)), loose=True),
    "average returned": Case(
        lambda a, w: list(np.average(a, axis=1, weights=w, returned=True)), (M, abs(W)), told=True
    ),
    "median overwritten": Case(
        lambda a: [np.median(a, axis=1, overwrite_input=True), np.sum(a, axis=1)], (M,), told=True
    ),
    "cumsum": Case(lambda a: [np.cumsum(a), np.cumsum(a, axis=1), np.cumsum(a, 0, dtype=np.float64)], (M,)),
    "cumsum out": Case(lambda a: np.cumsum(a, axis=1, out=np.zeros((2, 3))), (M,)),
    "cumprod": Case(lambda a: [np.cumprod(a), np.cumprod(a, axis=1)], (M,)),
    "cumulative": Case(lambda a: [np.cumulative_sum(a), np.cumulative_prod(a)], (V,)),
    "cumulative initial": Case(
        lambda a: [np.cumulative_sum(a, axis=1, include_initial=True), np.cumulative_prod(a, axis=0)], (M,)
    ),
    "nancumsum": Case(lambda a: [np.nancumsum(a, axis=1), np.nancumprod(a, axis=1)], (NAN,), loose=True),
    "trace": Case(lambda a: np.trace(a), (N,), told=True),
    "trace axes": Case(lambda a: [np.trace(a, axis1=1, axis2=2), np.trace(a, 1), np.linalg.trace(a)], (C,)),
    "diff": Case(lambda a: [np.diff(a), np.diff(a, axis=0), np.diff(a, n=2), np.diff(a, prepend=0.0)], (M,)),
    "diff labels": Case(lambda a, b: np.diff(a, append=b), (V, W), loose=True),
    "ediff1d": Case(lambda a: np.ediff1d(a, to_begin=[1.0]), (V,)),
    "gradient": Case(
        lambda a: [np.gradient(a), np.gradient(a, 2.0), np.gradient(a, edge_order=2)], (V,), told=True
    ),
    "gradient two": Case(lambda a: list(np.gradient(a)), (M,)),
    "trapezoid": Case(lambda a: np.trapezoid(a, axis=1), (M,)),
    "unwrap": Case(lambda a: np.unwrap(a), (V,), loose=True),
    "convolve": Case(lambda a, b: [np.convolve(a, b, m) for m in ("full", "same", "valid")], (V, W)),
    "convolve short": Case(lambda a, b: [np.convolve(b, a, m) for m in ("full", "same", "valid")], (V, W)),
    "correlate": Case(lambda a, b: [np.correlate(a, b, m) for m in ("full", "same", "valid")], (V, W)),
    "correlate short": Case(lambda a, b: [np.correlate(b, a, m) for m in ("full", "same", "valid")], (V, W)),
    "correlate even": Case(
        lambda a, b: [np.correlate(b[:2], a, m) for m in ("full", "same", "valid")], (V, W), loose=True
    ),
    "round": Case(lambda a: [np.round(a, 1), np.around(a), np.fix(a)], (M,), loose=True),
    "round out": Case(lambda a: np.round(a, 1, out=np.zeros((2, 3))), (M,), loose=True),
    "real": Case(
        lambda a: [np.real(a), np.imag(a), np.angle(a), np.iscomplex(a), np.isreal(a)], (M,), loose=True
    ),
    "complex": Case(
        lambda a, b: [np.real(a + 1j * b), np.imag(a + 1j * b), np.conj(a + 1j * b), np.abs(a + 1j * b)],
        (V, torch.flip(V, [0])),
        loose=True,
    ),
    "real_if_close": Case(lambda a: np.real_if_close(a + 0j), (V,), told=True),
    "isneginf": Case(lambda a: [np.isneginf(a), np.isposinf(a)], (V,), loose=True),
    "sinc": Case(lambda a: np.sinc(a), (V,), loose=True),
    "i0": Case(lambda a: np.i0(a), (V,), told=True),
    "isclose": Case(lambda a, b: np.isclose(a, b, atol=1.0), (V, torch.flip(V, [0])), loose=True),
    "allclose": Case(
        lambda a, b: [np.allclose(a, b), np.array_equal(a, b), np.array_equiv(a, b)], (V, V), told=True
    ),
    "linspace": Case(lambda a, b: np.linspace(a, b, 4), (W, W), loose=True),
    "linspace dtype": Case(lambda a: np.linspace(0, a, 3, endpoint=False, dtype=np.int64), (W,), loose=True),
    "linspace step": Case(lambda a: list(np.linspace(0.0, a, 3, retstep=True)), (W,), told=True),
    "geomspace": Case(
        lambda a: [np.geomspace(abs(a) + 0.5, 9.0, 3), np.logspace(a, 2.0, 3)], (W,), told=True, large=3.0
    ),
}

SORTED: dict[str, Case] = {
    "sort": Case(lambda a: [np.sort(a), np.sort(a, axis=0), np.sort(a, axis=None)], (M,), loose=True),
    "sort kinds": Case(lambda a: [np.sort(a, kind="stable"), np.sort(a, stable=True)], (M,), loose=True),
    "sort integers": Case(lambda a: np.sort(a), (I,), loose=True),
    "sort twice": Case(lambda a: np.argsort(np.argsort(a)), (V,), loose=True),
    "sorted gather": Case(lambda a, b: b[np.argsort(a)], (V, V), loose=True),
    "argsort": Case(
        lambda a: [np.argsort(a), np.argsort(a, axis=0), np.argsort(a, axis=None)], (M,), loose=True
    ),
    "partition": Case(lambda a: [np.partition(a, 1), np.argpartition(a, 1, axis=1)], (M,), loose=True),
    "partition none": Case(lambda a: np.partition(a, 2, axis=None), (M,), loose=True),
    "sort_complex": Case(lambda a: np.sort_complex(a), (V,), loose=True),
    "lexsort": Case(lambda a, b: np.lexsort((a, b)), (I, V), loose=True),
    "lexsort axis": Case(lambda a: np.lexsort([a, a[::-1]], axis=0), (M,), loose=True),
    "unique": Case(lambda a: np.unique(a), (I,), told=True),
    "unique all": Case(
        lambda a: list(np.unique(a, return_index=True, return_inverse=True, return_counts=True)),
        (J,),
        told=True,
    ),
    "unique axis": Case(lambda a: np.unique(a, axis=0), (K,), told=True),
    "unique_values": Case(
        lambda a: [np.unique_values(a), *np.unique_counts(a), *np.unique_inverse(a), *np.unique_all(a)],
        (J,),
        told=True,
    ),
    "sets": Case(
        lambda a, b: [np.intersect1d(a, b), np.setdiff1d(a, b), np.setxor1d(a, b), np.union1d(a, b)],
        (J, I),
        told=True,
    ),
    "bincount": Case(lambda a: np.bincount(a, minlength=5), (I,), told=True),
    "bincount weights": Case(lambda a, w: np.bincount(a, weights=w, minlength=5), (I, V), told=True),
    "bincount list": Case(lambda a: np.bincount([a[0], a[2], 1], minlength=5), (I,), told=True),
    "histogram": Case(lambda a: list(np.histogram(a, bins=3, range=(-2, 2))), (V,), loose=True),
    "histogram weights": Case(
        lambda a, w: list(np.histogram(a, bins=[-2, 0, 2], weights=w)), (V, V), loose=True
    ),
    "histogram density": Case(lambda a: list(np.histogram(a, bins=3, density=True)), (V,), loose=True),
    "histogram auto": Case(lambda a: list(np.histogram(a, bins="auto")), (V,), told=True),
    "histogram edges": Case(lambda a: np.histogram_bin_edges(a, 3), (V,), loose=True),
    "histogram2d": Case(lambda a, b: list(np.histogram2d(a, b, bins=2)), (V, torch.flip(V, [0])), loose=True),
    "histogramdd": Case(lambda a: np.histogramdd(a, bins=2)[0], (M,), loose=True),
    "packbits": Case(lambda a: [np.packbits(a), np.unpackbits(np.packbits(a))], (D,), loose=True),
}

PRODUCTS: dict[str, Case] = {
    "dot": Case(lambda a, b: np.dot(a, b), (M, N)),
    "dot vector": Case(lambda a, b: [np.dot(a, b), np.dot(b, a.T)], (M, W)),
    "dot inner": Case(lambda a, b: np.dot(a, b), (W, W), told=True),
    "dot number": Case(lambda a: [np.dot(a, 2.0), np.dot(3.0, a)], (M,)),
    "dot cubes": Case(lambda a, b: [np.dot(a, b), np.dot(a, b[0]), np.dot(a, b[0, 0])], (C, C)),
    "dot out": Case(lambda a, b: np.dot(a, b, out=np.zeros((2, 3), np.float32)), (M, N)),
    "inner": Case(lambda a, b: [np.inner(a, b), np.inner(a, b[0])], (M, N), loose=True),
    "inner cubes": Case(lambda a, b: np.inner(a, b), (C, C)),
    "vdot": Case(lambda a, b: np.vdot(a, b), (M, M), told=True),
    "outer": Case(lambda a, b: [np.outer(a, b), np.linalg.outer(a, b), np.kron(a, b)], (W, W)),
    "cross": Case(lambda a, b: [np.cross(a, b), np.linalg.cross(a, b)], (W, torch.flip(W, [0])), loose=True),
    "matmul": Case(lambda a, b: [np.matmul(a, b), a @ b, np.linalg.matmul(a, b)], (M, N)),
    "matmul vector": Case(lambda a, b: [a @ b, b @ a.T], (M, W)),
    "matmul batched": Case(lambda a, b: [a @ b, a @ b[0], b[1] @ a], (C, C)),
    "matmul number": Case(lambda a, b: a @ b, (W, W), told=True),
    "matmul axes": Case(lambda a, b: np.matmul(a, b, axes=[(1, 0), (0, 1), (0, 1)]), (N, N), loose=True),
    "matmul out": Case(lambda a, b: np.matmul(a, b, out=np.zeros((2, 3), np.float32)), (M, N)),
    "vecdot": Case(lambda a, b: [np.vecdot(a, b), np.linalg.vecdot(a, b)], (M, M)),
    "vecdot axis": Case(lambda a, b: np.vecdot(a, b, axis=0), (M, M)),
    "matvec": Case(lambda a, b: [np.matvec(a, b), np.vecmat(b, a.T)], (M, W), loose=True),
    "tensordot": Case(
        lambda a, b: [np.tensordot(a, b, 1), np.tensordot(a, b, axes=([0, 1], [1, 0]))], (C, C)
    ),
    "einsum": Case(
        lambda a, b: [np.einsum("ij,jk->ik", a, b), np.einsum("ij,kj", a, b), np.einsum("ij->j", a)], (M, N)
    ),
    "einsum diagonal": Case(lambda a: [np.einsum("ii->i", a), np.einsum("ij->ji", a)], (N,)),
    "einsum trace": Case(lambda a: np.einsum("ii", a), (N,), told=True),
    "einsum cubes": Case(
        lambda a, b: [np.einsum("bij,bjk->bik", a, b), np.einsum("...ij,...kj->...ik", a, b)], (C, C)
    ),
    "einsum optimize": Case(
        lambda a, b: np.einsum("ij,jk,k->i", a, b, b[0], optimize=True), (M, N), loose=True
    ),
    "einsum lists": Case(lambda a, b: np.einsum(a, [0, 1], b, [1, 2], [0, 2]), (M, N)),
    "einsum out": Case(lambda a, b: np.einsum("ij,jk->ik", a, b, out=np.zeros((2, 3), np.float32)), (M, N)),
    "multi_dot": Case(lambda a, b: np.linalg.multi_dot([a, b, b]), (M, N)),
    "cov": Case(lambda a: [np.cov(a), np.corrcoef(a)], (M,), told=True),
    "vander": Case(lambda a: np.vander(a, 3), (W,)),
    "apply": Case(lambda a: np.apply_along_axis(np.sum, 1, a), (M,), told=True),
    "apply over": Case(lambda a: np.apply_over_axes(np.sum, a, [0, 1]), (M,)),
}

LINEAR: dict[str, Case] = {
    "solve": Case(
        lambda a, b: [np.linalg.solve(a, b), np.linalg.inv(a), np.linalg.det(np.stack([a, a]))],
        (N, N),
        loose=True,
    ),
    "det": Case(lambda a: np.linalg.det(a), (N,), told=True),
    "slogdet": Case(lambda a: list(np.linalg.slogdet(a[None])), (N,), loose=True),
    "cholesky": Case(lambda a: np.linalg.cholesky(a @ a.T + np.eye(3)), (N,), loose=True),
    "qr": Case(lambda a: [list(np.linalg.qr(a)), np.linalg.qr(a, mode="r")], (N,), loose=True),
    "svd": Case(lambda a: [np.linalg.svd(a)[1], np.linalg.svdvals(a), np.linalg.pinv(a)], (M,), loose=True),
    "eigh": Case(lambda a: [np.linalg.eigvalsh(a), np.linalg.eigh(a)[0]], (N,), loose=True),
    "eig": Case(lambda a: [np.linalg.eigvals(a + 0j), np.linalg.eig(a + 0j)[0]], (N,), told=True),
    "norm": Case(
        lambda a: [np.linalg.norm(a, axis=1), np.linalg.norm(a, 1, axis=1), np.linalg.vector_norm(a, axis=0)],
        (M,),
        loose=True,
    ),
    "norm all": Case(
        lambda a: [np.linalg.norm(a), np.linalg.matrix_norm(a), np.linalg.cond(a)], (M,), told=True
    ),
    "lstsq": Case(lambda a, b: np.linalg.lstsq(a, b)[0], (N, W), told=True),
    "rank": Case(lambda a: [np.linalg.matrix_rank(a), np.linalg.matrix_power(a, 3)], (N,), told=True),
    "tensors": Case(lambda a: [np.linalg.tensorinv(a, 1), np.linalg.tensorsolve(a, a[0])], (N,), loose=True),
    "fft": Case(
        lambda a: [np.fft.fft(a), np.fft.ifft(a, axis=0), np.fft.rfft(a), np.fft.irfft(a, 4)],
        (M,),
        loose=True,
    ),
    "fft n": Case(
        lambda a: [
            np.fft.fft(a, 5),
            np.fft.fft(a, 2),
            np.fft.hfft(a),
            np.fft.ihfft(a),
            np.fft.fft(a, norm="ortho"),
        ],
        (V,),
        loose=True,
    ),
    "fft 2": Case(
        lambda a: [np.fft.fft2(a), np.fft.ifft2(a), np.fft.rfft2(a), np.fft.irfft2(a)], (M,), loose=True
    ),
    "fft many": Case(
        lambda a: [np.fft.fftn(a, axes=(0, 1)), np.fft.ifftn(a), np.fft.rfftn(a), np.fft.irfftn(a)],
        (C,),
        loose=True,
    ),
    "fft out": Case(lambda a: np.fft.fft(a, axis=0, out=np.zeros((2, 3), complex)), (M,), loose=True),
    "poly": Case(
        lambda a, b: [
            np.polyadd(a, b),
            np.polysub(a, b),
            np.polymul(a, b),
            np.polyval(a, b),
            np.polyder(a),
            np.polyint(a),
        ],
        (W, V),
        told=True,
    ),
    "polyfit": Case(lambda a: np.polyfit(np.arange(4.0), a, 1), (V,), told=True),
    "roots": Case(lambda a: [np.roots(a).real, np.poly(a), list(np.polydiv(a, [1.0, 2.0]))], (W,), told=True),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=n) for n, c in (FOLDED | SORTED | PRODUCTS | LINEAR).items()]
)
def test_functions_that_compute(case: Case) -> None:
    agrees(case, kinds=4)
