"""Resampling: every interpolation, padding, overlapping windows and sampled grids, forward and backward."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from causaltrace.rules import separable
from tests.oracle import check, grads
from tests.rules.test_pointwise import rand

Fn = Callable[..., Any]


def both_ways(fn: Fn, x: Tensor, exact: bool = True) -> None:
    """``fn`` and its gradient, which is linear and so as exact as it."""
    check(fn, x, exact=exact, kinds=6)
    check(grads(fn), x, rand(*fn(x).shape, zeros=0.3, seed=1), exact=exact, kinds=6)


RESIZES = [
    ("nearest", (1, 2, 3), {"scale_factor": 2}),
    ("nearest", (1, 1, 5), {"size": 3}),
    ("nearest", (1, 1, 2, 3), {"size": (3, 2)}),
    ("nearest", (1, 1, 2, 1, 2), {"scale_factor": (1, 2, 1.5)}),
    ("nearest-exact", (1, 1, 5), {"size": 3}),
    ("nearest-exact", (1, 1, 2, 3), {"size": (3, 5)}),
    ("nearest-exact", (1, 1, 2, 1, 2), {"size": (3, 1, 1)}),
    ("linear", (2, 1, 3), {"size": 5}),
    ("linear", (1, 1, 4), {"size": 7, "align_corners": True}),
    ("linear", (1, 1, 4), {"scale_factor": 1.3, "recompute_scale_factor": False}),
    ("bilinear", (1, 2, 2, 3), {"scale_factor": 2}),
    ("bilinear", (1, 1, 3, 4), {"size": (3, 2), "align_corners": True}),
    ("bilinear", (1, 1, 3, 4), {"scale_factor": (1.1, 1.5)}),
    ("bilinear", (1, 1, 5, 3), {"size": (2, 4), "antialias": True}),
    ("trilinear", (1, 1, 2, 1, 3), {"size": (3, 2, 2)}),
    ("bicubic", (1, 1, 4, 3), {"size": (6, 2)}),
    ("bicubic", (1, 1, 5, 1), {"size": (9, 1), "align_corners": True}),
    ("bicubic", (1, 1, 6, 2), {"size": (3, 3), "antialias": True}),
]


@pytest.mark.parametrize(
    ("mode", "shape", "options"), RESIZES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_interpolate(mode: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    both_ways(lambda x: F.interpolate(x, mode=mode, **options), rand(*shape))


@pytest.mark.parametrize(
    ("mode", "shape", "widths"),
    [
        ("reflect", (1, 2, 4), (2, 1)),
        ("reflect", (1, 3, 3), (1, 0, 2, 1)),
        ("reflect", (1, 2, 2, 2), (1, 0, 0, 1, 1, 1)),
        ("replicate", (2, 3), (2, 1)),
        ("replicate", (1, 1, 2, 3), (1, 0, 2, 1)),
        ("replicate", (1, 1, 2, 1, 2), (1, 0, 0, 1, 2, 0)),
        ("replicate", (1, 1, 4), (-1, 2)),
    ],
    ids=str,
)
def test_pad_backward(mode: str, shape: tuple[int, ...], widths: tuple[int, ...]) -> None:
    both_ways(lambda x: F.pad(x, widths, mode), rand(*shape))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 4, 4), {"output_size": (3, 3), "kernel_size": 2}),
        ((8, 4), {"output_size": (4, 3), "kernel_size": 2, "padding": (0, 1), "stride": (2, 2)}),
        ((1, 6, 2), {"output_size": (3, 4), "kernel_size": (3, 2), "dilation": (1, 2), "stride": (1, 1)}),
        ((1, 2, 6), {"output_size": (5, 5), "kernel_size": (2, 1), "dilation": 1, "stride": 2}),
    ],
    ids=str,
)
def test_fold(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    both_ways(lambda x: F.fold(x, **options), rand(*shape))


def test_unfold_backward_is_fold() -> None:
    both_ways(lambda x: F.unfold(x, 2, stride=(2, 1), padding=1), rand(1, 1, 3, 2))


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grid_sample(mode: str, padding: str) -> None:
    x, grid = rand(1, 2, 2, 3), rand(1, 2, 2, 2) * 0.6

    def fn(x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid, mode, padding, align_corners=False)

    fixed = lambda x: fn(x, grid)  # noqa: E731
    both_ways(fixed, x)
    check(fn, x, grid, kinds=6)
    check(grads(fn, (0, 1)), x, grid, rand(1, 2, 2, 2, zeros=0.4, seed=1), kinds=6)


def test_grid_sample_on_pixels_and_beyond_the_image() -> None:
    grid = torch.tensor([-1.0, -0.5, 0.0, 1.0, 9.0, -9.0]).view(1, 1, 6, 1).expand(1, 1, 6, 2).clone()
    for options in ({"align_corners": True}, {"align_corners": False, "mode": "nearest"}):
        both_ways(lambda x, o=options: F.grid_sample(x, grid, **o), rand(1, 1, 3, 3))
    check(
        grads(lambda x, g: F.grid_sample(x, g, align_corners=True), (0, 1)),
        rand(1, 1, 3, 3), grid[:, :, :4], rand(1, 1, 1, 4), kinds=6,
    )  # fmt: skip


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_what_weighs_in_the_gradient_of_a_grid(mode: str, padding: str) -> None:
    grid = torch.tensor([[-0.45, 0.3], [0.1, 9.0], [-9.0, 9.0], [0.2, -0.1]]).view(1, 1, 4, 2)

    def fn(x: Tensor, seed: Tensor) -> Tensor:
        sampled = lambda grid: F.grid_sample(x, grid, mode, padding, align_corners=False)  # noqa: E731
        return grads(sampled)(grid, seed)[1]

    x, seed = rand(1, 2, 3, 4), rand(1, 2, 1, 4, seed=1)
    seed[..., 3] = 0
    check(lambda s: fn(x, s), seed, exact=True)
    cancels = mode == "bicubic" and padding != "zeros"  # weights of one place, but for rounding
    check(lambda x: fn(x, seed), x, exact=not cancels)
    check(fn, x, seed)


def test_grid_sample_of_volumes_and_batches() -> None:
    grid = rand(2, 1, 2, 1, 3) * 0.7
    both_ways(lambda x: F.grid_sample(x, grid, align_corners=False), rand(2, 1, 2, 2, 2))
    check(
        grads(lambda x, g: F.grid_sample(x, g, align_corners=False), (0, 1)),
        rand(2, 1, 1, 2, 2), grid, rand(2, 1, 1, 2, 1), kinds=6,
    )  # fmt: skip
    only = grads(lambda g: F.grid_sample(rand(2, 1, 1, 2, 2), g, align_corners=False))
    check(only, grid, rand(2, 1, 1, 2, 1), kinds=6)


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_other_dtypes(dtype: torch.dtype) -> None:
    x, g = rand(1, 1, 2, 3).to(dtype), rand(1, 1, 4, 5).to(dtype)
    for mode in ("nearest", "bilinear", "bicubic"):
        check(grads(lambda x, m=mode: F.interpolate(x, (4, 5), mode=m)), x, g, kinds=6, large=8.0)


def test_empty() -> None:
    fn = grads(lambda x: F.interpolate(x, (4, 2), mode="bilinear"))
    check(lambda x, y, g: [*fn(x, g), y], rand(0, 1, 2, 2), rand(1), rand(0, 1, 4, 2), kinds=2)


def test_many_one_hot_vectors_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separable, "BLOCK", 8)
    separable._probe.cache_clear()
    both_ways(lambda x: F.interpolate(x, 7, mode="linear"), rand(1, 1, 5))
    monkeypatch.setattr(separable, "ONE_HOT_LIMIT", 8)
    separable._probe.cache_clear()
    both_ways(lambda x: F.interpolate(x, 11, mode="linear"), rand(1, 1, 9))
    both_ways(lambda x: F.avg_pool1d(x, 6, 3, padding=2), rand(1, 1, 14), exact=False)
    monkeypatch.setattr(separable, "PROBE_LIMIT", 8)
    both_ways(lambda x: F.interpolate(x, 7, mode="linear"), rand(1, 1, 5), exact=False)
    separable._probe.cache_clear()
