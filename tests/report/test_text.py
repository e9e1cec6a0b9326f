from __future__ import annotations

import io

import pytest
from rich.console import Console

from causaltrace.report.model import Finding, Hop, Moment, Notice, Report, Run
from causaltrace.report.text import path_text, render, to_text
from tests.report import samples


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("make", [samples.clean, samples.violation, samples.unverified])
def test_fits_the_width(make, width):
    text = to_text(make(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_clean_report_says_how_much_was_judged():
    text = to_text(samples.clean())
    assert text.startswith("causaltrace: CLEAN\n2,048 positions scored of 2,049 labels;")
    assert "This run" not in text
    assert "about this run" in text


def test_conditions_and_orders_are_listed_with_reasons():
    text = to_text(samples.violation(), 120)
    assert "C1  strict causal dependence      fail" in text
    assert "CT003 at 240 positions" in text
    assert "C2  full normalized distribution  not covered  not checked by this watch" in text
    assert "stream order  violation" in text
    assert "scored order  violation" in text


def test_worst_group_comes_first_with_witness_and_path():
    text = to_text(samples.violation(), 120)
    assert "240 scored positions: 1-240; labels: 255; fails in both orders" in text
    assert "witness: label x_255 → score of 37 (218 positions ahead)" in text
    assert text.index("CT003  label reaches") < text.index("CT002  own label")
    path = text[text.index("path, the label first") :]
    order = [
        path.index(part) for part in ("input: slice", "line 6, in fit", "update: addcdiv_", "score: sum")
    ]
    assert order == sorted(order)
    assert "forward: log_softmax → nll_loss  in head  [36]" in path, "hops of one line are one step"


def test_counts_per_order_when_they_differ():
    text = to_text(samples.violation(1), 120)
    assert "5 violate stream order and 4 violate scored order" in text


def test_own_label_and_double_score_have_their_own_words():
    text = to_text(samples.violation())
    assert "label x_7 → score of 7 (its own label)" in text
    assert "position 50 has two scores" in text


def test_obstacles_come_with_their_remedy():
    text = to_text(samples.unverified(), 120)
    assert "1 thing stands in the way of a proof" in text
    assert "mylib::fused_norm has no rule (12 times), latest label x_3 [blocks the proof]" in text
    assert "remedy: register one with causaltrace.register_rule" in text
    assert "a labelled value was read by .item(), latest label x_2" in text


def test_partial_report_names_the_error():
    report = samples.clean()
    report.error = "ValueError: no more shards"
    assert "Partial: the watched block raised ValueError: no more shards" in to_text(report)


def test_nothing_scored_is_said_per_condition():
    report = Report("unverified", {"stream": "unverified", "scored": "unverified"}, {})
    assert to_text(report).count("nothing was scored") == 4


def test_a_note_can_give_the_reason_of_a_condition():
    report = samples.clean()
    report.notes.append(Notice("C2", "the head was not seen whole"))
    text = to_text(report)
    assert "not covered  the head was not seen whole" in text
    assert "Notes" not in text


def test_long_paths_are_abridged_and_markup_is_not_interpreted():
    path = tuple(Hop(samples.site("forward", f"op{i}", i), "[bold]") for i in range(1, 60))
    report = samples.violation(0)
    report.violations = [Finding("CT001", 1, 2, ("stream",), samples.SCORE, path)]
    text = to_text(report)
    assert "... 49 steps left out" in text
    assert "[bold]" in text
    assert "forward: op1 " in text
    assert "forward: op59 " in text


def test_whole_path_of_one_finding():
    path = tuple(Hop(samples.site("forward", f"op{i}", i)) for i in range(1, 60))
    text = path_text(Finding("CT001", 1, 2, ("stream",), samples.SCORE, path))
    assert text.startswith("CT001: label x_2 → score of 1 (1 position ahead)\npath, the label first")
    assert [f"op{i}" in text for i in range(1, 60)] == [True] * 59
    assert "no path was recorded" in path_text(Finding("CT001", 1, 2, ("stream",), samples.SCORE))


def test_other_streams_are_named():
    report = samples.violation(0)
    report.violations = [
        Finding("CT001", 1, 2, ("stream",), samples.SCORE, stream="val", source_stream="train")
    ]
    assert "label train:x_2 → score of val:1" in to_text(report)


def test_the_numbers_that_are_judged_are_named():
    report = samples.violation()
    report.timeline = [
        Moment("score", samples.site("score", "sum", line), count=n) for line, n in ((7, 3), (9, 1))
    ]
    assert "samples.py:7 and at 1 other line" in " ".join(to_text(report).split())


def test_many_findings_are_one_group():
    text = to_text(samples.violation(200_000))
    assert "200,000 scored positions: 1-200000" in text
    assert len(text.splitlines()) < 60


def test_many_groups_are_cut():
    report = samples.violation(0)
    report.violations = [
        Finding("CT001", t, t + 2, ("stream",), samples.site("score", "sum", t)) for t in range(1, 21)
    ]
    assert "and 15 findings at 15 other sites" in to_text(report)


def test_report_prints_itself_through_rich_and_str():
    report = samples.violation()
    buffer = io.StringIO()
    Console(file=buffer, width=100).print(report)
    shown = io.StringIO()
    render(report, Console(file=shown, width=100))
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    assert lines == [line.rstrip() for line in shown.getvalue().splitlines()]
    assert str(report) == report.to_text() == to_text(report)


def test_a_run_of_the_command_line_is_named():
    report = samples.clean()
    assert "revision" not in to_text(report)
    report.run = Run("eval.py --x", "0123456789ab+", "2026-01-02T03:04:05Z", (("torch", "2.13.0"),))
    assert to_text(report).splitlines()[2] == (
        "eval.py --x, revision 0123456789ab+, torch 2.13.0, 2026-01-02T03:04:05Z"
    )
