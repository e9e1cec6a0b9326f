from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from causaltrace.report.junit import to_junit
from causaltrace.report.model import Run
from tests.report import mutated, samples

COUNTS = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}


def suites(*reports) -> list[ET.Element]:
    root = ET.fromstring(to_junit(reports))
    for element in (root, *root):
        for count, tag in COUNTS.items():
            assert int(element.get(count)) == len(list(element.iter(tag)))
    return list(root)


def outcomes(suite: ET.Element) -> dict[str, str]:
    """What each case came to, by the first word of its name."""
    return {c.get("name").split()[0]: c[0].tag if len(c) else "passed" for c in suite.iter("testcase")}


def test_a_suite_for_each_watch_and_a_case_for_each_condition_and_order():
    clean, violation, unverified = suites(samples.clean(), samples.violation(), samples.unverified())
    cases = ["C1", "C2", "C3", "C4", "stream", "scored"]
    assert list(outcomes(clean)) == list(outcomes(violation)) == list(outcomes(unverified)) == cases
    assert list(outcomes(clean).values()) == ["passed", "skipped", "passed", "passed", "passed", "passed"]
    assert list(outcomes(violation).values()) == ["failure", "skipped", *["failure"] * 4]
    assert list(outcomes(unverified).values()) == [*["skipped"] * 3, "passed", "error", "error"]


def test_a_failure_shows_the_path():
    (suite,) = suites(samples.violation())
    first = next(suite.iter("failure"))
    assert first.get("type") == "CT003"
    assert first.get("message") == "CT001 at 1 position, CT002 at 2 positions, CT003 at 240 positions"
    assert 'File "tests/report/samples.py", line 8, in fit' in first.text


def test_an_error_says_what_blocks():
    (suite,) = suites(samples.unverified())
    error = next(suite.iter("error"))
    assert "mylib::fused_norm has no rule" in error.text and "register one" in error.text


def test_the_run_is_named():
    report = samples.clean()
    report.run = Run("eval.py", "abc+", "2026-01-02T03:04:05Z", (("torch", "2.13"),))
    (suite,) = suites(report)
    assert suite.get("timestamp") == "2026-01-02T03:04:05"
    assert {p.get("name"): p.get("value") for p in suite.iter("property")} == {
        "command": "eval.py",
        "revision": "abc+",
        "torch": "2.13",
    }


@pytest.mark.parametrize("text", mutated.TEXTS, ids=ascii)
def test_hostile_text_is_text(text):
    (suite,) = suites(mutated.everywhere(text))
    tags = {element.tag for element in suite.iter()}
    assert tags <= {"testsuite", "properties", "property", "testcase", "failure", "skipped", "error"}
