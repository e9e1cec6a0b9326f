from __future__ import annotations

from causaltrace.report.model import Moment
from causaltrace.report.timeline import Step, abridged, steps, summary
from tests.report import samples
from tests.report.samples import SCORE


def test_state_and_front_after_each_moment():
    moments = [
        Moment("score", SCORE, first=1, last=8),
        Moment("update", SCORE, label=8),
        Moment("update", SCORE, label=16),
        Moment("score", SCORE, first=9, last=16, findings=3),
        Moment("escape", SCORE, 2, label=16),
        Moment("score", SCORE, first=3, last=4),
        Moment("update", SCORE, label=-1),
    ]
    got = [(s.state, s.front, s.findings, s.escapes) for s in steps(moments)]
    assert got == [
        (-1, 8, 0, 0),
        (8, 8, 0, 0),
        (16, 8, 0, 0),
        (16, 16, 3, 0),
        (16, 16, 0, 2),
        (16, 16, 0, 0),
        (-1, 16, 0, 0),
    ]
    assert [s.ahead > 0 for s in steps(moments)] == [False, False, True, False, False, False, False]


def test_a_single_bad_step_is_seen_among_many():
    all_steps = [Step(i, i, 0, 0) for i in range(1000)]
    all_steps[501] = Step(600, 501, 2, 0)
    shown = abridged(all_steps, 10)
    assert len(shown) == 10
    assert [s.ahead for s in shown] == [0] * 5 + [99] + [0] * 4
    assert sum(s.moments for s in shown) == 1000 and sum(s.findings for s in shown) == 2


def test_in_words():
    assert summary(samples.seen()) == "1 of 9 updates used labels up to 129 past the last scored position."
    report = samples.clean()
    assert summary(report) == "No state was updated from labels."
    report.timeline = [Moment("score", SCORE, last=4), Moment("update", SCORE, label=4)]
    assert summary(report) == "No update used a label past the last scored position."
