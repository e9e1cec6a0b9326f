from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from causaltrace.report.markdown import reports_to_markdown, to_markdown
from causaltrace.report.model import Finding, Hop, Notice, Run
from tests.report import mutated, samples


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
    report.run = Run("eval.py", "0123456789ab+", "2026-01-02T03:04:05Z", (("torch", "2.13.0"),))
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


def test_says_what_was_run():
    report = samples.clean()
    report.run = Run("eval.py --x", "0123456789ab+", "2026-01-02T03:04:05Z", (("torch", "2.13.0"),))
    assert to_markdown(report).splitlines()[2] == (
        "revision `0123456789ab+`, `eval.py --x`, torch 2.13.0, 2026-01-02T03:04:05Z"
    )


def test_slot_fits_a_comment(example_reports):
    text = to_markdown(example_reports["context-only SLOT, batch 5"])
    lines = text.splitlines()
    assert len(lines) <= 40
    assert "| C3 score before update | FAIL | CT003 at " in text
    assert "Witness: label x_" in text
    assert any(line.endswith("optimizer.step()") for line in lines)


def test_several_watches_are_told_apart():
    text = reports_to_markdown([samples.clean(), samples.violation()])
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "### Watch 1 of 2",
        "### Watch 2 of 2",
    ]


@pytest.mark.parametrize("text", mutated.TEXTS, ids=ascii)
def test_hostile_text_changes_nothing_of_the_page(text):
    page = MarkdownIt("commonmark", {"html": True}).enable("table")
    source = to_markdown(mutated.everywhere(text))
    assert len(source.splitlines()) <= 40
    tokens = page.parse(source)
    kinds = [t.type for t in tokens]
    assert kinds.count("fence") == 1 and kinds.count("table_open") == 1 and kinds.count("td_open") == 12
    inline = {c.type for t in tokens for c in t.children or ()}
    assert not (set(kinds) | inline) & {"html_block", "html_inline", "link_open", "image", "heading_open"}
    outside = "".join(c.content for t in tokens for c in t.children or () if c.type == "text")
    assert "@all" not in outside
