"""Operations that take functions (flex_attention, cond, scan) are followed into these functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops import associative_scan, map, out_dtype, scan, while_loop
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tests.oracle import Index, check, grads
from tests.rules.test_pointwise import rand

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")

N = 3


def blocks(mask: Callable[..., Tensor], n: int = N) -> BlockMask:
    return create_block_mask(mask, None, None, n, n, device="cpu")


def causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


def later(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i <= j


def qkv(heads: int = 1, kv_heads: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return rand(1, heads, N, 2), rand(1, kv_heads, N, 2, seed=1), rand(1, kv_heads, N, 2, seed=2)


def rows(x: Tensor) -> Tensor:
    """One number a row: single features do not depend on all of a key."""
    return (x * torch.tensor([1.0, 0.7])).sum(-1)


# -- attention --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [causal, later], ids=lambda m: m.__name__)
def test_masked_attention_is_exact(mask: Callable[..., Tensor]) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        out, lse = flex_attention(q, k, v, block_mask=blocks(mask), return_lse=True)
        some = slice(1, None) if mask is causal else slice(None, -1)  # one key alone gets all the weight
        return [rows(out)[..., some], lse]

    check(fn, *qkv(), exact=True, kinds=5)


def test_grouped_heads() -> None:
    check(
        lambda q, k, v: rows(flex_attention(q, k, v, block_mask=blocks(causal), enable_gqa=True)),
        *qkv(2, 1),
        kinds=5,
    )


def test_scores_that_read_a_captured_tensor() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> Tensor:
        def bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + slope[j] * (j - i)

        return rows(flex_attention(q, k, v, score_mod=bias, block_mask=blocks(causal)))[..., 1:]

    check(fn, *qkv(), rand(N, seed=3), kinds=6)


def test_masks_that_read_a_captured_tensor() -> None:
    """Documents: a key is seen by the queries of its own document."""

    def fn(v: Tensor, document: Tensor) -> Tensor:
        q, k, _ = qkv()

        def same(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (document[i] == document[j]) & (i >= j)

        return rows(flex_attention(q, k, v, block_mask=blocks(same)))

    check(fn, qkv()[2], Index(torch.tensor([0, 1, 1]), [0, 1]), kinds=6)


def test_attention_that_reads_nothing() -> None:
    """A row without keys is 0, whatever they hold."""

    def nothing(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i > 0) & (i >= j)

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=blocks(nothing))[..., :1, :]

    check(fn, *qkv(), exact=True, kinds=4)


def test_attention_backward() -> None:
    """The operation itself: the public function refuses gradients on the host."""
    op = torch.ops.higher_order.flex_attention
    mask = blocks(causal).as_tuple()

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return op(q, k, v, lambda score, b, h, i, j: score * 2, mask, 0.5, {})[0]

    check(grads(fn, (0, 1, 2)), *qkv(), rand(1, 1, N, 2, seed=4, zeros=0.6), kinds=4)


# -- conditions -------------------------------------------------------------------------------------------


def test_branches_depend_on_the_condition() -> None:
    def fn(flag: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.cond(flag, lambda x, y: x.sin() + y, lambda x, y: x.cos() * 2, (x, y))

    for flag in (True, False):
        check(fn, torch.tensor(flag), rand(2, 2), rand(2), exact=True)


def test_captured_tensors_and_nested_branches() -> None:
    def fn(x: Tensor, w: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            return torch.cond(w[0] > 0, lambda x: x * w[1], lambda x: x - w[1], (x,))

        return torch.cond(x.sum() > 0, inner, lambda x: x + w.sum(), (x,))

    check(fn, rand(2), rand(2, seed=1), kinds=6)
    check(fn, rand(2).abs(), rand(2, seed=1).abs(), kinds=6)


def test_gradients_of_branches() -> None:
    def fn(x: Tensor, y: Tensor, flag: Tensor) -> Tensor:
        return torch.cond(flag > 0, lambda x, y: x.sin() * y[0], lambda x, y: x.exp() * y, (x, y))

    for flag in (1.0, -1.0):
        check(grads(fn, (0, 1)), rand(1), rand(1, seed=1), torch.tensor(flag), rand(1, seed=2), kinds=4)


def test_loops_depend_on_their_condition() -> None:
    def fn(x: Tensor, limit: Tensor) -> Tensor:
        start = torch.tensor(0)
        return while_loop(
            lambda i, x: (i < 3) & (x[0] < limit), lambda i, x: (i + 1, x + x.roll(1)), (start, x)
        )[1]

    check(fn, rand(3).abs() + 0.1, torch.tensor(2.0), kinds=6)


def test_loops_that_count_are_exact() -> None:
    def fn(x: Tensor) -> Tensor:
        start = torch.tensor(0)
        return while_loop(lambda i, x: i < 2, lambda i, x: (i + 1, x * 1.5), (start, x))[1]

    check(fn, rand(3), exact=True)


# -- scans ------------------------------------------------------------------------------------------------


def step(carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    new = torch.tanh(carry + x)
    return new, new * 2


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_is_exact(reverse: bool) -> None:
    def fn(first: Tensor, xs: Tensor) -> list[Tensor]:
        return list(scan(step, first, xs, dim=0, reverse=reverse))

    check(fn, rand(2), rand(3, 2, seed=1), exact=True, large=2.0, kinds=5)


def test_gradients_of_a_scan() -> None:
    def fn(first: Tensor, xs: Tensor) -> Tensor:
        return scan(step, first, xs, dim=0)[1]

    check(grads(fn, (0, 1)), rand(1), rand(2, 1, seed=1), rand(2, 1, seed=2), large=2.0, kinds=3)


@pytest.mark.parametrize("reverse", [False, True])
def test_associative_scan_is_exact(reverse: bool) -> None:
    def fn(xs: Tensor) -> Tensor:
        return associative_scan(torch.add, xs, dim=0, reverse=reverse, combine_mode="generic")

    check(fn, rand(4, 2), exact=True, kinds=5)


def test_map_is_exact() -> None:
    def fn(xs: Tensor, y: Tensor) -> Tensor:
        return map(lambda x, y: x.cumsum(0) * y, xs, y)

    check(fn, rand(2, 3), rand(3, seed=1), exact=True, kinds=5)
    check(grads(fn, (0, 1)), rand(2, 1), rand(1, seed=1), rand(2, 1, seed=2), kinds=3)


def test_products_of_another_dtype() -> None:
    def fn(x: Tensor, y: Tensor) -> Tensor:
        return out_dtype(torch.ops.aten.mm.default, torch.float64, x, y)

    check(fn, rand(2, 2), rand(2, 2, seed=1), exact=True, kinds=4)
