"""Tables that are updated in place, sums of scores, and readouts that only weigh others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace

VOCAB = 7
WEIGHTS = torch.randn(VOCAB, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

Update = Callable[[Tensor, Tensor, Tensor], None]


def stream() -> Tensor:
    return torch.tensor([3, 1, 4, 1, 5, 2, 6, 0, 3, 5, 1, 2, 3, 6, 6, 1])


def added(counts: Tensor, x: Tensor, y: Tensor) -> None:
    counts[x, y] += 1


def put(counts: Tensor, x: Tensor, y: Tensor) -> None:
    counts.index_put_((x, y), counts[x, y] * 0.9 + 1)


def scattered(counts: Tensor, x: Tensor, y: Tensor) -> None:
    rows = counts[x]
    counts[x] = rows.scatter(1, y[:, None], rows.gather(1, y[:, None]) + 1)


def one_by_one(counts: Tensor, x: Tensor, y: Tensor) -> None:
    for a, b in zip(x, y, strict=True):
        counts[a, b] += 1


def row_by_row(counts: Tensor, x: Tensor, y: Tensor) -> None:
    for a, b in zip(x, y, strict=True):
        counts[a][b] += 1


UPDATES = [added, put, scattered, one_by_one, row_by_row]


@pytest.mark.parametrize("update", UPDATES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("first", [False, True], ids=["score first", "update first"])
def test_a_table_of_counts(update: Update, first: bool) -> None:
    tokens, counts, plain = stream(), torch.ones(VOCAB, VOCAB), torch.ones(VOCAB, VOCAB)
    with causaltrace.watch(tokens) as trace:
        for i in range(1, len(tokens), 3):
            x, y = tokens[i - 1 : i + 2], tokens[i : i + 3]
            if first:
                update(counts, x, y)
            p = counts[x] / counts[x].sum(-1, keepdim=True)
            (-p.gather(1, y[:, None]).log()).sum().item()
            if not first:
                update(counts, x, y)
    for i in range(1, len(tokens), 3):
        update(plain, tokens[i - 1 : i + 2], tokens[i : i + 3])
    assert torch.equal(counts, plain)
    assert trace.report.scored == len(tokens) - 1
    assert trace.report.status == ("violation" if first else "clean"), trace.report


def test_a_readout_that_is_put_elsewhere_is_still_one() -> None:
    tokens, rows = stream(), WEIGHTS.log_softmax(-1)
    with causaltrace.watch(tokens) as trace:
        x, y = tokens[:-1], tokens[1:]
        losses = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
        losses[x, y] = -rows[x][torch.arange(15), y]
        losses.sum().item()
    assert trace.report.scored == len(set(zip(x.tolist(), y.tolist(), strict=True)))


Total = Callable[[Tensor, Tensor], Tensor]


def in_place(total: Tensor, nll: Tensor) -> Tensor:
    total += nll
    return total


def subtracted(total: Tensor, nll: Tensor) -> Tensor:
    total -= -nll
    return total


def out_of_place(total: Tensor, nll: Tensor) -> Tensor:
    return total + nll


@pytest.mark.parametrize("add", [in_place, subtracted, out_of_place], ids=lambda f: f.__name__)
def test_a_loss_is_scored_when_it_is_added(add: Total) -> None:
    """The labels may go to Python right after that."""
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        total = torch.zeros((), dtype=torch.float64)
        for t in range(1, len(tokens)):
            row = WEIGHTS[tokens[t - 1 : t]].log_softmax(-1)[0]
            total = add(total, -row[tokens[t]])
            tokens[t].item()
        total.item()
    assert trace.report.status == "clean", trace.report
    assert trace.report.scored == len(tokens) - 1


def test_an_element_of_a_row_at_a_label_of_no_dims() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        rows = WEIGHTS[tokens[:-1]].softmax(-1)
        for t in range(1, len(tokens)):
            (-rows[t - 1, tokens[t]].log()).item()
    assert trace.report.status == "clean", trace.report
    assert not any("Python" in e.message and e.label == 0 for e in trace.report.escapes)
    with causaltrace.watch(tokens) as trace:
        for t in range(1, len(tokens)):
            p = (WEIGHTS[tokens[t - 1 : t]][0] + F.one_hot(tokens[t], VOCAB)).softmax(-1)
            (-p[tokens[t]].log()).item()
    assert trace.report.status == "violation"


def test_elements_are_what_they_are_without_a_watch() -> None:
    tokens = stream()
    row = torch.randn(VOCAB, requires_grad=True)

    def run() -> list[Tensor]:
        table = torch.zeros(VOCAB, VOCAB, dtype=torch.int32)
        table[tokens[0], tokens[1]] = 3
        table[tokens[0], -1] += tokens[2]
        table[2, tokens[1]] = 2.0
        (grad,) = torch.autograd.grad(row[tokens[3]] * row[tokens[4]], row)
        with pytest.raises(IndexError):
            row[tokens[6] + 1 : tokens[6] + 2][tokens[6]]
        return [table, grad, row[tokens[5]].detach(), table[tokens[0]]]

    plain = run()
    with causaltrace.watch(tokens):
        watched = run()
    for a, b in zip(plain, watched, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def closed_form(rows: Tensor, y: Tensor, hint: Tensor) -> Tensor:
    """A row that is tilted towards a class, and what that does to its sum."""
    scale = 1 + (torch.e - 1) * rows.exp().gather(-1, hint[:, None])[:, 0]
    return -rows.gather(-1, y[:, None])[:, 0] - (y == hint).double() + scale.log()


def test_a_tilt_towards_an_earlier_label_is_not_taken_for_its_score() -> None:
    """In closed form nothing shows that it is normalised; with the distribution something does."""
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        x, y, hint = tokens[1:-1], tokens[2:], tokens[:-2]
        rows = WEIGHTS[x].log_softmax(-1)
        closed_form(rows, y, hint).sum().item()
    assert trace.report.status == "unverified" and not trace.report.violations, trace.report
    with causaltrace.watch(tokens) as trace:
        x, y, hint = tokens[1:-1], tokens[2:], tokens[:-2]
        rows = WEIGHTS[x].log_softmax(-1)
        tilted = (rows + F.one_hot(hint, VOCAB)).log_softmax(-1)
        trace.score(closed_form(rows, y, hint), targets=y, distribution=tilted)
    assert trace.report.status == "clean", trace.report


def test_a_tilt_towards_the_label_itself() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        x, y = tokens[1:-1], tokens[2:]
        closed_form(WEIGHTS[x].log_softmax(-1), y, y).sum().item()
    assert trace.report.status != "clean"


def test_scores_of_two_labels_in_one_element_are_both_scored() -> None:
    tokens = stream()[:-1]
    with causaltrace.watch(tokens) as trace:
        losses = F.cross_entropy(WEIGHTS[tokens[:-1]], tokens[1:], reduction="none")
        (losses[0::2] + losses[1::2]).sum().item()
    assert trace.report.status == "clean", trace.report
    assert trace.report.scored == len(tokens) - 1


@pytest.mark.parametrize("lags", [(a, b) for a in range(3) for b in range(3) if a != b], ids=str)
def test_labels_that_are_compared_with_each_other(lags: tuple[int, int]) -> None:
    """A comparison is a readout of the later label, and a use of the earlier one."""
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        for t in range(2, len(tokens)):
            a, b = (tokens[t - lag : t - lag + 1] for lag in lags)
            row = WEIGHTS[tokens[t - 1]] * (1 + (a == b).double())
            F.cross_entropy(row[None], tokens[t : t + 1]).item()
    assert trace.report.status == ("violation" if 0 in lags else "clean"), trace.report


def test_what_is_compared_or_only_measured_is_not_scored() -> None:
    tokens, counts = stream(), torch.zeros(VOCAB, VOCAB)
    with causaltrace.watch(tokens) as trace:
        x, y = tokens[:-1], tokens[1:]
        p = WEIGHTS[x].softmax(-1)
        read = p[torch.arange(len(y)), y]
        (-read.log()).sum().item()
        (counts[x, y] > 0).sum().item()
        (read > 0.5).double().mean().item()
        torch.ones_like(counts[x, y]).sum().item()
        counts.new_ones(len(y)).sum().item()
    assert trace.report.status == "clean", trace.report
    with causaltrace.watch(tokens) as trace:
        losses = -WEIGHTS.softmax(-1)[tokens[:-1]].gather(-1, tokens[1:, None]).log()
        (losses * 1024).long().sum().item()
    assert trace.report.scored == len(tokens) - 1


READS = {
    "item": lambda row, y: row[y.item()],
    "slice": lambda row, y: row[y : y + 1].sum(),
    "select": lambda row, y: row.select(0, y),
    "take": lambda row, y: row.take(y),
    "index_select": lambda row, y: row.index_select(0, y).sum(),
    "list": lambda row, y: row.tolist()[y],
    "numpy": lambda row, y: float(row.numpy()[y.numpy()]),
    "numpy by int": lambda row, y: float(row.numpy()[int(y)]),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_scores_that_python_reads_are_not_passed_over(read: Callable[[Tensor, Tensor], Any]) -> None:
    """Some positions are scored in torch, the others from rows that know their label."""
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        total = F.cross_entropy(WEIGHTS[tokens[:4]], tokens[1:5], reduction="sum").item()
        rows = (WEIGHTS[tokens[4:9]] + 3 * F.one_hot(tokens[5:10], VOCAB)).log_softmax(-1)
        for t in range(5, 10):
            total -= float(read(rows[t - 5], tokens[t]))
    assert trace.report.status != "clean"


def test_scores_that_python_reads_may_be_named() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        losses = F.cross_entropy(WEIGHTS[tokens[:-1]], tokens[1:], reduction="none")
        trace.score(losses[:5])
        tokens[9:].tolist()
    assert trace.report.status == "clean", trace.report
