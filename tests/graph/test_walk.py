"""A path begins at the true label, ends at the true score, and every hop is a line that moves the label."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from causaltrace.report.model import Finding, Report
from causaltrace.report.summary import group
from examples import common
from tests import flips
from tests.flips import CASES, Case
from tests.graph.cuts import Line, Result, Run, evaluated, flipped, line_of
from tests.test_examples import watched


@dataclasses.dataclass
class Config:
    pass


def _chunk(config: Any, n_tokens: int) -> list[flips.ScoredRow]:
    return [flips.ScoredRow(0, t - 1, t) for t in range(1, n_tokens)]


def noncausal(model: Any, tokens: Tensor, config: Any) -> float:
    """A mean over all positions is added to every one of them: future labels (CT001)."""
    with torch.no_grad():
        hidden = model.hidden(tokens[None, :-1])
        mixed = hidden + hidden.mean(1, keepdim=True)
        return F.cross_entropy(model.logits(mixed)[0], tokens[1:]).item()


def peeking(model: Any, tokens: Tensor, config: Any) -> float:
    """A bonus for the label itself: CT002."""
    with torch.no_grad():
        logits = model(tokens[None, :-1])[0]
        bonus = 0.1 * F.one_hot(tokens[1:], flips.VOCAB)
        return F.cross_entropy(logits + bonus, tokens[1:]).item()


def fast_weights(model: Any, tokens: Tensor, config: Any) -> float:
    """State updated by hand, without an optimizer."""
    with torch.no_grad():
        hidden = model.hidden(tokens[None, :-1])[0]
    delta = torch.zeros(hidden.shape[-1], dtype=hidden.dtype, requires_grad=True)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(F.cross_entropy(model.logits(hidden + delta), tokens[1:]), delta)
        delta.data -= 0.1 * gradient
    with torch.no_grad():
        adapted = hidden + delta
        return F.cross_entropy(model.logits(adapted), tokens[1:]).item()


def _small(evaluate: Any, calls: int = 0) -> Case:
    def schedule(config: Any, n_tokens: int) -> list[flips.ScoredRow]:
        return [row._replace(call=calls) for row in _chunk(config, n_tokens)]

    case = CASES["mean_loss"]
    return dataclasses.replace(
        case, name=evaluate.__name__, evaluate=evaluate, tokens=case.tokens[:12].clone(), schedule=schedule
    )


SMALL = [_small(noncausal), _small(peeking), _small(fast_weights, calls=2)]


@functools.cache
def judged(case: Case) -> Report:
    if case.name in CASES:
        return watched(case.name)[0]
    model, tokens = case.make_model(), case.tokens.clone()
    with flips.single_threaded(), causaltrace.watch(tokens) as trace:
        case.evaluate(model, tokens, case.config)
    return trace.report


def witnesses(case: Case) -> list[Finding]:
    """A finding of each kind, the first and the last one. CT006 has no path: its score is all there is."""
    paths = [f for f in judged(case).violations if f.kind != "CT006"]
    chosen = [g.witness for g in group(paths) if g.witness is not None]
    return list({id(f): f for f in (*chosen, paths[0], paths[-1])}.values())


LEAKING = [*(c for c in CASES.values() if not c.legal), *SMALL]
leaking = pytest.mark.parametrize("case", LEAKING, ids=lambda case: case.name)

#: Evals without rows have no row to compare, and no operation brings a label out of a file.
CUT = [case for case in LEAKING if not case.charged and case.name != "ttt_saved"]


class Cutting:
    """One finding's eval with its label as it was and flipped, and with lines of one in the other."""

    def __init__(self, case: Case, finding: Finding) -> None:
        self.case, self.target = case, finding.target
        self.plain = Run(keep=True)
        self.base = evaluated(case, case.tokens, self.target, self.plain)
        for by in range(1, case.vocab):
            self.tokens = flipped(case, finding.source, by)
            self.flipped = Run(keep=True)
            self.moved = evaluated(case, self.tokens, self.target, self.flipped)
            if not torch.equal(self.moved.row, self.base.row):
                break

    def cut(self, *lines: Line) -> Result:
        """The flipped label, with the lines as they were without the flip."""
        kept = {line: self.plain.results[line] for line in lines}
        return evaluated(self.case, self.tokens, self.target, Run(kept=kept))

    def injected(self, line: Line) -> Result:
        """The label as it was, with one line as it is with the flip."""
        kept = {line: self.flipped.results[line]}
        return evaluated(self.case, self.case.tokens, self.target, Run(kept=kept))


