"""Every way to hide a label is found or noticed, and its legal twin is clean."""

from __future__ import annotations

from pathlib import Path

import pytest

import tests.laundering.ways  # noqa: F401
from tests.laundering import WAYS, verdict
from tests.laundering.__main__ import line
from tests.laundering.oracle import leaks
from tests.laundering.today import DOUBTED, MISSED

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


def test_what_does_not_hold_is_there() -> None:
    assert {*MISSED, *DOUBTED} <= set(WAYS)


def test_the_page_has_all_ways_and_no_other() -> None:
    assert len(ROWS) == len(WAYS), AGAIN
    assert f"{len(WAYS)} small programs" in PAGE, AGAIN
