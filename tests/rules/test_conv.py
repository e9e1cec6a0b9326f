"""Convolutions: receptive fields in every layout."""

import pytest
import torch
from torch.nn import functional as F

from tests.oracle import check, grads
from tests.rules.test_pointwise import rand

LAYOUTS = [
    {},
    {"padding": 1},
    {"stride": 2},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "padding": 2},
    {"stride": 3, "dilation": 2, "padding": 3},
    {"groups": 2},
]


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_conv1d(options: dict[str, int]) -> None:
    x, w, b = rand(1, 2, 5), rand(2, 2 // options.get("groups", 1), 2), rand(2)
    fn = lambda x, w, b: F.conv1d(x, w, b, **options)  # noqa: E731
    check(lambda x: F.conv1d(x, w, **options), x, exact=True)
    check(grads(fn, (0, 1, 2)), x, w, b, rand(*fn(x, w, b).shape, zeros=0.4), kinds=6)
    check(fn, x, w, b, exact=True)
    check(grads(fn, (0, 1, 2)), x, w, b, rand(*fn(x, w, b).shape), exact=True)


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"padding": 1, "stride": 2, "output_padding": 1}, {"groups": 2}], ids=str
)
def test_transposed(options: dict[str, int]) -> None:
    x, w, b = rand(1, 2, 3), rand(2, 2 // options.get("groups", 1), 3), rand(2)
    fn = lambda x, w, b: F.conv_transpose1d(x, w, b, **options)  # noqa: E731
    check(lambda x: fn(x, w, b), x, exact=True)
    check(grads(fn, (0, 1, 2)), x, w, b, rand(*fn(x, w, b).shape, zeros=0.4), kinds=6)
    check(fn, x, w, b, exact=True)
    check(grads(fn, (0, 1, 2)), x, w, b, rand(*fn(x, w, b).shape), exact=True)


def test_causal_and_masked_convolutions() -> None:
    w = rand(1, 1, 3)
    check(lambda x: F.conv1d(F.pad(x, (2, 0)), w), rand(2, 1, 4), exact=True)
    later = w.clone()
    later[..., 2] = 0
    check(lambda x: F.conv1d(x, later, padding=1), rand(1, 1, 4), exact=True)
    check(lambda x: F.conv1d(x, w), rand(1, 4), exact=True)
    check(lambda x: F.conv2d(x, rand(1, 1, 2, 2), padding=(1, 0)), rand(1, 1, 3, 2), exact=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_more_dims_and_no_batch(transposed: bool) -> None:
    conv = F.conv_transpose2d if transposed else F.conv2d
    fn = lambda x, w: conv(x, w, padding=(1, 0), stride=(2, 1))  # noqa: E731
    x, w = rand(1, 2, 3), rand(1, 2, 2, 2) if transposed else rand(2, 1, 2, 2)
    check(fn, x, w, exact=True)
    check(grads(fn, (0, 1)), x, w, rand(*fn(x, w).shape), exact=True)


def test_large_convolutions_join_channels() -> None:
    """Beyond what is spelled out weight by weight: sound, and exact along the places."""
    x, w = rand(1, 1, 4), rand(1, 1, 2)
    wide = torch.ones(1, 300, 1)
    fn = lambda x, w: F.conv1d(x * wide, w * wide)  # noqa: E731
    check(fn, x, w, kinds=4)
    check(lambda x: fn(x, w), x, exact=True, kinds=4)
    check(grads(fn, (0, 1)), x, w, rand(1, 1, 3, zeros=0.3), kinds=4)
