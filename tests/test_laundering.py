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

PAGE = Path(__file__).parent.parent / "docs" / "laundering.md"


def holding(known: dict[str, str]) -> list[object]:
    """All ways; those that are known not to hold are marked."""
    return [
        pytest.param(
            name, marks=[pytest.mark.xfail(reason=known[name], strict=True)] if name in known else []
        )
        for name in WAYS
    ]


@pytest.mark.parametrize("name", WAYS)
def test_the_flips_agree(name: str) -> None:
    assert next(leaks(WAYS[name].leaking), None) is not None
    assert next(leaks(WAYS[name].legal), None) is None


@pytest.mark.parametrize("name", holding(MISSED))
def test_a_leak_is_never_clean(name: str) -> None:
    way = WAYS[name]
    assert verdict(way.leaking, way.says).status != "clean"


@pytest.mark.parametrize("name", holding(DOUBTED))
def test_the_legal_twin_is_clean(name: str) -> None:
    way = WAYS[name]
    report = verdict(way.legal, way.says)
    assert report.status == "clean", report


def test_what_does_not_hold_is_there() -> None:
    assert {*MISSED, *DOUBTED} <= set(WAYS)


def test_the_page_says_what_is_found() -> None:
    rows = [row for row in PAGE.read_text().splitlines() if row.startswith("| ")]
    found = [line(way) for way in WAYS.values()]
    assert [
        row for row in rows if row not in ("| way | leak | label | legal twin |", "| --- | --- | --- | --- |")
    ] == (found), "write docs/laundering.md again: python -m tests.laundering > docs/laundering.md"