@pytest.mark.parametrize("case", CUT, ids=lambda case: case.name)
def test_every_hop_is_a_line_that_moves_the_label(case: Case) -> None:
    """Each line of the path, changed alone as the flip changes it, moves the score; and cut alone, it stops
    the flip. It cannot where the same step goes along other lines too: a model reads adapted weights in all
    of its layers, and has a residual stream beside its attention. Then its lines together must stop it."""
    for finding in witnesses(case):
        run = Cutting(case, finding)
        assert not torch.equal(run.moved.row, run.base.row)
        *steps, score = (line_of(hop.site) for hop in finding.path)
        beside = []
        for line in dict.fromkeys(steps):
            assert not torch.equal(run.injected(line).row, run.base.row), f"{line} alone moves nothing"
            if not torch.equal(run.cut(line).row, run.base.row):
                beside.append(line)
        for line in beside:
            assert line.phase == "forward" and case.name.startswith("ttt_") and line.file == common.__file__
        if beside:
            model = [x for x in run.plain.results if x.phase == "forward" and x.file == common.__file__]
            assert torch.equal(run.cut(*model).row, run.base.row)
        assert run.cut(score).value == run.base.value != run.moved.value


@leaking
def test_a_path_begins_where_its_label_was_read(case: Case) -> None:
    graph = judged(case).graph
    for finding in judged(case).violations:
        first = graph.sites.index(finding.path[0].site)
        known = any(e.source == 0 and e.target == first for e in graph.edges)
        assert known or finding.kind in ("CT005", "CT006")


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


def _hops(work: Callable[[Tensor], Any]) -> list[tuple[str, str]]:
    tokens = torch.randint(0, 8, (9,), generator=torch.Generator().manual_seed(0))
    with causaltrace.watch(tokens) as trace:
        work(tokens)
    finding = max(trace.report.violations, key=lambda f: f.source)
    return [(hop.site.phase, hop.site.source) for hop in finding.path]


def test_the_line_that_reads_a_label_is_not_one_that_read_it_before() -> None:
    def work(tokens: Tensor) -> None:
        table = torch.randn(8, 8)
        F.embedding(tokens[1:], table).mean()  # read here, to no avail
        logits = F.embedding(tokens[1:], table)
        F.cross_entropy(logits, tokens[1:], reduction="none").sum()

    assert _hops(work)[0][1].startswith("logits = ")


def test_state_that_is_read_for_a_log_is_not_on_the_path() -> None:
    def work(tokens: Tensor) -> None:
        adapter, x = Adapter(), torch.randn(8, 8)
        optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
        F.cross_entropy(adapter(x), tokens[1:]).backward()
        optimizer.step()
        adapter.weight.detach().norm()  # a log
        logits = adapter(x)
        F.cross_entropy(logits.detach(), tokens[1:], reduction="none").sum()

    hops = _hops(work)
    assert [source for phase, source in hops if phase == "update"] == ["optimizer.step()"]
    assert ("forward", "return x + self.weight") in hops
    assert not any("norm" in source for _, source in hops)


def test_a_step_that_is_far_back_is_numbered() -> None:
    def work(tokens: Tensor) -> None:
        adapter, x = Adapter(), torch.randn(8, 8)
        optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
        for stop in range(2, 10):
            optimizer.zero_grad()
            F.cross_entropy(adapter(x[: stop - 1]), tokens[1:stop]).backward()
            optimizer.step()
        F.cross_entropy(adapter(x).detach(), tokens[1:], reduction="none").sum()

    tokens = torch.randint(0, 8, (9,), generator=torch.Generator().manual_seed(0))
    with causaltrace.watch(tokens) as trace:
        work(tokens)
    finding = max(trace.report.violations, key=lambda f: f.source)
    (step,) = [hop.detail for hop in finding.path if hop.site.phase == "update"]
    assert finding.source == 8 and step.endswith("step 8")
