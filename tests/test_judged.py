"""Which number a verdict is about: the mean that the scores charge, in nats, of every spelling of a score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import causaltrace
from causaltrace.report.json import from_json
from causaltrace.report.model import Judged, Report

VOCAB, LENGTH = 8, 33
TOKENS = torch.randint(VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(0))
TABLE = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(1)).double()
CHARGES = F.cross_entropy(TABLE[TOKENS[:-1]], TOKENS[1:], reduction="none")

Eval = Callable[[Tensor, Tensor], Any]


def judged(evaluate: Eval, table: Tensor = TABLE) -> tuple[Report, Any]:
    """The report on an eval of logits and their labels, and what it returned."""
    tokens = TOKENS.clone()
    with torch.no_grad(), causaltrace.watch(tokens) as trace:
        value = evaluate(table[tokens[:-1]], tokens[1:])
    return trace.report, value


def check(report: Report, charges: Tensor = CHARGES) -> None:
    assert report.judged.known == report.scored == len(charges)
    assert report.judged.nats == pytest.approx(charges.mean().item(), abs=1e-6)


def log_p(x: Tensor, y: Tensor) -> Tensor:
    return F.log_softmax(x, -1).gather(-1, y[:, None])[:, 0]


def own_rows(x: Tensor, y: Tensor) -> float:
    """A softmax of the program's own, read by numpy."""
    p = (x - x.amax(-1, keepdim=True)).exp().numpy()
    p = p / p.sum(-1, keepdims=True)
    return float(-np.log(p[np.arange(len(y)), y.numpy()]).mean())


def one_by_one(x: Tensor, y: Tensor) -> float:
    """Probabilities that Python reads out of an array."""
    p, labels = x.softmax(-1).numpy(), y.numpy()
    return sum(-math.log(p[i, labels[i]]) for i in range(len(labels)))


