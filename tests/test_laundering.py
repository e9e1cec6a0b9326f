"""Every way to hide a label is found or noticed, and its legal twin is clean."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import tests.laundering.ways  # noqa: F401
from tests.laundering import WAYS, Piece, stream, verdict
from tests.laundering.__main__ import line
from tests.laundering.oracle import leaks
from tests.laundering.today import DOUBTED, MISSED
from tests.laundering.ways import before

pytestmark = pytest.mark.filterwarnings("ignore")

PAGE = (Path(__file__).parent.parent / "docs" / "laundering.md").read_text()
HEADS = ("| way | leak | label | legal twin |", "| --- | --- | --- | --- |")
ROWS = [row for row in PAGE.splitlines() if row.startswith("| ") and row not in HEADS]
AGAIN = "write docs/laundering.md again: python -m tests.laundering > docs/laundering.md"


@pytest.mark.parametrize("name", WAYS)
def test_the_flips_agree(name: str) -> None:
    assert next(leaks(WAYS[name].leaking), None) is not None
    assert next(leaks(WAYS[name].legal), None) is None


@pytest.mark.parametrize("name", WAYS)
def test_a_leak_is_never_clean_and_its_twin_is(name: str) -> None:
    """What is known not to hold fails as soon as it does."""
    way = WAYS[name]
    leak, legal = verdict(way.leaking, way.says), verdict(way.legal, way.says)
    assert (leak.status == "clean") == (name in MISSED), leak
    assert (legal.status != "clean") == (name in DOUBTED), legal
    assert line(way, leak.status, legal.status) in ROWS, AGAIN


def test_what_was_computed_before_a_watch_is_a_constant_to_it() -> None:
    """Why ``before.derived`` cannot be found. The same numbers, read from a file, are no leak: no label moves
    them. Both programs do the same inside the watch, so one report is the other, and it has to be clean."""
    tokens = stream()
    saved = before.derived(tokens)

    def from_file(tokens: Tensor) -> Iterator[Piece]:
        return before.tilted(tokens, saved.copy(), 0)

    assert next(leaks(from_file), None) is None
    legal, leaking = verdict(from_file), verdict(WAYS["before.derived"].leaking)
    assert legal.status == leaking.status == "clean"
    assert replace(legal, run=leaking.run) == leaking


def test_a_list_cannot_tell_of_all_who_read_it() -> None:
    """Why ``before.python_list`` is named whether it is read or not: C code takes elements of a list past the
    methods of its class."""
    told: list[str] = []

    class Telling(list[int]):
        def __getattribute__(self, name: str) -> Any:
            told.append(name)
            return super().__getattribute__(name)

        def __getitem__(self, key: Any) -> Any:
            told.append("__getitem__")
            return super().__getitem__(key)

        def __iter__(self) -> Iterator[int]:
            told.append("__iter__")
            return super().__iter__()

    labels = Telling([3, 1, 4])
    assert list.__getitem__(labels, 2) == 4 and heapq.heappushpop(labels, 5) == 3 and not told
    assert labels[0] and told == ["__getitem__"]


def test_what_does_not_hold_is_there() -> None:
    assert {*MISSED, *DOUBTED} <= set(WAYS)


def test_the_page_has_all_ways_and_no_other() -> None:
    assert len(ROWS) == len(WAYS), AGAIN
    assert f"{len(WAYS)} small programs" in PAGE, AGAIN
