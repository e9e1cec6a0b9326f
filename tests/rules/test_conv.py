"""Convolutions: receptive fields in every layout."""

import pytest
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


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"padding": 1, "stride": 2, "output_padding": 1}, {"groups": 2}], ids=str
)
def test_transposed(options: dict[str, int]) -> None:
    x, w, b = rand(1, 2, 3), rand(2, 2 // options.get("groups", 1), 3), rand(2)
    fn = lambda x, w, b: F.conv_transpose1d(x, w, b, **options)  # noqa: E731
    check(lambda x: fn(x, w, b), x, exact=True)
    check(grads(fn, (0, 1, 2)), x, w, b, rand(*fn(x, w, b).shape, zeros=0.4), kinds=6)


def test_causal_and_masked_convolutions() -> None:
    w = rand(1, 1, 3)
    check(lambda x: F.conv1d(F.pad(x, (2, 0)), w), rand(2, 1, 4), exact=True)
    later = w.clone()
    later[..., 2] = 0
    check(lambda x: F.conv1d(x, later, padding=1), rand(1, 1, 4), exact=True)
    check(lambda x: F.conv1d(x, w), rand(1, 4), exact=True)
    check(lambda x: F.conv2d(x, rand(1, 1, 2, 2), padding=(1, 0)), rand(1, 1, 3, 2), exact=True)
