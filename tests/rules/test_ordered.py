"""Sort, compute side by side, put back: the order cancels out, and only then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from causaltrace.boundary.host import Host
from causaltrace.boundary.outside import Outside
from causaltrace.geometry import Geometry
from causaltrace.lattice.cells import Cells
from causaltrace.order import COLUMN, ITEMS, KEYS, PLACES, Arrangement, Order, seen_through
from causaltrace.shadow import Shadow
from tests.oracle import Index, check, reported, tracer
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


def one_group_at_a_time(x: Tensor, keys: Tensor) -> list[Tensor]:
    """The places of a mask, and every way to write there."""
    out = [torch.zeros(N, 2), torch.zeros(N, 2), torch.ones(N, 2), torch.zeros(2, N)]
    for group in range(GROUPS):
        items = (keys == group).nonzero()[:, 0]
        y = (x[items] * TABLE[group]).tanh()
        out[0].index_add_(0, items, y)
        out[1] = out[1].index_put((items,), y, accumulate=True)
        out[2][items] = y
        out[3].index_copy_(1, items, y.t())
    return out


def several_groups_each(x: Tensor, keys: Tensor) -> Tensor:
    """Two choices for each token, with their weights."""
    out = torch.zeros(N, 2)
    weights = torch.stack((x[:, 0], x[:, 1] * 2), 1)
    chosen = F.one_hot(torch.stack((keys, (keys + 1) % GROUPS), 1), GROUPS).permute(2, 1, 0)
    for group in range(GROUPS):
        choice, token = torch.where(chosen[group])
        out.index_add_(0, token, x[token] * TABLE[group] * weights[token, choice, None])
    return out


def chosen_by_masks(x: Tensor, keys: Tensor) -> list[Tensor]:
    """What a mask reads, computed alike, written where the mask is."""
    out = [torch.ones(N, 2), torch.ones(N, 2), torch.zeros(N, 2), torch.ones(2, N), torch.zeros(N)]
    for group in range(GROUPS + 1):  # of the last one there is nothing
        mask = keys == group
        y = (x[mask] * (group + 0.5) + x[mask].sum(1)[:, None]).tanh()
        out[0][mask] = y
        out[1] = out[1].index_put((mask.nonzero()[:, 0],), y)
        out[2].index_add_(0, torch.arange(N)[mask], y)
        out[3][:, mask] = y.t()
        out[4][mask] = 0.5 + group
    return out


def chosen_elements(x: Tensor, keys: Tensor) -> list[Tensor]:
    """Masks of several dims, and places of which all get the same."""
    mask = torch.stack((keys > 0, keys > 1), 1)
    rows = mask.nonzero()[:, 0]
    one, two, three = x * 1.0, torch.zeros(1, N, 2), torch.zeros(N)
    one[mask] = x[mask].sigmoid()
    two[:, mask] = (x[mask] * 3.0)[None]
    three[rows] = 2.0
    return [one, two, three, x.index_put((mask,), torch.tensor([7.0]))]


def places_and_a_constant(x: Tensor, keys: Tensor) -> list[Tensor]:
    """A mask over a part of what is written to."""
    mask = keys > 0
    items = mask.nonzero()[:, 0]
    out = [torch.zeros(N + 2, 2), torch.zeros(N + 2), torch.zeros(2, N + 2), torch.ones(N + 2, 2)]
    wide = F.pad(x, (0, 0, 1, 1))
    out[0][items + 1] = wide[1 + items] * 2.0
    out[1][items - -2] = 3.0
    out[2].index_copy_(1, items.add(torch.tensor(1)), x[items].t())
    out[3][torch.arange(2, N + 2)[mask]] = x[mask].exp()
    return [*out, torch.zeros(N + 1, 2).index_add(0, items, x[items])]


@pytest.mark.parametrize(
    "fn",
    [
        places_and_a_constant,
        chosen_by_masks,
        chosen_elements,
        by_table,
        by_grouped_product,
        by_counts,
        added_back,
        written_back,
        with_heads,
        one_group_at_a_time,
        several_groups_each,
    ],
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


#: What is done with the places of a mask that tells which others there are.
TELLING_PLACES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "elsewhere": lambda y, items: torch.zeros(N, 2).index_add(0, items // 2, y),
    "shifted": lambda y, items: torch.zeros(N, 2).index_add(0, (items + 1) % N, y),
    "shifted back": lambda y, items: torch.zeros(N + 2, 2).index_put((items - 1,), y),
    "shifted by some": lambda y, items: torch.zeros(N + 9, 2).index_put((items + items[:1],), y),
    "shifted twice": lambda y, items: torch.zeros(N + 9, 2).index_put((torch.add(items, 1, alpha=2),), y),
    "counted down": lambda y, items: torch.zeros(N + 2, 2).index_put((N - items,), y),
    "reversed": lambda y, items: torch.zeros(N, 2).index_add(0, items.flip(0), y),
    "values reversed": lambda y, items: torch.zeros(N, 2).index_add(0, items, y.flip(0)),
    "weights of slots": lambda y, items: torch.zeros(N, 2).index_add(0, items, y * NUMBERS[: len(y), None]),
    "sums": lambda y, items: torch.zeros(N, 2).index_add(0, items, y.cumsum(0)),
    "in a longer tensor": lambda y, items: torch.zeros(N + 1, 2).index_add(0, items, y),
    "the mean": lambda y, items: torch.zeros(N, 2).index_add(0, items, y - y.mean(0)),
}


@pytest.mark.parametrize("name", TELLING_PLACES)
def test_what_tells_places_apart_depends_on_the_mask(name: str) -> None:
    def fn(x: Tensor, keys: Tensor) -> Tensor:
        items = (keys > 0).nonzero().squeeze(-1)
        return TELLING_PLACES[name](x[items] * 2.0, items)

    check(fn, rand(N, 2), KEYS_OF_ITEMS, layouts=False)


def changed(mask: Tensor) -> Tensor:
    return mask.logical_not_()


#: What is done with what a mask chose that tells which else it chose. ``y``: the rows that it chose.
TELLING_MASKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reversed": lambda y, mask: torch.zeros(N, 2).index_put((mask,), y.flip(0)),
    "sums": lambda y, mask: torch.zeros(N, 2).index_put((mask,), y.cumsum(0)),
    "weights of slots": lambda y, mask: torch.zeros(N, 2).index_put((mask,), y * NUMBERS[: len(y), None]),
    "the same for all": lambda y, mask: torch.zeros(N, 2).index_put((mask,), y.sum(0)),
    "a mask like it": lambda y, mask: torch.zeros(N, 2).index_put((mask.clone(),), y),
    "shifted": lambda y, mask: torch.zeros(N, 2).index_put((mask.roll(1),), y),
    "changed since": lambda y, mask: torch.zeros(N, 2).index_put((changed(changed(mask)),), y),
    "written to since": lambda y, mask: torch.zeros(N, 2).index_put(
        (mask.index_fill_(0, mask[:1].long(), True),), y[:1]
    ),
    "the last place": lambda y, mask: torch.zeros(N, 2) + NUMBERS[mask].amax(),
    "the first one": lambda y, mask: torch.zeros(N, 2) + y[0],
    "places in another order": lambda y, mask: torch.zeros(N, 2).index_put((NUMBERS.flip(0)[mask],), y),
    "places that meet": lambda y, mask: torch.zeros(N, 2).index_put((NUMBERS.div(2).long()[mask],), y),
    "on the other side": lambda y, mask: torch.where(mask[:, None], 0.0, y.sum()),
}


@pytest.mark.parametrize("name", TELLING_MASKS)
def test_what_tells_what_else_a_mask_chose_depends_on_it(name: str) -> None:
    def fn(x: Tensor, keys: Tensor) -> Tensor:
        mask = keys > 0
        return TELLING_MASKS[name](x[mask] * 2.0, mask)

    check(fn, rand(N, 2), KEYS_OF_ITEMS, layouts=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint32, torch.int32, torch.bool])
def test_tables_of_every_dtype(dtype: torch.dtype) -> None:
    table = torch.arange(N).to(dtype)
    check(
        lambda keys: torch.zeros(N).index_put((keys > 0,), table[keys > 0].float()),
        KEYS_OF_ITEMS,
        layouts=False,
    )


def test_masks_that_are_equal_by_chance_are_two() -> None:
    """In another run they differ, and what one reads is not where the other one writes."""

    def fn(x: Tensor, keys: Tensor, others: Tensor) -> Tensor:
        return torch.zeros(N, 2).index_put((others > 0,), x[keys > 0])

    keys = KEYS_OF_ITEMS.tensor
    got = reported(fn, [rand(N, 2), keys, keys.clone()], [None, NUMBERS, None])
    assert got.tolist() == [N - 1 if key else -1 for key in keys.tolist() for _ in range(2)]


@pytest.mark.parametrize("fn", [chosen_by_masks, chosen_elements, one_group_at_a_time])
def test_what_is_possible_is_followed_as_what_is_certain(fn: Callable[..., list[Tensor]]) -> None:
    """The plane of what is possible says what the support would say if all of that were certain."""
    keys, certain, more = KEYS_OF_ITEMS.tensor, NUMBERS, NUMBERS + N

    def supports(support: Tensor, possible: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        trace = tracer()
        trace.recorder.escaped = lambda *_: None  # type: ignore[method-assign]
        trace.ledger.grow(2 * N)
        given, x = keys.clone(), rand(N, 2)
        planes = [
            None if p is None else Cells((p * 2 + 1)[:, None].repeat(1, 2)) for p in (support, possible)
        ]
        trace.memory.write(given, Shadow(*planes))
        with Host(trace, Outside(trace)), trace:
            out = fn(x, given)
        shadows = [trace.memory.read(t) or Shadow() for t in out]
        both = [(s.support, s.possible or s.support) for s in shadows]
        return tuple(  # type: ignore[return-value]
            [
                (torch.tensor(-1) if c is None else c.data[..., 0] >> 1).expand(t.shape)
                for c, t in zip(plane, out, strict=True)
            ]
            for plane in zip(*both, strict=True)
        )

    (support, possible), (least, _), (most, _) = (
        supports(certain, more),
        supports(certain, None),
        supports(more, None),
    )
    assert all(map(torch.equal, support, least)) and all(map(torch.equal, possible, most))
    assert not all(map(torch.equal, support, possible))


#: Ends of groups that are not those of the keys; all rows are in some group.
GROUP_ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": lambda keys: torch.tensor([2, 3, 5], dtype=torch.int32),
    "shifted": lambda keys: ends(keys).roll(1).sort().values,
    "of other keys": lambda keys: ends(SECOND),
    "of changed keys": lambda keys: ends((keys + 1).clamp(max=2)),
    "of one key": lambda keys: ends(keys[:1].expand(N)),
    "of some keys": lambda keys: ends(keys[1:]) + 1,
}


@pytest.mark.parametrize("name", GROUP_ENDS)
def test_groups_that_are_not_the_keys_depend_on_the_order(name: str) -> None:
    def fn(x: Tensor, keys: Tensor) -> Tensor:
        sorted_keys, perm = keys.sort(stable=True)
        return grouped(x[perm], GROUP_ENDS[name](sorted_keys))[placed(perm)]

    check(fn, rand(N, 2), KEYS_OF_ITEMS, layouts=False)


def counted(keys: Tensor, **options: float) -> Tensor:
    return torch.histc(keys.float(), **options).cumsum(0).int()


@pytest.mark.parametrize(
    ("keys", "offs"),
    [
        ([2, 0, 1, 0, 2], lambda keys: counted(keys, bins=GROUPS, min=0, max=1)),
        ([2, 0, 1, 0, 2], lambda keys: counted(keys, bins=GROUPS, min=-1, max=2)),
        ([2, 0, 1, 0, 2], lambda keys: torch.histc(keys.float(), bins=GROUPS, min=0, max=2).int()),
        ([2, -1, 1, 0, -1], lambda keys: counted(keys, bins=GROUPS, min=0, max=2)),
    ],
    ids=["too few bins", "shifted bins", "not summed up", "a negative key"],
)
def test_counts_that_leave_keys_out_depend_on_all_of_them(
    keys: list[int], offs: Callable[[Tensor], Tensor]
) -> None:
    """What is in the rows of no group is not defined, so these are not run again."""

    def fn(x: Tensor, keys: Tensor) -> Tensor:
        sorted_keys, perm = keys.sort(stable=True)
        return grouped(x[perm], offs(sorted_keys))[placed(perm)]

    positions = [torch.arange(2 * N).view(N, 2), torch.arange(2 * N, 3 * N)]
    assert reported(fn, [rand(N, 2), torch.tensor(keys)], positions).eq(3 * N - 1).all()


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
    order = Order(Arrangement(4), ITEMS, 0, None)
    base = Geometry(0, (4, 6), (6, 1), 4)
    for dim, view in (
        (0, Geometry(3, (4, 3), (6, 1), 4)),
        (1, Geometry(0, (6, 4), (1, 6), 4)),
        (0, Geometry(0, (4, 2, 3), (6, 3, 1), 4)),
        (None, Geometry(6, (3, 6), (6, 1), 4)),
        (None, Geometry(5, (4, 2), (6, 1), 4)),
        (None, Geometry(0, (24,), (1,), 4)),
        (None, Geometry(0, (4, 2), (6, 6), 4)),
        (None, Geometry(0, (4, 6), (6, 1), 8)),
        (None, Geometry(6, (4, 6), (6, 1), 4)),
    ):
        assert seen_through(order, base, view) == (None if dim is None else order._replace(dim=dim))


def test_views_of_keys_and_places() -> None:
    keys = Order(Arrangement(4), KEYS, 0, None)
    base = Geometry(0, (4, 2), (2, 1), 8)
    half = Geometry(1, (4,), (2,), 8)
    assert seen_through(keys, Geometry(0, (4,), (1,), 8), Geometry(0, (4, 1, 3), (1, 1, 0), 8)) == keys
    assert seen_through(keys, base, half) == keys._replace(role=ITEMS)
    places = keys._replace(role=PLACES)
    assert seen_through(places, base, half) == places._replace(role=COLUMN, column=1)
    columns = Geometry(0, (4, 2), (1, 4), 8)  # as nonzero lays them out
    assert seen_through(places, columns, Geometry(4, (4,), (1,), 8)) == places._replace(role=COLUMN, column=1)
    assert seen_through(places, columns, Geometry(0, (4, 1), (1, 4), 8)) == places._replace(role=COLUMN)
