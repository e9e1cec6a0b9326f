"""Sort, compute side by side, put back: the order cancels out, and only then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from causaltrace.geometry import Geometry
from causaltrace.order import ITEMS, KEYS, Order, Permutation, seen_through
from tests.oracle import Index, check
from tests.rules.test_pointwise import rand

N, GROUPS = 5, 3
KEYS_OF_ITEMS = Index(torch.tensor([2, 0, 1, 0, 2]), range(GROUPS))
TABLE = rand(GROUPS, 2, seed=7)
NUMBERS = torch.arange(N)
Fn = Callable[[Tensor, Tensor], Tensor]


def placed(perm: Tensor) -> Tensor:
    inverse = torch.empty_like(perm)
    inverse[perm] = torch.arange(len(perm))
    return inverse


def scattered(perm: Tensor) -> Tensor:
    return torch.zeros_like(perm).scatter_(0, perm, torch.arange(len(perm)))


def ends(keys: Tensor) -> Tensor:
    counts = torch.histc(keys.float(), bins=GROUPS, min=0, max=GROUPS - 1)
    return counts.cumsum(0, dtype=torch.int32)


def by_table(x: Tensor, keys: Tensor) -> Tensor:
    """A row of a table for each group, picked in sorted order."""
    sorted_keys, perm = keys.sort()
    out = (x[perm] * TABLE[sorted_keys]).tanh() + F.embedding(sorted_keys, TABLE).sum(-1, keepdim=True)
    return out[placed(perm)]


def grouped(rows: Tensor, offs: Tensor) -> Tensor:
    """A factor for each group, as a product of matrices (whose rows must be 16 bytes apart)."""
    weights = F.pad(TABLE[:, None, :], (0, 2, 0, 3))
    return F.grouped_mm(F.pad(rows[:, :1], (0, 3)), weights, offs=offs)[:, :2]


def by_grouped_product(x: Tensor, keys: Tensor) -> Tensor:
    sorted_keys, perm = keys.sort(stable=True)
    out = grouped(x[perm], ends(sorted_keys))
    return out[perm.argsort()]


def by_counts(x: Tensor, keys: Tensor) -> Tensor:
    sorted_keys, perm = keys.sort()
    offs = torch.bincount(sorted_keys, minlength=GROUPS).cumsum(0).int()
    return grouped(x[perm], offs).index_select(0, scattered(perm))


def added_back(x: Tensor, keys: Tensor) -> Tensor:
    """Two items of each token: rows 0 and 1 are token 0."""
    perm = keys.argsort()
    token = perm // 2
    out = torch.zeros(3, 2)
    out.index_add_(0, token, x.flip(0)[token] * TABLE[keys[perm]])
    return out


def written_back(x: Tensor, keys: Tensor) -> list[Tensor]:
    """Every way to write items where they belong."""
    perm = keys.argsort()
    y = F.layer_norm(x[perm], (2,)).softmax(-1).cumsum(-1).masked_fill(keys[perm, None] == 0, 0.5)
    y.mul_(2.0)
    where = perm[:, None].expand(N, 2)
    return [
        torch.zeros(N, 2).index_put((perm,), y),
        torch.zeros(N + 1, 2).index_copy(0, perm, y),
        torch.zeros(N, 2).index_put((perm,), y, accumulate=True),
        torch.zeros(N, 2).scatter(0, where, y),
        torch.zeros(N, 2).scatter_add(0, where, y),
        torch.zeros(2, N).index_add(1, perm, y.t()),
    ]


def with_heads(x: Tensor, keys: Tensor) -> Tensor:
    """Views of other dims keep the order; casts keep integers apart."""
    perm = keys.int().sort().indices.clone()
    a, b = x[perm].view(N, 1, 2).chunk(2, dim=-1)
    y = torch.where(b > 0, a, b).transpose(0, 1).abs().amax(-1).unsqueeze(-1)
    return y[0][placed(perm)] + x.new_zeros(N, 1)


@pytest.mark.parametrize(
    "fn", [by_table, by_grouped_product, by_counts, added_back, written_back, with_heads]
)
def test_what_is_put_back_depends_on_its_own_item(fn: Fn) -> None:
    check(fn, rand(N, 2), KEYS_OF_ITEMS, exact=True, layouts=False)


def test_the_keys_that_were_sorted_by_may_be_real_numbers() -> None:
    def fn(x: Tensor, scores: Tensor) -> Tensor:
        values, perm = scores.sort(descending=True)
        return (x[perm] * values[:, None])[perm.argsort()]

    check(fn, rand(N, 2), rand(N), exact=True, layouts=False)


SECOND = torch.tensor([1, 1, 0, 2, 0])

#: Programs that look at slots: which item is there shows in what comes back.
TELLING: dict[str, Fn] = {
    "another dim of the slots": lambda y, inv: y.roll(1, 0)[inv],
    "reversed": lambda y, inv: y.flip(0)[inv],
    "weights of slots": lambda y, inv: (y * NUMBERS[:, None])[inv],
    "branches by slot": lambda y, inv: torch.where(NUMBERS[:, None] < 2, y, -y)[inv],
    "sums over slots": lambda y, inv: y.cumsum(0)[inv],
    "means over slots": lambda y, inv: (y - y.mean(0))[inv],
    "softmax over slots": lambda y, inv: y.softmax(0)[inv],
    "norms over slots": lambda y, inv: F.layer_norm(y, (N, 2))[inv],
    "half of the slots": lambda y, inv: torch.cat((y[:3], y[:3]))[inv],
    "slots from the second on": lambda y, inv: torch.cat((y[1:], y[:1]))[inv],
    "written by slot": lambda y, inv: y.index_fill(0, torch.tensor([0, 1]), 0.0)[inv],
    "overwritten in place": lambda y, inv: (y[2:].fill_(3.0), y)[1][inv],
    "half of the inverse": lambda y, inv: y[inv[1:]],
    "a shifted inverse": lambda y, inv: y[(inv + 1) % N],
    "not the inverse": lambda y, inv: y[inv.argsort()],
    "mixed by a matrix": lambda y, inv: (torch.eye(N).flip(0) @ y)[inv],
    "as one vector": lambda y, inv: y.flatten()[inv],
    "another order's inverse": lambda y, inv: y[SECOND.argsort().argsort()],
    "twice the order": lambda y, inv: y[inv][inv],
    "other views": lambda y, inv: y.t().reshape(N, 2)[inv],
    "strided views": lambda y, inv: torch.as_strided(y.contiguous(), (N, 2), (1, 1))[inv],
}


@pytest.mark.parametrize("name", TELLING)
def test_what_tells_slots_apart_depends_on_the_order(name: str) -> None:
    def fn(x: Tensor, keys: Tensor) -> Tensor:
        perm = keys.argsort(stable=True)
        return TELLING[name](x[perm] * 2.0, placed(perm))

    check(fn, rand(N, 2), KEYS_OF_ITEMS, layouts=False)


GROUP_ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": lambda keys: torch.tensor([2, 3, 5], dtype=torch.int32),
    "shifted": lambda keys: ends(keys).roll(1).sort().values,
    "too few bins": lambda keys: torch.histc(keys.float(), bins=GROUPS, min=0, max=1).cumsum(0).int(),
    "counts, not ends": lambda keys: torch.histc(keys.float(), bins=GROUPS, min=0, max=2).int().sort().values,
    "of other keys": lambda keys: ends(SECOND),
    "of changed keys": lambda keys: ends((keys + 1).clamp(max=2)),
    "of one key": lambda keys: ends(keys[:1].expand(N)),
}


@pytest.mark.parametrize("name", GROUP_ENDS)
def test_groups_that_are_not_the_keys_depend_on_the_order(name: str) -> None:
    def fn(x: Tensor, keys: Tensor) -> Tensor:
        sorted_keys, perm = keys.sort(stable=True)
        offs = GROUP_ENDS[name](sorted_keys)
        out = grouped(x[perm], offs)
        return torch.where(NUMBERS[:, None] < offs[-1], out, 0.0)[placed(perm)]

    check(fn, rand(N, 2), KEYS_OF_ITEMS, layouts=False)


def test_descending_keys_are_not_groups() -> None:
    def fn(x: Tensor, keys: Tensor) -> Tensor:
        sorted_keys, perm = keys.sort(descending=True, stable=True)
        return grouped(x[perm], ends(sorted_keys))[placed(perm)]

    check(fn, rand(N, 2), KEYS_OF_ITEMS, layouts=False)


def test_the_last_of_several_items_to_write_wins() -> None:
    def fn(x: Tensor, keys: Tensor) -> Tensor:
        perm = keys.argsort(stable=True)
        return torch.zeros(3, 2).index_put((perm // 2,), x[perm])

    check(fn, rand(N, 2), KEYS_OF_ITEMS, layouts=False)


def test_views_of_slots() -> None:
    order = Order(Permutation(4, None), ITEMS, 0, None)
    base = Geometry(0, (4, 6), (6, 1), 4)
    assert seen_through(order, base, Geometry(3, (4, 3), (6, 1), 4)) == 0
    assert seen_through(order, base, Geometry(0, (6, 4), (1, 6), 4)) == 1
    assert seen_through(order, base, Geometry(0, (4, 2, 3), (6, 3, 1), 4)) == 0
    assert seen_through(order, base, Geometry(6, (3, 6), (6, 1), 4)) is None
    assert seen_through(order, base, Geometry(5, (4, 2), (6, 1), 4)) is None
    assert seen_through(order, base, Geometry(0, (24,), (1,), 4)) is None
    assert seen_through(order, base, Geometry(0, (4, 2), (6, 6), 4)) is None
    assert seen_through(order, base, Geometry(0, (4, 6), (6, 1), 8)) is None
    assert seen_through(order, base, Geometry(6, (4, 6), (6, 1), 4)) is None
    keys = order._replace(role=KEYS)
    assert seen_through(keys, Geometry(0, (4,), (1,), 8), Geometry(0, (4, 1), (1, 1), 8)) == 0
    assert seen_through(keys, base, Geometry(0, (4, 3), (6, 1), 4)) is None
