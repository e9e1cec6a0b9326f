from __future__ import annotations

import re
from urllib.parse import unquote

import pytest

from causaltrace.report.github import to_github
from causaltrace.report.model import Finding, Hop, Notice
from causaltrace.site import Site
from tests.report import mutated, samples
from tests.report.samples import BOTH, site

COMMAND = re.compile(r"::(error|warning) ((?:[a-z]+=[^,:]*,?)+)::(.*)")


def commands(*reports) -> list[tuple[str, dict[str, str], str]]:
    """What the runner makes of the lines: level, properties, message."""
    found = []
    for line in to_github(reports).splitlines():
        level, properties, text = COMMAND.fullmatch(line).groups()
        pairs = dict(p.split("=", 1) for p in properties.split(","))
        found.append((level, {k: unquote(v) for k, v in pairs.items()}, unquote(text)))
    return found


def test_errors_come_worst_first_with_their_line():
    found = commands(samples.clean(), samples.violation())
    assert [p["title"].split()[1] for _, p, _ in found] == ["CT003", "CT002", "CT006", "CT001"]
    level, properties, text = found[0]
    assert level == "error"
    assert (properties["file"], properties["line"]) == ("tests/report/samples.py", "10")
    assert "witness: label x_255 → score of 37 (218 positions ahead)" in text.splitlines()
    assert "tests/report/samples.py:8 HERE = __file__" in text.splitlines()


def test_what_blocks_is_a_warning():
    ((level, properties, text),) = commands(samples.unverified())
    assert level == "warning" and properties["line"] == "6"
    assert text == "mylib::fused_norm has no rule\nRemedy: register one with causaltrace.register_rule"


def test_ten_of_each_are_shown_and_the_rest_counted():
    report = samples.violation(0)
    report.violations = [Finding("CT001", 1, 2, BOTH, site("score", "sum", i)) for i in range(1, 31)]
    report.opaque = [Notice("CT090", f"op{i} has no rule", blocking=True) for i in range(25)]
    found = commands(report)
    assert [level for level, *_ in found] == ["error"] * 10 + ["warning"] * 10
    assert found[9][2].endswith("and 20 more places: see the report")
    assert found[19][2].endswith("and 15 more places: see the report")
    assert "file" not in found[19][1]


@pytest.mark.parametrize("text", mutated.TEXTS, ids=ascii)
def test_hostile_text_is_no_command(text):
    report = mutated.everywhere(text)
    assert len(to_github([report]).splitlines()) == len(commands(report)) > 0


def test_a_file_name_cannot_end_its_property():
    report = samples.violation(0)
    hop = Hop(Site("score", "sum", "a,line=1::b%.py", 3))
    report.violations = [Finding("CT001", 1, 2, BOTH, hop.site, (hop,))]
    ((_, properties, _),) = commands(report)
    assert (properties["file"], properties["line"]) == ("a,line=1::b%.py", "3")


def test_a_clean_report_says_nothing():
    assert to_github([samples.clean()]) == ""
