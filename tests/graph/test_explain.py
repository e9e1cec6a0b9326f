"""A finding is told with its lines, its state and its windows, and nothing is told that was not recorded."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import causaltrace
from causaltrace.graph.explain import explain
from causaltrace.report.json import from_json
from causaltrace.report.model import Finding, Provenance, Report
from causaltrace.report.summary import group
from tests.flips import CASES
from tests.small import Toy, nll, stream
from tests.test_examples import watched

LEAKING = [name for name, case in CASES.items() if not case.legal]


def told(report: Report, kind: str = "CT003") -> tuple[Finding, str]:
    finding = next(g.witness for g in group(report.violations) if g.kind == kind and g.witness)
    return finding, explain(finding, report)


@pytest.mark.parametrize("name", LEAKING)
def test_every_hop_is_named_with_its_line_and_source(name: str) -> None:
    report = watched(name)[0]
    finding, text = told(report, min(f.kind for f in report.violations))
    for hop in finding.path:
        assert f"line {hop.site.line}, in {hop.site.function}" in text and hop.site.source in text
    assert text.index(f"label x_{finding.source}") < text.index("score:")
    if finding.kind == "CT003":
        assert text.index(f"label x_{finding.source}") < text.index("backward:") < text.index("score:")
    assert "not in the recorded graph" not in text and "too long ago" not in text


def test_state_that_windows_share_is_named_with_the_windows_that_read_it() -> None:
    _, text = told(watched("slot_context_batch4")[0])
    assert "written at" in text and "optimizer.step()" in text and "step 1" in text
    assert "read again at" in text and "delta.detach()" in text
    assert "it was fitted on x_28, which the scores of 17-28 must not know" in text
    assert "x_28 had yet to be scored: its own score is one of positions 17-32" in text


def test_a_label_that_had_been_scored_is_said_to_have_been() -> None:
    finding, text = told(watched("ttt_multi_epoch")[0])
    assert finding.orders == ("stream",) and "x_43 had been scored by then, but stands later" in text


def test_a_second_score_has_no_label_to_come_from() -> None:
    _, text = told(watched("ttt_multi_epoch")[0], "CT006")
    assert "two scores" in text and "label first" not in text


def test_what_enters_after_the_readout_has_a_path_too() -> None:
    tokens, model = stream(9), Toy()
    weights = torch.rand(13)
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        loss = nll(model, tokens)
        (loss * F.embedding(tokens[1:], weights[:, None])[:, 0]).sum()
    finding = next(f for f in trace.report.violations if f.kind == "CT004")
    assert "weights" in trace.explain(finding) and len(finding.path) > 1


def test_a_hop_that_was_not_recorded_is_marked() -> None:
    report = watched("slot_standard")[0]
    finding, _ = told(report)
    first, last = finding.path[0], finding.path[-1]
    shortened = dataclasses.replace(finding, path=(first, last))
    assert "(not in the recorded graph)" in explain(shortened, report)
    beheaded = dataclasses.replace(finding, path=finding.path[2:])
    assert "too long ago" in explain(beheaded, report)


def test_a_stored_report_is_explained_alike_and_an_old_one_without_its_graph() -> None:
    report = watched("slot_standard")[0]
    finding, text = told(report)
    assert explain(finding, from_json(report.to_json())) == text
    old = dataclasses.replace(report, graph=Provenance(), timeline=[], streams=[])
    assert "optimizer.step()" in explain(finding, old)
