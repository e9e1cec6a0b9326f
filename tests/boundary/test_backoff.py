"""Caches that back off: rows of the positions that were seen before are written under a mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.report.model import Report

CLASSES, LENGTH, CHUNK = 8, 64, 16
Array = np.ndarray
#: ``fill(rows, counts, totals, hit)``: rows of a distribution where the context is known.
FORMS: dict[str, Callable[[Array, Array, Array, Array], None]] = {}


def form(fill: Callable[[Array, Array, Array, Array], None]) -> Callable[[Array, Array, Array, Array], None]:
    FORMS[fill.__name__] = fill
    return fill


@form
def mask(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    rows[hit] = counts[hit] / totals[hit][:, None]


@form
def places(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    at = np.nonzero(hit)[0]
    rows[at] = counts[at] / totals[at, None]


@form
def flat_places(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    at = np.flatnonzero(hit)
    if len(at):
        rows[at] = counts[at] / totals[at][:, None]


@form
def numbered(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    at = np.arange(len(rows))[hit]
    rows[at] = counts[at] / totals[at][:, None]


@form
def any_of_them(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    if hit.any():
        rows[hit] = counts[hit] / totals[hit][:, None]


@form
def two_levels(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    done = np.zeros(len(rows), bool)
    for level in (totals >= 4, hit):
        new = level & ~done
        rows[new] = counts[new] / totals[new][:, None]
        done[new] = True


@form
def marked(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    best = np.full(len(rows), -1.0)
    best[hit] = totals[hit]
    known = best >= 0
    rows[known] = counts[known] / best[known][:, None]


@form
def by_row_sums(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    found = counts[hit].astype(np.float64)
    found /= found.sum(axis=-1, keepdims=True)
    rows[hit] = found


@form
def interpolated(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    trust = totals[hit] / (totals[hit] + 5.0)
    rows[hit] = (1 - trust)[:, None] * rows[hit] + trust[:, None] * counts[hit] / totals[hit, None]


@form
def sharpened(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    powers = np.power(counts[hit] + 0.1, 0.9)
    rows[hit] = powers / powers.sum(1)[:, None]


@form
def places_of_a_part(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    at = np.nonzero(hit[2:])[0]
    rows[2 + at] = counts[2:][at] / totals[at + 2, None]


@form
def numbered_from_two(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    at = np.arange(2, len(rows))[hit[2:]]
    rows[at] = counts[at] / totals[at][:, None]


@form
def marked_in_a_part(rows: Array, counts: Array, totals: Array, hit: Array) -> None:
    known = np.zeros(len(rows), bool)
    known[np.flatnonzero(hit[2:]) + 2] = True
    rows[known] = counts[known] / totals[known][:, None]


def scored(predict: Callable[[Array, Array, Array], Array], first: bool) -> Report:
    """``predict(ids, table, at)``: rows from what was counted. ``first``: a chunk is counted before it
    is scored."""
    tokens = torch.randint(0, CLASSES, (LENGTH,), generator=torch.Generator().manual_seed(0))
    with causaltrace.watch(tokens) as trace:
        ids, table, nats = tokens.numpy(), np.zeros((CLASSES, CLASSES)), 0.0
        for start in range(1, LENGTH, CHUNK):
            at = np.arange(start, min(start + CHUNK, LENGTH))
            if first:
                np.add.at(table, (ids[at - 1], ids[at]), 1)
            p = predict(ids, table, at)
            nats -= float(np.log(p[np.arange(len(at)), ids[at]]).sum())
            if not first:
                np.add.at(table, (ids[at - 1], ids[at]), 1)
    return trace.report


def judged(fill: Callable[[Array, Array, Array, Array], None], first: bool) -> Report:
    def predict(ids: Array, table: Array, at: Array) -> Array:
        counts = table[ids[at - 1]]
        totals, rows = counts.sum(1), np.full((len(at), CLASSES), 1 / CLASSES)
        fill(rows, counts, totals, totals >= 2)
        return 0.5 * rows + 0.5 / CLASSES

    return scored(predict, first)


#: Those that tell Python how many rows there are, by a branch.
TELLING = {"flat_places", "any_of_them"}


@pytest.mark.parametrize("name", FORMS)
def test_back_off_by_a_mask_is_clean_unless_python_sees_how_many(name: str) -> None:
    legal, leak = judged(FORMS[name], False), judged(FORMS[name], True)
    assert not legal.violations and legal.orders["stream"] == "clean", legal
    assert legal.orders["scored"] == ("unverified" if name in TELLING else "clean"), legal
    assert leak.status == "violation"


def test_labels_that_a_mask_chose_may_be_looked_up() -> None:
    def predict(ids: Array, table: Array, at: Array) -> Array:
        seen = (table.sum(1) > 0)[ids[at - 1]]
        known = ids[at - 1][seen]
        rows = np.full((len(at), CLASSES), 1 / CLASSES)
        rows[seen] = (table[known] + 0.1) / (table.sum(1)[known] + 0.1 * CLASSES)[:, None]
        return rows

    assert scored(predict, False).status == "clean"
    assert scored(predict, True).status == "violation"


Fill = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def put(rows: Tensor, counts: Tensor, totals: Tensor, hit: Tensor) -> Tensor:
    rows[hit] = counts[hit] / totals[hit][:, None]
    return rows


def named(rows: Tensor, counts: Tensor, totals: Tensor, hit: Tensor) -> Tensor:
    found, total = counts[hit], totals[hit].clamp(min=1)
    found = found / total.unsqueeze(-1)
    rows[hit] = found
    return rows


def mixed(rows: Tensor, counts: Tensor, totals: Tensor, hit: Tensor) -> Tensor:
    trust = totals[hit] / (totals[hit] + 5)
    own = counts[hit].double() / counts[hit].double().sum(-1, keepdim=True)
    rows[hit] = (1 - trust)[:, None] * rows[hit] + trust[:, None] * own.float()
    return rows


def out_of_place(rows: Tensor, counts: Tensor, totals: Tensor, hit: Tensor) -> Tensor:
    return rows.index_put((hit,), torch.softmax(counts[hit].log1p(), -1))


def selected(rows: Tensor, counts: Tensor, totals: Tensor, hit: Tensor) -> Tensor:
    whole = hit[:, None].expand_as(rows).clone()
    rows[whole] = torch.masked_select(counts / totals.clamp(min=1)[:, None], whole)
    return rows


def scattered(rows: Tensor, counts: Tensor, totals: Tensor, hit: Tensor) -> Tensor:
    whole = hit[:, None].expand_as(rows)
    return rows.masked_scatter(whole, (counts / totals.clamp(min=1)[:, None])[whole])


@pytest.mark.parametrize("fill", [put, named, mixed, out_of_place, selected, scattered])
def test_so_it_is_in_torch(fill: Fill) -> None:
    def run(first: bool) -> Report:
        tokens = torch.randint(0, CLASSES, (LENGTH,), generator=torch.Generator().manual_seed(0))
        with causaltrace.watch(tokens) as trace:
            table, nats = torch.zeros(CLASSES, CLASSES), torch.zeros(())
            for start in range(1, LENGTH, CHUNK):
                y = tokens[start : start + CHUNK]
                x = tokens[start - 1 : start - 1 + len(y)]
                if first:
                    table.index_put_((x, y), torch.ones(()), accumulate=True)
                counts = table[x]
                totals, rows = counts.sum(-1), torch.full((len(x), CLASSES), 1 / CLASSES)
                rows = fill(rows, counts, totals, totals >= 2)
                nats += F.nll_loss((0.5 * rows + 0.5 / CLASSES).log(), y, reduction="sum")
                if not first:
                    table.index_put_((x, y), torch.ones(()), accumulate=True)
        return trace.report

    assert run(False).status == "clean"
    assert run(True).status == "violation"
