"""Pools: averages and maxima over windows in every layout, and the way back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import causaltrace
from tests.oracle import Index, check, grads
from tests.rules.test_pointwise import rand
from tests.rules.test_resample import both_ways

Fn = Callable[..., Any]

AVERAGES: list[tuple[Fn, tuple[int, ...], dict[str, Any]]] = [
    (F.avg_pool1d, (2, 5), {"kernel_size": 2}),
    (F.avg_pool1d, (1, 1, 5), {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}),
    (F.avg_pool1d, (1, 1, 6), {"kernel_size": 2, "stride": 3}),
    (F.avg_pool2d, (1, 3, 4), {"kernel_size": 2}),
    (F.avg_pool2d, (1, 1, 3, 4), {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)}),
    (F.avg_pool2d, (1, 1, 3, 4), {"kernel_size": (2, 3), "padding": (1, 0), "ceil_mode": True}),
    (F.avg_pool2d, (1, 2, 3, 2), {"kernel_size": 2, "stride": 2, "ceil_mode": True, "divisor_override": 3}),
    (F.avg_pool3d, (1, 2, 3, 2), {"kernel_size": 2, "stride": 1, "padding": (0, 1, 0)}),
    (F.adaptive_avg_pool1d, (1, 1, 5), {"output_size": 3}),
    (F.adaptive_avg_pool2d, (1, 1, 3, 4), {"output_size": (2, 3)}),
    (F.adaptive_avg_pool2d, (1, 3, 2), {"output_size": (1, 4)}),
    (F.adaptive_avg_pool2d, (1, 2, 2, 2), {"output_size": 1}),
    (F.adaptive_avg_pool3d, (1, 1, 3, 2, 2), {"output_size": (2, 1, 3)}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fn", "shape", "options"), AVERAGES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_average(fn: Fn, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    both_ways(lambda x: fn(x, **options), rand(*shape))


MAXIMA: list[tuple[Fn, tuple[int, ...], dict[str, Any]]] = [
    (F.max_pool1d, (2, 5), {"kernel_size": 2}),
    (F.max_pool1d, (1, 2, 6), {"kernel_size": 3, "stride": 1, "padding": 1}),
    (F.max_pool1d, (1, 1, 6), {"kernel_size": 2, "stride": 3}),
    (F.max_pool2d, (1, 3, 4), {"kernel_size": 2, "stride": 1}),
    (F.max_pool2d, (1, 1, 4, 3), {"kernel_size": 2, "dilation": (2, 1), "padding": (1, 0)}),
    (F.max_pool2d, (1, 1, 3, 3), {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
    (F.max_pool3d, (1, 2, 3, 2), {"kernel_size": (1, 2, 2), "stride": 1}),
    (F.adaptive_max_pool1d, (1, 1, 5), {"output_size": 3}),
    (F.adaptive_max_pool2d, (1, 1, 3, 4), {"output_size": (2, 3)}),
    (F.adaptive_max_pool3d, (1, 1, 3, 2, 2), {"output_size": (2, 1, 1)}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fn", "shape", "options"), MAXIMA, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_maximum(fn: Fn, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    x = rand(*shape).abs() + 0.1  # what the oracle tries is then often lower than all of a window
    layouts = fn is not F.max_pool3d  # which takes few
    indexed = lambda x: fn(x, **options, return_indices=True)  # noqa: E731
    check(indexed, x, exact=True, kinds=6, layouts=layouts)
    plain = lambda x: fn(x, **options)  # noqa: E731
    check(plain, x, exact=True, kinds=4, layouts=layouts)
    grad = rand(*plain(x).shape, zeros=0.4, seed=1)
    check(grads(plain), x, grad, kinds=8, layouts=layouts)
    check(lambda g: grads(plain)(x, g), grad, exact=True, kinds=6)


def test_ties_and_what_is_not_the_maximum() -> None:
    x = torch.tensor([[1.0, 1.0, 0.0, -torch.inf, 2.0, 2.0]])
    check(lambda x: F.max_pool1d(x, 3, 1), x, exact=True)
    check(grads(lambda x: F.max_pool1d(x, 3, 1)), x, rand(1, 4))


@pytest.mark.parametrize(
    "shape", [(1, 2, 3, 4), (2, 3, 3)], ids=lambda value: getattr(value, "__name__", str(value))
)
def test_fractional(shape: tuple[int, ...]) -> None:
    samples = torch.rand(1 if len(shape) == 3 else shape[0], shape[-3], 2)

    def fn(x: Tensor, samples: Tensor) -> Any:
        return F.fractional_max_pool2d(x, 2, (2, 2), _random_samples=samples, return_indices=True)

    where = Index(samples, (0.1, 0.5, 0.9))  # type: ignore[arg-type]
    check(fn, rand(*shape), where, kinds=6)
    check(
        grads(lambda x, s: fn(x, s)[0]), rand(*shape), where, rand(*shape[:-2], 2, 2, zeros=0.3, seed=1),
        kinds=6,
    )  # fmt: skip


def test_fractional_windows() -> None:
    """They follow from the samples; the first and the last of a line are where they are in any case."""
    x, samples = torch.rand(1, 2, 6, 5), torch.tensor([[[0.1, 0.7], [0.6, 0.2]]])

    def fn(x: Tensor, samples: Tensor) -> Any:
        return F.fractional_max_pool2d(x, (2, 1), (3, 2), _random_samples=samples, return_indices=True)

    check(lambda x: fn(x, samples), x, exact=True, kinds=6)
    reach = causaltrace.dependencies(lambda s: fn(x, s), samples)[0][0]
    assert reach.flatten(4).any(-1)[0, 0].tolist() == [[False] * 2, [True] * 2, [False] * 2]
    check(fn, x, Index(samples, (0.1, 0.5, 0.9)), kinds=6)  # type: ignore[arg-type]
    grad = torch.tensor([[[1.0, 0, 2], [0, 3, 4]]]).view(1, 2, 3, 1)
    one = lambda x: F.fractional_max_pool2d(x, 1, (3, 1), _random_samples=samples)  # noqa: E731
    check(lambda g: grads(one)(x, g), grad, exact=True, kinds=6)


def test_fractional_3d() -> None:
    samples = torch.rand(1, 1, 3)
    fn = lambda x: F.fractional_max_pool3d(x, 1, (2, 1, 1), _random_samples=samples)  # noqa: E731
    check(grads(fn), rand(1, 1, 3, 2, 2), rand(1, 1, 2, 1, 1, seed=1), kinds=6)


@pytest.mark.parametrize(
    "shape", [(1, 2, 2, 2), (2, 1, 2)], ids=lambda value: getattr(value, "__name__", str(value))
)
def test_unpool(shape: tuple[int, ...]) -> None:
    flat = shape[:-2]
    index = torch.stack([torch.randperm(12)[:4] for _ in range(torch.Size(flat).numel())])
    index = index[:, : shape[-1] * shape[-2]].reshape(shape)

    fn = lambda x, i: torch.ops.aten.max_unpool2d(x, i, (3, 4))  # noqa: E731
    both_ways(lambda x: fn(x, index), rand(*shape))
    check(
        grads(fn),
        rand(*shape),
        Index(index, range(12)),
        rand(*flat, 3, 4, zeros=0.3, seed=1),
        kinds=6,
        layouts=False,
    )  # its kernel takes contiguous places only


def test_unpool_after_pool_and_3d() -> None:
    def there_and_back(x: Tensor) -> Tensor:
        return F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2)

    check(grads(there_and_back), rand(1, 2, 4), rand(1, 2, 4, seed=1), kinds=6)
    index = torch.tensor([0, 5, 5, 11]).view(1, 1, 1, 2, 2)
    fn = lambda x: torch.ops.aten.max_unpool3d(x, index, (1, 3, 4), (1, 1, 1), (0, 0, 0))  # noqa: E731
    check(grads(fn), rand(1, 1, 1, 2, 2), rand(1, 1, 1, 3, 4, seed=1), kinds=6)


def test_places_that_several_point_to() -> None:
    index = torch.tensor([0, 5, 5, 11]).view(1, 2, 2)
    reach = causaltrace.dependencies(lambda x: F.max_unpool2d(x, index, 2), torch.ones(1, 2, 2))[0][0]
    assert reach.view(16, 4).nonzero().tolist() == [[0, 0], [5, 1], [5, 2], [11, 3]]


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_other_dtypes(dtype: torch.dtype) -> None:
    x, g = rand(1, 1, 3, 4).to(dtype), rand(1, 1, 1, 2).to(dtype)
    for fn in (F.avg_pool2d, F.max_pool2d):
        check(grads(lambda x, f=fn: f(x, 2)), x, g, kinds=6, large=8.0, exact=fn is F.avg_pool2d)
    check(lambda x: F.max_pool2d(x, 2, 1), Index(torch.randint(0, 5, (1, 2, 3)), range(-2, 7)), exact=True)


def test_empty() -> None:
    for pool in (F.avg_pool2d, F.max_pool2d):
        fn = grads(lambda x, p=pool: p(x, 2))
        check(lambda x, y, g, f=fn: [*f(x, g), y], rand(0, 1, 2, 2), rand(1), rand(0, 1, 1, 1), kinds=2)
