from __future__ import annotations

import pytest

from causaltrace.report.markdown import to_markdown
from causaltrace.report.model import Finding, Hop, Notice
from tests.report import samples


@pytest.mark.parametrize("make", [samples.clean, samples.violation, samples.unverified])
def test_is_short_and_has_table_orders_and_limits(make):
    text = to_markdown(make())
    lines = text.splitlines()
    assert len(lines) <= 40
    assert sum(line.startswith("| C") for line in lines) == 4
    assert any(line.startswith("stream order: **") for line in lines)
    assert any(line.startswith("Limits: ") for line in lines)


def test_violation_has_witness_and_chain():
    text = to_markdown(samples.violation())
    assert "| C1 strict causal dependence | FAIL | CT001 at 1 position" in text
    assert "| C2 full normalized distribution | NOT COVERED | not checked by this watch |" in text
    assert "Witness: label x_255 → score of 37 (218 positions ahead)." in text
    chain = text.split("```")[1].strip().splitlines()
    assert "samples.py:5 in evaluate  [input: slice]" in chain[0]
    assert "samples.py:10 in evaluate  [score: sum]" in chain[-1]
    assert "Also: CT002 at" in text


def test_unverified_lists_what_blocks():
    text = to_markdown(samples.unverified())
    assert "- Not proved: mylib::fused_norm has no rule at `" in text
    assert "Remedy: register one" in text


def test_the_longest_report_still_fits():
    report = samples.violation()
    report.error = "RuntimeError: stopped\nhere"
    report.opaque = [
        Notice("CT090", f"op | {i}\nhas no rule", "add one", samples.SCORE, 9, 1, True) for i in range(50)
    ]
    path = tuple(Hop(samples.site("forward", f"op{i}", i)) for i in range(100))
    report.violations = [
        Finding("CT001", t, t + 1, samples.BOTH, samples.site("score", "sum", t), path) for t in range(100)
    ]
    lines = to_markdown(report).splitlines()
    assert len(lines) <= 40
    assert "and 46 more" in lines[-4]
    assert lines[-1].startswith("The watched block raised `RuntimeError: stopped here`")
