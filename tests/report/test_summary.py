from __future__ import annotations

import pytest

from causaltrace.report import summary
from causaltrace.report.model import Finding, Hop
from tests.report import samples


@pytest.mark.parametrize(
    ("positions", "text"),
    [([], ""), ([3], "3"), ([3, 1, 2, 7], "1-3, 7"), ([0, 2, 4, 6, 8, 9], "0, 2, 4, 6, ... up to 9")],
)
def test_ranges(positions, text):
    assert summary.ranges(positions) == text


def test_witness_prefers_a_path_then_the_longest_lead():
    near = Finding("CT001", 1, 2, ("stream",), samples.SCORE)
    far = Finding("CT001", 1, 9, ("stream",), samples.SCORE)
    told = Finding("CT001", 3, 4, ("stream",), samples.SCORE, samples.PATH)
    assert summary.group([near, far])[0].witness is far
    assert summary.group([near, far, told])[0].witness is told


def test_groups_keep_orders_apart_and_put_both_orders_first():
    one = [Finding("CT001", t, t + 1, ("stream",), samples.SCORE) for t in range(5)]
    both = [Finding("CT001", 9, 10, samples.BOTH, samples.SCORE)]
    assert [g.count for g in summary.group(one + both)] == [1, 5]


def test_fold_and_abridge():
    steps = summary.fold(samples.PATH)
    assert [s.site.line for s in steps] == [5, 6, 7, 8, 9, 10]
    assert steps[1].ops == ("log_softmax", "nll_loss")
    head, left_out, tail = summary.abridge(steps, 3)
    assert (len(head), left_out, len(tail)) == (2, 3, 1)
    assert tail[0] is steps[-1]
    assert summary.fold([]) == []


def test_repeated_ops_of_a_line_are_named_once():
    hops = [
        Hop(samples.site("forward", op, 5))
        for op in ("aten.add.Tensor", "aten.add.Tensor", "aten.roll.default")
    ]
    assert summary.fold(hops)[0].ops == ("add.Tensor", "roll")


def test_files_are_shown_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert summary.short_file(str(tmp_path / "a" / "eval.py")) == "a/eval.py"
    assert summary.short_file("<string>") == "<string>"
