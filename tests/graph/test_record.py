"""What a watch records: edges that paths go along, the timeline, lags, and how little all of it grows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import causaltrace
from causaltrace.graph import timeline
from causaltrace.graph.timeline import Timeline
from causaltrace.lattice import cells
from causaltrace.report.json import from_json
from causaltrace.report.model import Moment, Report
from causaltrace.site import Site
from tests import flips
from tests.flips import CASES
from tests.not_yet import LARGER, marked
from tests.small import Toy, nll, stream
from tests.test_examples import watched


def edges(report: Report) -> dict[tuple[Site, Site], Any]:
    sites = report.graph.sites
    return {(sites[e.source], sites[e.target]): e for e in report.graph.edges}


def adapted(windows: int, size: int = 8, optimizer: str = "AdamW") -> Report:
    """Score-first test-time training, one window at a time."""
    tokens, model = stream(size * windows + 1), Toy()
    stepping = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01)
    with causaltrace.watch(tokens) as trace:
        for start in range(0, size * windows, size):
            with torch.no_grad():
                nll(model, tokens, start, start + size + 1).sum()
            stepping.zero_grad()
            nll(model, tokens, start, start + size + 1).mean().backward()
            stepping.step()
    return trace.report


@pytest.mark.parametrize("name", CASES)
def test_every_hop_of_every_path_is_an_edge(name: str) -> None:
    report, _ = watched(name)
    known = edges(report)
    for finding in report.violations:
        for hop, following in pairwise(finding.path):
            edge = known[hop.site, following.site]
            assert edge.bad and edge.lag[0] <= finding.target - finding.source <= edge.lag[1]


@pytest.mark.parametrize("name", CASES)
def test_only_paths_of_findings_are_bad(name: str) -> None:
    report, _ = watched(name)
    along = {(a.site, b.site) for f in report.violations for a, b in pairwise(f.path)}
    assert {pair for pair, e in edges(report).items() if e.bad and pair[0].phase != "input"} == along


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("oracle_min", "blend_target")])
def test_edges_into_scores_have_the_lags_of_all_scores(name: str) -> None:
    """Where the label itself chooses, a score has two latest labels: that of its rows, and its own."""
    report, _ = watched(name)
    lags = [lag for lag in report.lags if lag is not None]
    into = [e for (_, target), e in edges(report).items() if target.phase == "score"]
    assert min(e.lag[0] for e in into) == min(lags) and max(e.lag[1] for e in into) == max(lags)


@pytest.mark.parametrize("name", marked(CASES, LARGER))
def test_lags_are_those_of_the_latest_label_that_a_flip_finds(name: str) -> None:
    report, _ = watched(name)
    latest: dict[int, int] = {}
    for label, target in flips.dependencies(CASES[name]):
        latest[target] = max(label, latest.get(target, -1))
    assert len(report.lags) == len(report.positions)
    last_of = dict(zip(report.positions, report.lags, strict=True))
    assert last_of == {t: t - latest[t] if t in latest else None for t in last_of}


def test_the_first_token_of_a_stream_without_labels_before_it_has_no_lag() -> None:
    tokens = stream(5)
    with causaltrace.watch(tokens) as trace:
        F.cross_entropy(torch.randn(1, 13), tokens[:1], reduction="none").sum()
        F.cross_entropy(torch.randn(1, 13) + tokens[3], tokens[1:2], reduction="none").sum()
    assert list(trace.report.lags) == [None, -2]


@pytest.mark.slow
def test_the_graph_of_a_thousand_windows_is_that_of_ten() -> None:
    few, many = adapted(10, size=2), adapted(1000, size=2)
    assert many.graph.sites == few.graph.sites
    assert [(e.source, e.target) for e in many.graph.edges] == [(e.source, e.target) for e in few.graph.edges]
    assert len(many.timeline) <= timeline.LIMIT


def test_sites_outlive_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = adapted(10)
    monkeypatch.setattr(cells, "HISTORY_PASSES", 0)
    forgetful = adapted(10)
    assert set(edges(forgetful)) == set(edges(whole))


def test_the_path_of_a_label_read_long_ago_still_begins_where_it_was_read() -> None:
    """Its label comes first, and hundreds of passes follow before the score that it must not reach."""
    tokens, model = stream(120), Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with causaltrace.watch(tokens) as trace:
        for start in (100, *range(10, 90)):
            optimizer.zero_grad()
            nll(model, tokens, start, start + 9).mean().backward()
            optimizer.step()
        with torch.no_grad():
            nll(model, tokens, 0, 9).sum()
    finding = trace.report.violations[0]
    first = finding.path[0].site
    assert finding.source == 108 and first.phase == "backward"
    assert any(a.phase == "input" and b == first for a, b in edges(trace.report))


def test_the_timeline_of_score_first_training() -> None:
    moments = adapted(3).timeline
    assert [m.kind for m in moments] == ["score", "update"] * 3
    assert [(m.first, m.last, m.label, m.scored) for m in moments if m.kind == "score"] == [
        (1, 8, 7, 8),
        (9, 16, 15, 16),
        (17, 24, 23, 24),
    ]
    assert [(m.label, m.scored) for m in moments if m.kind == "update"] == [(8, 8), (16, 16), (24, 24)]
    assert {m.site.op for m in moments if m.kind == "update"} == {"AdamW.step"}


def test_escapes_in_the_timeline_have_the_watermark() -> None:
    tokens = stream(9)
    with causaltrace.watch(tokens) as trace:
        tokens[5].item()
        tokens[2].item()
        F.cross_entropy(torch.randn(8, 13), tokens[1:], reduction="none").sum()
    assert [(m.kind, m.label) for m in trace.report.timeline] == [("escape", 5), ("escape", 5), ("score", -1)]


def test_findings_in_the_timeline_are_those_of_the_report() -> None:
    for name in CASES:
        report, _ = watched(name)
        assert sum(m.findings for m in report.timeline) == len(report.violations)
        assert sum(m.count for m in report.timeline if m.kind == "escape") == sum(
            n.count for n in report.escapes
        )


def test_a_long_timeline_is_shortened_without_losing_events() -> None:
    line, place = Timeline(), [Site("score", "sum", "eval.py", i) for i in range(3)]
    total = 3 * timeline.LIMIT
    for i in range(total):
        kind = "update" if i % 3 == 2 else "score"
        line.add(Moment(kind, place[i % 3], first=i, last=i, label=i, scored=i, findings=1))
        assert len(line.moments) <= timeline.LIMIT
    assert sum(m.count for m in line.moments) == sum(m.findings for m in line.moments) == total
    assert line.moments[0].first == 0 and max(m.last for m in line.moments) == total - 1
    scored = [m.scored for m in line.moments if m.site == place[0]]
    assert scored == sorted(scored)


def test_explicit_scores_leave_nothing_of_those_that_were_seen() -> None:
    tokens, model = stream(9), Toy()
    with causaltrace.watch(tokens) as trace:
        nll(model, tokens).sum()
        causaltrace.score(nll(model, tokens))
    report = trace.report
    assert [(m.kind, m.count) for m in report.timeline] == [("score", 1)]
    assert [s.op for s in report.graph.sites if s.phase == "score"] == [report.timeline[0].site.op]
    assert len(report.lags) == len(report.positions) == 8


def test_reach_is_the_matrix_as_runs() -> None:
    tokens, model = stream(24), Toy()
    with causaltrace.watch(tokens, precision="exact") as trace, torch.no_grad():
        nll(model, tokens, 4, 12).sum()
        F.cross_entropy(model(tokens[[0, 5, 6]]), tokens[20:23], reduction="none").sum()
    matrix, reach = trace.matrix(), trace.report.reach
    assert reach is not None and len(reach) == len(matrix) == len(trace.report.positions)
    for row, runs in zip(matrix, reach, strict=True):
        found = [p for a, b in zip(runs[::2], runs[1::2], strict=True) for p in range(a, b)]
        assert found == row.nonzero()[:, 0].tolist()
    assert list(reach[-1]) == [0, 1, 5, 7]


def test_streams_are_listed_and_labels_are_counted_through_them() -> None:
    a, b = stream(6), stream(4, seed=3)
    with causaltrace.watch({"a": a, "b": b}) as trace:
        F.cross_entropy(torch.randn(3, 13) + a[5], b[1:], reduction="none").sum()
    report = trace.report
    assert report.streams == [("a", 6), ("b", 4)]
    assert list(report.positions) == [1, 2, 3] and list(report.lags) == [2, 3, 4]
    assert report.timeline[0].first == 7


def test_a_report_with_all_of_it_comes_back_from_json() -> None:
    report = adapted(3)
    assert from_json(report.to_json()) == report


def test_an_interned_support_stands_for_those_of_the_same_sites_only() -> None:
    """Two functions make equal supports that one line joins: the path names the one that was called."""
    tokens = stream(9)

    def one() -> torch.Tensor:
        return torch.zeros(()) + tokens[8]

    def other() -> torch.Tensor:
        return torch.ones(()) * tokens[8]

    def peek(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x]) + torch.randn(8, 13)

    with causaltrace.watch(tokens) as trace:
        kept = peek(one())
        F.cross_entropy(peek(other()), tokens[1:], reduction="none").sum()
        del kept
    path = trace.report.violations[0].path
    assert path[0].site.function.endswith("other")