def tallied(x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros((), dtype=x.dtype)
    for nll in F.cross_entropy(x, y, reduction="none"):
        total = total + nll
    return total


def one_hot(x: Tensor, y: Tensor) -> Tensor:
    return (F.log_softmax(x, -1) * F.one_hot(y, VOCAB)).sum(-1).sum()


EVALS: dict[str, Eval] = {
    "mean": F.cross_entropy,
    "sum": lambda x, y: F.cross_entropy(x, y, reduction="sum"),
    "none": lambda x, y: F.cross_entropy(x, y, reduction="none").sum(),
    "classes in the middle": lambda x, y: F.cross_entropy(x.T[None], y[None]),
    "one row": lambda x, y: [F.cross_entropy(row, label) for row, label in zip(x, y, strict=True)],
    "gather": lambda x, y: log_p(x, y).sum(),
    "gather and negate": lambda x, y: -log_p(x, y).mean(),
    "probabilities": lambda x, y: -x.softmax(-1).gather(-1, y[:, None]).log().sum(),
    "bits": lambda x, y: (-log_p(x, y) / math.log(2)).mean(),
    "log2": lambda x, y: -x.softmax(-1).gather(-1, y[:, None]).log2().sum(),
    "a part of a mean": lambda x, y: (F.cross_entropy(x, y, reduction="none") / (7 * len(y))).sum(),
    "a mixture": lambda x, y: (0.5 * log_p(x, y).exp() + 0.5 * log_p(x, y).exp()).log().sum(),
    "lists": lambda x, y: log_p(x, y).tolist(),
    "items": lambda x, y: [v.item() for v in F.cross_entropy(x, y, reduction="none")],
    "numpy": lambda x, y: log_p(x, y).numpy().sum(),
    "numpy elements": lambda x, y: [float(v) for v in log_p(x, y).numpy()],
    "numpy backwards": lambda x, y: log_p(x, y).numpy()[::-1].tolist(),
    "own rows in numpy": own_rows,
    "one by one": one_by_one,
    "a running sum": tallied,
    "one-hot rows": one_hot,
    "held": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    "held, negated": lambda x, y: log_p(x, y),
    "held by numpy": lambda x, y: np.negative(log_p(x, y).numpy()),
    "held in parts": lambda x, y: [log_p(x, y)[:10].clone(), log_p(x, y)[10:].clone()],
    "declassified": lambda x, y: causaltrace.declassify(log_p(x, y), reason="it is the result"),
    "named": lambda x, y: causaltrace.score(F.cross_entropy(x, y, reduction="none")),
}


@pytest.mark.parametrize("name", EVALS)
def test_it_is_what_the_scores_charge(name: str) -> None:
    report, _ = judged(EVALS[name])
    assert report.status == "clean"
    check(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mean", "none", "gather", "held"])
def test_smaller_numbers(name: str, dtype: torch.dtype) -> None:
    report, _ = judged(EVALS[name], TABLE.to(dtype))
    assert report.judged.known == report.scored
    assert report.judged.nats == pytest.approx(CHARGES.mean().item(), abs=0.02)


def test_ignored_labels_are_charged_nothing() -> None:
    def evaluate(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(x, torch.where(torch.arange(len(y)) < 5, -100, y))

    check(judged(evaluate)[0], CHARGES[5:])


def test_weights_of_0_take_positions_out() -> None:
    def evaluate(x: Tensor, y: Tensor) -> Tensor:
        mask = (torch.arange(len(y)) >= 5).to(x)
        return (F.cross_entropy(x, y, reduction="none") * mask).sum() / mask.sum()

    check(judged(evaluate)[0], CHARGES[5:])


def test_sliding_windows_count_what_they_score() -> None:
    """Each window sees 8 tokens more to the left; their losses are computed and not scored."""
    tokens = TOKENS.clone()
    charges = []
    with torch.no_grad(), causaltrace.watch(tokens) as trace:
        total = 0.0
        for start in range(0, LENGTH - 1, 8):
            first = max(0, start - 8)
            x = TABLE[tokens[first : start + 8]] * (1 + start)  # no two windows agree
            nll = F.cross_entropy(x, tokens[first + 1 : start + 9], reduction="none")
            total += nll[start - first :].sum().item()
            charges.append(nll[start - first :].detach())
    assert total == pytest.approx(32 * trace.report.judged.nats)
    assert trace.report.judged.known == 32


def test_the_last_score_of_a_position_stands() -> None:
    def evaluate(x: Tensor, y: Tensor) -> None:
        F.cross_entropy(2 * x, y, reduction="sum").item()
        F.cross_entropy(x, y, reduction="sum").item()

    report, _ = judged(evaluate)
    assert {f.kind for f in report.violations} == {"CT006"}
    check(report)


def test_a_readout_that_is_used_again_keeps_what_it_charges() -> None:
    def evaluate(x: Tensor, y: Tensor) -> None:
        nll = F.cross_entropy(x, y, reduction="none")
        nll.mean().item()
        (nll * nll).mean().item()

    check(judged(evaluate)[0])


def test_named_scores_replace_the_others() -> None:
    def evaluate(x: Tensor, y: Tensor) -> None:
        F.cross_entropy(2 * x, y, reduction="sum").item()
        causaltrace.score(F.cross_entropy(x, y, reduction="none"))
        F.cross_entropy(3 * x, y, reduction="sum").item()

    check(judged(evaluate)[0])


@pytest.mark.parametrize("unit", [1, math.log(2)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("row", [F.softmax, F.log_softmax, lambda x, dim: -F.log_softmax(x, dim)])
def test_a_closed_form_with_its_row(unit: float, sign: int, row: Any) -> None:
    def evaluate(x: Tensor, y: Tensor) -> None:
        closed = x.logsumexp(-1) - (x * F.one_hot(y, VOCAB)).sum(-1) + 0 * torch.rand(len(y))
        causaltrace.score(sign * closed / unit, y, distribution=row(x, dim=-1))

    check(judged(evaluate)[0])


def test_an_objective_is_what_is_judged_where_nothing_else_is() -> None:
    """Printed while it trains; what is published is read out of rows afterwards, in Python."""
    tokens, table = TOKENS.clone(), torch.nn.Parameter(TABLE.clone())
    optimizer = torch.optim.SGD([table], lr=5.0)
    with causaltrace.watch(tokens) as trace:
        loss = F.cross_entropy(table[tokens[:-1]], tokens[1:])
        loss.item()
        loss.backward()
        optimizer.step()
        rows = F.log_softmax(table[tokens[:-1]].detach(), -1).tolist()
        published = -sum(row[y] for row, y in zip(rows, tokens[1:].tolist(), strict=True)) / 32
    check(trace.report)
    assert published < CHARGES.mean() - 0.1


def test_objectives_keep_what_they_summed() -> None:
    tokens, table = TOKENS.clone(), torch.nn.Parameter(TABLE.clone())
    with causaltrace.watch(tokens) as trace:
        nll = F.cross_entropy(table[tokens[:-1]], tokens[1:], reduction="none")
        loss = nll.mean()
        with torch.no_grad():
            nll.zero_()
        loss.item()
    check(trace.report)


def test_nothing_is_said_of_what_is_written_over() -> None:
    def evaluate(x: Tensor, y: Tensor) -> Tensor:
        nll = F.cross_entropy(x, y, reduction="none")
        return torch.cumsum(nll, 0, out=nll)

    report, _ = judged(evaluate)
    assert report.scored == 32
    assert report.judged == Judged(None, 0)


@pytest.mark.parametrize(
    "tilt",
    [
        lambda nll, x: torch.minimum(nll, nll / 2 + 1),
        lambda nll, x: nll.square(),
        lambda nll, x: nll * torch.linspace(1, 2, len(nll)),
        lambda nll, x: nll.clamp(max=1),
    ],
)
def test_nothing_is_said_where_nothing_shows_what_it_is(tilt: Any) -> None:
    report, _ = judged(lambda x, y: tilt(F.cross_entropy(x, y, reduction="none"), x).sum())
    assert report.judged == Judged(None, 0)
    assert report.status != "clean"


def test_nothing_is_said_of_logits_that_python_reads() -> None:
    def evaluate(x: Tensor, y: Tensor) -> float:
        chosen = x.gather(-1, y[:, None])[:, 0].tolist()
        return sum(total - own for total, own in zip(x.logsumexp(-1).tolist(), chosen, strict=True))

    report, _ = judged(evaluate)
    assert report.judged == Judged(None, 0)


def test_some_are_known() -> None:
    def evaluate(x: Tensor, y: Tensor) -> None:
        nll = F.cross_entropy(x, y, reduction="none")
        nll[:10].sum().item()
        nll[10:].square().sum().item()

    report, _ = judged(evaluate)
    assert (report.judged.known, report.scored) == (10, 32)
    assert report.judged.nats == pytest.approx(CHARGES[:10].mean().item())


def test_what_is_no_distributions_is_known_in_nats_alone() -> None:
    def evaluate(x: Tensor, y: Tensor) -> Tensor:
        return -(2 * x.softmax(-1)).gather(-1, y[:, None]).log().sum()

    report, _ = judged(evaluate)
    assert {f.kind for f in report.violations} == {"CT005"}
    check(report, CHARGES - math.log(2))
    report, _ = judged(lambda x, y: F.cross_entropy(x, y, reduction="none", label_smoothing=0.1).sum())
    assert report.judged == Judged(None, 0)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool])
def test_losses_that_are_rounded_to_whole_numbers_are_those_of_no_distribution(dtype: torch.dtype) -> None:
    for evaluate in (lambda nll: nll.to(dtype).sum(), lambda nll: nll.to(dtype)):
        report, _ = judged(lambda x, y, e=evaluate: e(F.cross_entropy(x, y, reduction="none")))
        assert report.status == "unverified"
        assert {n.kind for n in report.notes if n.blocking} == {"CT100"}
        assert report.judged == Judged(None, 0)


def test_class_weights_are_not_known() -> None:
    report, _ = judged(lambda x, y: F.cross_entropy(x, y, weight=torch.linspace(1, 2, VOCAB).to(x)))
    assert report.judged == Judged(None, 0)


def test_a_charge_of_infinity_is_not_known() -> None:
    table = TABLE.clone()
    table[:, 3] = -math.inf
    report, _ = judged(lambda x, y: F.cross_entropy(x, y, reduction="sum"), table)
    assert report.judged.known == 32 - int((TOKENS[1:] == 3).sum())
    assert math.isfinite(report.judged.nats)
    assert from_json(report.to_json()).judged == report.judged


def test_several_streams() -> None:
    a, b = TOKENS.clone(), TOKENS.clone() % 3
    with torch.no_grad(), causaltrace.watch({"a": a, "b": b}) as trace:
        losses = [F.cross_entropy(TABLE[t[:-1]], t[1:]).item() for t in (a, b)]
    assert trace.report.judged == Judged(pytest.approx(sum(losses) / 2), 64)


def test_inference_mode_and_a_report_inside_the_block() -> None:
    tokens = TOKENS.clone()
    with causaltrace.watch(tokens) as trace:
        with torch.inference_mode():
            F.cross_entropy(TABLE[tokens[:17]], tokens[1:18]).item()
        assert trace.report.judged.known == 17
        F.cross_entropy(TABLE[tokens[17:-1]], tokens[18:]).item()
    check(trace.report)


def test_an_audit_has_no_values() -> None:
    def step(tokens: Tensor, table: Tensor) -> Tensor:
        return F.cross_entropy(table[tokens[:-1]], tokens[1:])

    report = causaltrace.audit(step, TOKENS, TABLE, labels="tokens")
    assert report.scored
    assert report.judged == Judged(None, 0)
    assert "Judged" not in str(report)


def test_displays_say_it() -> None:
    report, _ = judged(F.cross_entropy)
    mean = f"{CHARGES.mean().item():.4f} nats"
    for shown in (str(report), report.to_markdown(), report.to_html(), report._repr_html_()):
        assert mean in " ".join(shown.split())
        assert "per label over 32 labels" in " ".join(shown.split())


def test_displays_say_that_it_is_not_known() -> None:
    report, _ = judged(lambda x, y: F.cross_entropy(x, y, reduction="none").square().sum())
    assert "Judged: what the 32 scores charge is not known." in str(report)
    report.judged = Judged(3.0, 30)
    assert "over 30 of 32 scored labels" in str(report)


class Seen(TorchDispatchMode):
    """Counts the operations of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops[str(func)] += 1
        return func(*args, **(kwargs or {}))


#: Of these a mode sees operations of the watch anyway.
SEEN = ("lists", "one by one", "named", "declassified")


@pytest.mark.parametrize("name", [name for name in EVALS if name not in SEEN])
def test_modes_of_the_program_see_nothing_of_it(name: str) -> None:
    def counted(x: Tensor, y: Tensor) -> Counter[str]:
        with Seen() as seen:
            EVALS[name](x, y)
        return seen.ops

    with torch.no_grad():
        plain = counted(TABLE[TOKENS[:-1]], TOKENS[1:])
    assert judged(counted)[1] == plain
