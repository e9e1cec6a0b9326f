"""``declassify``: what the program vouches for, in every report."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.report.model import Report
from tests.small import Toy, nll, stream, targets

WHY = "the stream's mean is public"


def biased(position: int, how: str) -> Report:
    """Scores after 12 get a bias from the label at ``position``."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        nll(model, tokens, 0, 13).sum().item()
        bias = model.embedding[tokens[position : position + 1]].sum()
        if how == "tensor":
            bias = causaltrace.declassify(bias, reason=WHY)
        elif how == "number":
            bias = causaltrace.declassify(bias, reason=WHY).item()  # type: ignore[assignment]
        F.cross_entropy(model(tokens[12:-1]) * bias, tokens[13:], reduction="sum").item()
    return trace.report


def test_without_it_the_label_is_found() -> None:
    assert biased(20, "nothing").status == "violation"


@pytest.mark.parametrize("how", ["tensor", "number"])
def test_what_is_declassified_reaches_nothing(how: str) -> None:
    report = biased(20, how)
    assert report.status == "clean", report
    (note,) = [n for n in report.notes if n.kind == "CT098"]
    assert note.label == 20 and note.count == 1 and not note.blocking and WHY in note.message
    assert note.site is not None and note.site.file == __file__


def test_every_report_lists_it() -> None:
    report = biased(20, "tensor")
    outputs = [report.to_text(), report.to_markdown(), report.to_html(), report.to_sarif()]
    assert all("the program declassified values here" in text for text in outputs)
    assert all("mean is public" in text for text in outputs)
    (note,) = [n for n in json.loads(report.to_json())["notes"] if n["kind"] == "CT098"]
    assert WHY in note["message"] and note["count"] == 1


def test_the_tensor_itself_keeps_its_labels() -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        h = model.embedding[tokens[:-1]].flip(0)
        causaltrace.declassify(h, reason=WHY).zero_()
        F.cross_entropy(h @ model.head, tokens[1:], reduction="sum").item()
    assert trace.report.status == "violation"


def test_counted_by_line_and_reason() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        nll(Toy(), tokens).sum().item()
        for i in range(3):
            causaltrace.declassify(tokens[i], reason=WHY)
        causaltrace.declassify(torch.ones(2), reason="no labels in it")
    counts = [(n.count, n.label) for n in trace.report.notes if n.kind == "CT098"]
    assert counts == [(3, 2), (1, None)]


def test_readouts_are_scored_where_they_are_declassified() -> None:
    """What a score depended on is judged all the same."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        logits = model(tokens[:-1]) + model.embedding[tokens[5:6], 0]
        losses = F.cross_entropy(logits, tokens[1:], reduction="none")
        causaltrace.declassify(losses, reason="numbers for the log").sum().item()
    assert targets(trace) == {1, 2, 3, 4, 5} and len(trace.report.positions) == 23


def test_an_objective_is_still_one() -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace:
        loss = F.cross_entropy(model(tokens[:-1]), tokens[1:])
        causaltrace.declassify(loss, reason="for the log").backward()
    assert len(trace.report.positions) == 23


def test_gradients_go_through() -> None:
    def grad(x: Tensor) -> Tensor:
        (causaltrace.declassify(x * 2, reason=WHY) * 3).sum().backward()
        assert x.grad is not None
        return x.grad

    plain = grad(torch.ones(3, requires_grad=True))
    with causaltrace.watch(stream()):
        assert torch.equal(grad(torch.ones(3, requires_grad=True)), plain)


def test_nothing_happens_outside_a_watch() -> None:
    x = torch.ones(3)
    assert causaltrace.declassify(x, reason=WHY) is x


@pytest.mark.parametrize("x", [3, 2.5, "text", [1, 2], None])
def test_a_number_comes_too_late(x: object) -> None:
    with pytest.raises(TypeError, match="before it is read"):
        causaltrace.declassify(x, reason=WHY)
    with causaltrace.watch(stream()), pytest.raises(TypeError, match="before it is read"):
        causaltrace.declassify(x, reason=WHY)


@pytest.mark.parametrize("reason", ["", "  ", None, 3])
def test_a_reason_must_be_given(reason: object) -> None:
    with pytest.raises(ValueError, match="reason"):
        causaltrace.declassify(torch.ones(1), reason=reason)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        causaltrace.declassify(torch.ones(1))  # type: ignore[call-arg]


@pytest.mark.parametrize("known", [True, False])
def test_where_documents_begin_may_be_declassified(known: bool) -> None:
    """An eval that goes through documents one by one reads first where they begin; the report says so."""
    generator = torch.Generator().manual_seed(0)
    tokens, table = torch.randint(1, 8, (40,), generator=generator), torch.randn(8, 8, generator=generator)
    tokens[[0, 11, 30]] = 0
    with causaltrace.watch(tokens) as trace:
        begins = tokens == 0
        if known:
            begins = causaltrace.declassify(begins, reason="where documents begin")
        starts = begins.nonzero()[:, 0].tolist()
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            F.cross_entropy(table[tokens[start : end - 1]], tokens[start + 1 : end], reduction="sum")
    assert trace.report.status == ("clean" if known else "unverified")
    assert known or any("declassify" in e.remedy for e in trace.report.escapes)
