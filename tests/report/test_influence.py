from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causaltrace.report.influence import (
    AHEAD,
    ALL,
    BAD,
    BEFORE,
    FINDINGS,
    LATEST,
    Band,
    bands,
    influence,
    score_positions,
)
from causaltrace.report.model import Finding, Report
from tests.report import samples

SIZE = 24
runs = st.lists(st.integers(0, SIZE), max_size=6, unique=True).map(sorted).map(lambda v: v[: len(v) // 2 * 2])
reaches = st.dictionaries(st.integers(0, SIZE - 1), runs, max_size=12)


def report(reach=None, lags=(), positions=(), orders=samples.BOTH, findings=(), streams=()):
    judged, known = dict.fromkeys(orders, "clean"), {"lags": lags, "reach": reach, "streams": list(streams)}
    return Report("clean", judged, {}, list(findings), positions, labels=SIZE, **known)


def pairs(found):
    """All (score, label, kind) that bands stand for."""
    out = []
    for score, scores, first, stop, left, right, kind in found:
        for i in range(scores):
            out += [(score + i, label, kind) for label in range(first + left * i, stop + right * i)]
    assert len(out) == len(set(out))
    return set(out)


@given(reaches)
def test_bands_are_exactly_the_pairs(reach):
    rows = list(reach.values())
    exact = report(rows, [None] * len(rows), list(reach))
    found = influence(exact, 10**6)
    expected = {
        (score, label, AHEAD if label >= score else BEFORE)
        for score, ends in reach.items()
        for first, stop in zip(ends[::2], ends[1::2], strict=True)
        for label in range(first, stop)
    }
    assert pairs(found.bands) == expected
    assert found.known == (ALL if reach else FINDINGS) and found.unit == 1


@given(reaches, st.integers(1, 8))
def test_bands_that_are_put_together_cover_the_pairs(reach, limit):
    rows = list(reach.values())
    exact = report(rows, [None] * len(rows), list(reach))
    fine, found = influence(exact, 10**6), influence(exact, limit)
    u = found.unit
    assert pairs(found.bands) == {(score // u, label // u, kind) for score, label, kind in pairs(fine.bands)}


def test_a_causal_eval_of_any_length_is_one_band():
    found = influence(report(lags=[1] * 60_000, positions=range(1, 60_001)), 10)
    assert found.bands == [Band(1, 60_000, 0, 1, 1, 1, BEFORE)]
    triangle = [[0, t] for t in range(1, SIZE)]
    found = influence(report(triangle, [1] * len(triangle), range(1, SIZE)), 10)
    assert found.bands == [Band(1, SIZE - 1, 0, 1, 0, 1, BEFORE)]


def test_one_late_label_of_many_scores_is_one_band():
    found = influence(samples.seen(), 100)
    assert Band(1, 128, 1, 129, 1, 0, BAD) in found.bands
    latest = samples.seen()
    latest.reach = None
    found = influence(latest, 100)
    assert found.known == LATEST
    assert Band(1, 128, 128, 129, 0, 0, BAD) in found.bands


def test_what_may_have_reached_a_score_is_red_only_up_to_the_label_of_its_finding():
    bad = Finding("CT001", 5, 7, samples.BOTH, samples.SCORE)
    found = influence(report([[3, 9], [3, 9]], [-2, 1], [5, 6], findings=[bad]), 10)
    assert {p for p in pairs(found.bands) if p[1] >= p[0]} == {
        *((5, label, BAD) for label in (5, 6, 7)),
        (5, 8, AHEAD),
        *((6, label, AHEAD) for label in (6, 7, 8)),
    }


def test_later_labels_are_no_findings_where_only_scored_order_is_judged():
    bad = Finding("CT003", 5, 9, ("scored",), samples.SCORE)
    found = influence(report(lags=[-4, -4], positions=[5, 6], orders=["scored"], findings=[bad]), 10)
    assert pairs(found.bands) == {(5, 9, BAD), (6, 10, AHEAD)}


def test_findings_are_drawn_whatever_else_is_known():
    beyond = Finding("CT004", 3, 3, samples.BOTH, samples.SCORE)
    twice = Finding("CT006", 4, 4, samples.BOTH, samples.SCORE)
    found = influence(report(lags=[1, 1], positions=[3, 4], findings=[beyond, twice]), 10)
    assert pairs(found.bands) == {(3, 2, BEFORE), (4, 3, BEFORE), (3, 3, BAD)}
    old = influence(report(positions=[3, 4], findings=[beyond, twice]), 10)
    assert (pairs(old.bands), old.known) == ({(3, 3, BAD)}, FINDINGS)


def test_streams_are_numbered_one_after_the_other():
    streams = [("a", 10), ("b", 14)]
    late = Finding("CT001", 2, 5, samples.BOTH, samples.SCORE, stream="b", source_stream="b")
    # Position 2 is in either stream; all labels of the score tell which.
    exact = report([[10, 12], [0, 2]], [1, 1], [2, 2], streams=streams)
    assert score_positions(exact) == [12, 2]
    latest = report(None, [1, 1], [2, 2], findings=[late], streams=streams)
    assert score_positions(latest) == [None, None]
    assert pairs(influence(latest, 10).bands) == {(12, 15, BAD)}


@pytest.mark.parametrize("gap", [1, 2])
def test_bands_end_where_scores_are_left_out(gap):
    rows = {0: [(0, 1, BEFORE)], gap: [(0, 1, BEFORE)]}
    assert len(bands(rows)) == gap
