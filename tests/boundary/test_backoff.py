"""Caches that back off: rows of the positions that were seen before are written under a mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

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


def judged(fill: Callable[[Array, Array, Array, Array], None], first: bool) -> Report:
    """``first``: the chunk is counted before it is scored."""
    tokens = torch.randint(0, CLASSES, (LENGTH,), generator=torch.Generator().manual_seed(0))
    with causaltrace.watch(tokens) as trace:
        ids, table, nats = tokens.numpy(), np.zeros((CLASSES, CLASSES)), 0.0
        for start in range(1, LENGTH, CHUNK):
            at = np.arange(start, min(start + CHUNK, LENGTH))
            if first:
                np.add.at(table, (ids[at - 1], ids[at]), 1)
            counts = table[ids[at - 1]]
            totals, rows = counts.sum(1), np.full((len(at), CLASSES), 1 / CLASSES)
            fill(rows, counts, totals, totals >= 2)
            p = 0.5 * rows + 0.5 / CLASSES
            nats -= float(np.log(p[np.arange(len(at)), ids[at]]).sum())
            if not first:
                np.add.at(table, (ids[at - 1], ids[at]), 1)
    return trace.report


@pytest.mark.parametrize("name", FORMS)
def test_back_off_by_a_mask_is_no_violation(name: str) -> None:
    """How many rows there are goes to Python, which is in doubt where rows are numbered afterwards."""
    legal, leak = judged(FORMS[name], False), judged(FORMS[name], True)
    assert not legal.violations and legal.orders["stream"] == "clean", legal
    assert leak.status == "violation"
