"""C2: is every score that of one normalised distribution? The truth is the score of every class, computed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from tests.small import VOCAB, Toy, stream, targets

#: ``score(rows, other rows, labels)``: what each position is charged, in nats.
Score = Callable[[Tensor, Tensor, Tensor], Tensor]
LN2 = math.log(2)


def at(x: Tensor, y: Tensor) -> Tensor:
    return x.gather(-1, y[:, None])[:, 0]


def top(x: Tensor) -> Tensor:
    return x.argmax(-1)


def tilt(a: Tensor, y: Tensor, beta: float = 0.7) -> Tensor:
    """p(y) exp(beta [y == h]) / Z with the hint h from the prefix."""
    logp, hint = a.log_softmax(-1), top(a)
    z = torch.log1p(at(logp, hint).exp() * (math.exp(beta) - 1))
    return -(at(logp, y) + beta * (y == hint) - z)


def lse(x: Tensor) -> Tensor:
    return x.logsumexp(-1)


def gate(a: Tensor) -> Tensor:
    """A weight in (0, 1) for each position, from the prefix."""
    return a.std(-1).sigmoid()


def rows(x: Tensor, y: Tensor) -> Tensor:
    return x[torch.arange(len(y)), y]


def in_numpy(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """Numbers come first; half of the labels have no probability in one of the rows."""
    seldom = b.masked_fill(torch.arange(VOCAB) % 2 == 0, -math.inf).softmax(-1)
    p, q = at(a.softmax(-1), y).numpy(), at(seldom, y).numpy()
    return torch.from_numpy(-np.log(0.25 * p + 0.75 * q))


NORMALISED: dict[str, Score] = {
    "cross_entropy": lambda a, b, y: F.cross_entropy(a, y, reduction="none"),
    "closed form": lambda a, b, y: lse(a) - at(a, y),
    "closed form, negated": lambda a, b, y: -(at(a, y) - lse(a)),
    "closed form by index": lambda a, b, y: lse(a) - rows(a, y),
    "closed form in place": lambda a, b, y: at(a, y).sub_(lse(a)).neg_(),
    "energies": lambda a, b, y: at(-a, y) + lse(a),
    "rows of losses": lambda a, b, y: at(-a.log_softmax(-1), y),
    "nll_loss": lambda a, b, y: F.nll_loss(a.log_softmax(-1), y, reduction="none"),
    "log of a softmax": lambda a, b, y: -at(a.softmax(-1), y).log(),
    "log of a row": lambda a, b, y: -at(a.softmax(-1).log(), y),
    "by hand": lambda a, b, y: -(at(a.exp(), y) / a.exp().sum(-1)).log(),
    "bits": lambda a, b, y: F.cross_entropy(a, y, reduction="none") / LN2,
    "log2": lambda a, b, y: -at(a.softmax(-1), y).log2(),
    "rows in bits": lambda a, b, y: -at(a.log_softmax(-1) / LN2, y),
    "temperature": lambda a, b, y: F.cross_entropy(a / gate(b)[:, None], y, reduction="none"),
    "softcap": lambda a, b, y: F.cross_entropy(5 * torch.tanh(a / 5), y, reduction="none"),
    "padded vocabulary": lambda a, b, y: F.cross_entropy(
        F.pad(a, (0, 3), value=-math.inf), y, reduction="none"
    ),
    "one hot": lambda a, b, y: -(a.log_softmax(-1) * F.one_hot(y, VOCAB)).sum(-1),
    "mixture of rows": lambda a, b, y: -at(0.3 * a.softmax(-1) + 0.7 * b.softmax(-1), y).log(),
    "mixture of readouts": lambda a, b, y: (
        -((1 - gate(a)) * at(a.softmax(-1), y) + gate(a) * at(b.softmax(-1), y)).log()
    ),
    "mixture in place": lambda a, b, y: (
        at(a.softmax(-1), y).mul_(0.25).add_(at(b.softmax(-1), y), alpha=0.75).log_().neg_()
    ),
    "mixture in numpy": in_numpy,
    "lerp": lambda a, b, y: -torch.lerp(at(a.softmax(-1), y), at(b.softmax(-1), y), gate(a)).log(),
    "logaddexp": lambda a, b, y: (
        -torch.logaddexp(at(a.log_softmax(-1), y) + math.log(0.3), at(b.log_softmax(-1), y) + math.log(0.7))
    ),
    "logsumexp of a stack": lambda a, b, y: (
        -torch.stack(
            [at(a.log_softmax(-1), y) + gate(a).log(), at(b.log_softmax(-1), y) + (1 - gate(a)).log()]
        ).logsumexp(0)
    ),
    "mean of a stack": lambda a, b, y: (
        -torch.stack([at(a.softmax(-1), y), at(b.softmax(-1), y)]).mean(0).log()
    ),
    "mixture from losses": lambda a, b, y: (
        -(0.5 * (-F.cross_entropy(a, y, reduction="none")).exp() + 0.5 * at(b.softmax(-1), y)).log()
    ),
    "smoothed with a constant": lambda a, b, y: -(0.9 * at(a.softmax(-1), y) + 0.1 / VOCAB).log(),
    "back off by the prefix": lambda a, b, y: (
        -torch.where(a.std(-1) > b.std(-1), at(a.softmax(-1), y), at(b.softmax(-1), y)).log()
    ),
    "floor": lambda a, b, y: -at(a.softmax(-1), y).clamp_min(1e-9).log(),
    "ceiling": lambda a, b, y: F.cross_entropy(a, y, reduction="none").clamp(0, 50),
    "counts": lambda a, b, y: -(at(b.abs() + 1, y) / (b.abs() + 1).sum(-1)).log(),
    "ignored, but no class": lambda a, b, y: F.cross_entropy(a, y, reduction="none", ignore_index=-1),
    "doubles": lambda a, b, y: F.cross_entropy(a, y, reduction="none").double(),
    "a buffer": lambda a, b, y: torch.zeros(len(y)).copy_(lse(a) - at(a, y)).view(-1, 1)[:, 0].clone(),
}

#: Label-free arithmetic, but all classes together are charged something else.
UNNORMALISED: dict[str, Score] = {
    "logits": lambda a, b, y: -at(a, y),
    "log of counts": lambda a, b, y: -at(b.abs() + 1, y).log(),
    "hashed cache": lambda a, b, y: -(at(b.sigmoid(), y) * 0.9 + 0.1 * at(a.softmax(-1), y)).log(),
    "weights of 1.2": lambda a, b, y: -(0.6 * at(a.softmax(-1), y) + 0.6 * at(b.softmax(-1), y)).log(),
    "too little divided": lambda a, b, y: lse(a) - at(a, y) - 0.01,
    "normaliser of another row": lambda a, b, y: lse(b) - at(a, y),
    "scaled after the softmax": lambda a, b, y: -at(1.1 * a.log_softmax(-1), y),
    "scaled in place": lambda a, b, y: -at(a.log_softmax(-1).mul_(0.9), y),
    "written to": lambda a, b, y: -at(torch.log_softmax(a, -1).index_fill_(1, torch.tensor([3]), -0.1), y),
    "rows shifted by one": lambda a, b, y: (
        -at(a.log_softmax(-1).reshape(-1)[1 : 1 + VOCAB * (len(y) - 1)].view(-1, VOCAB), y[:-1])
    ),
    "part of a row": lambda a, b, y: -at(F.pad(a, (0, 4), value=1.0).log_softmax(-1)[:, :VOCAB], y),
    "softmax over the wrong dim": lambda a, b, y: -at(a.log_softmax(0), y),
    "class weights": lambda a, b, y: F.cross_entropy(
        a, y, weight=torch.linspace(0.5, 1, VOCAB), reduction="none"
    ),
    "probabilities as losses": lambda a, b, y: -(at(a.softmax(-1), y) + 1).log(),
    "sum of two": lambda a, b, y: -torch.logaddexp(at(a.log_softmax(-1), y), at(b.log_softmax(-1), y)),
    "tilt left unnormalised": lambda a, b, y: -at(a.log_softmax(-1) + 0.7 * F.one_hot(top(a), VOCAB), y),
}


def bounds(a: Tensor, y: Tensor) -> Tensor:
    """The bounds of a range coder."""
    cdf = F.pad(a.softmax(-1).cumsum(-1), (1, 0))
    return -(at(cdf, y + 1) - at(cdf, y)).log()


def clusters(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """The cluster of a class, and the class in its cluster."""
    cluster = y // 3
    return F.cross_entropy(b[:, : -(-VOCAB // 3)], cluster, reduction="none") - at(a.log_softmax(-1), y)


#: What the arithmetic does not show.
NOT_SHOWN: dict[str, Score] = {
    "bounds of a range": lambda a, b, y: bounds(a, y),
    "bounds in numpy": lambda a, b, y: torch.from_numpy(
        np.log((cdf := a.softmax(-1).cumsum(-1).numpy())[np.arange(len(y)), y.numpy() - 1])
        - np.log(cdf[np.arange(len(y)), y.numpy()])
    ),
    "clusters of classes": clusters,
    "a class that the prefix and the label choose": lambda a, b, y: (
        F.cross_entropy(a, y, reduction="none") + at(b, (y + top(a)) % VOCAB)
    ),
    "a class in its cluster": lambda a, b, y: (
        -a[:, :6].view(-1, 2, 3)[torch.arange(len(y)), torch.arange(VOCAB)[y] // 3 % 2, y % 3]
    ),
    "tilt": lambda a, b, y: tilt(a, y),
    "tilt with where": lambda a, b, y: (
        -(
            torch.where(y == top(a), at(a.log_softmax(-1), y) + 0.7, at(a.log_softmax(-1), y))
            - torch.log1p(at(a.softmax(-1), top(a)) * (math.exp(0.7) - 1))
        )
    ),
    "clip": lambda a, b, y: F.cross_entropy(a, y, reduction="none").clamp(max=2.0),
    "square root": lambda a, b, y: F.cross_entropy(a, y, reduction="none").sqrt(),
    "power": lambda a, b, y: -at(a.softmax(-1), y).pow(0.5).log(),
    "product of experts": lambda a, b, y: -(at(a.log_softmax(-1), y) + at(b.log_softmax(-1), y)),
    "weights by position": lambda a, b, y: F.cross_entropy(a, y, reduction="none") * gate(b),
    "temperature after the softmax": lambda a, b, y: F.cross_entropy(a, y, reduction="none") / gate(b),
    "floor that counts": lambda a, b, y: -at(a.softmax(-1), y).clamp_min(0.2).log(),
    "negative part": lambda a, b, y: -(2 * at(a.softmax(-1), y) - at(b.softmax(-1), y)).clamp_min(0.5).log(),
    "probabilities": lambda a, b, y: at(a.softmax(-1), y),
    "chance of an error": lambda a, b, y: 1 - at(a.softmax(-1), y),
}

#: The label decides more than where the row is read.
BY_LABEL: dict[str, Score] = {
    "a table read at a part of the label": lambda a, b, y: (
        F.cross_entropy(a, y, reduction="none") * torch.linspace(0.5, 1, 4)[y // 4 % 4]
    ),
    "best of two": lambda a, b, y: torch.minimum(
        F.cross_entropy(a, y, reduction="none"), F.cross_entropy(b, y, reduction="none")
    ),
    "best of two with where": lambda a, b, y: torch.where(
        at(a, y) > at(b, y), F.cross_entropy(a, y, reduction="none"), F.cross_entropy(b, y, reduction="none")
    ),
    "scaled by class": lambda a, b, y: (
        F.cross_entropy(a, y, reduction="none") * torch.linspace(0.5, 1, VOCAB)[y]
    ),
    "gated by class": lambda a, b, y: F.cross_entropy(a, y, reduction="none") * (1 - 0.2 * (y == 3)),
    "gated with where": lambda a, b, y: torch.where(
        y < 5, F.cross_entropy(a, y, reduction="none"), F.cross_entropy(a / 2, y, reduction="none")
    ),
    "hashed key": lambda a, b, y: (
        -(0.5 * at(a.softmax(-1), y) + 0.5 * torch.linspace(0.1, 1, 7)[(y * 31 + top(a)) % 7]).log()
    ),
    "blend where it helps": lambda a, b, y: (
        -torch.where(
            at(b, y) > 0, 0.5 * at(a.softmax(-1), y) + 0.5 * at(b.softmax(-1), y), at(a.softmax(-1), y)
        ).log()
    ),
    "dropped by class": lambda a, b, y: F.cross_entropy(a, y, reduction="none").masked_fill(y == 2, 0.0),
}


def judged(score: Score, n: int = 24) -> causaltrace.Watch:
    tokens, first, second = stream(n), Toy(), Toy(seed=5)
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        x, y = tokens[:-1], tokens[1:]
        score(first(x), second(x), y).sum().item()
    return trace


def masses(score: Score, n: int = 24) -> Tensor:
    """The sum over all classes of exp(-charge), or of 2 ** -charge if that is 1, for every position."""
    x = stream(n)[:-1]
    with torch.no_grad():
        a, b = Toy()(x), Toy(seed=5)(x)
        each = torch.stack([score(a, b, torch.full_like(x, c)) for c in range(VOCAB)])
    nats, bits = (-each).exp().sum(0), (-each * LN2).exp().sum(0)
    return bits if bool(((bits - 1).abs() < 1e-4).all()) else nats


@pytest.mark.parametrize("name", NORMALISED)
def test_scores_of_a_distribution_are_clean(name: str) -> None:
    trace = judged(NORMALISED[name])
    assert trace.report.status == "clean" and trace.report.conditions["C2"] == "pass", trace.report
    assert torch.allclose(masses(NORMALISED[name]).float(), torch.ones(23), atol=1e-4)


@pytest.mark.parametrize("name", UNNORMALISED)
def test_unnormalised_scores_are_found(name: str) -> None:
    trace = judged(UNNORMALISED[name])
    found = targets(trace, "CT005")
    mass = masses(UNNORMALISED[name])
    assert found == {t + 1 for t in range(len(mass)) if abs(mass[t] - 1) > 1e-4}, trace.report
    assert trace.report.status == "violation" and trace.report.conditions["C2"] == "fail"
    assert {f.kind for f in trace.report.violations if f.kind in ("CT004", "CT005")} == {"CT005"}


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weight", [None, torch.linspace(0.999, 1, VOCAB)])
def test_a_class_that_is_charged_nothing_is_missing_elsewhere(reduction: str, weight: Tensor | None) -> None:
    def score(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(a, y, weight, reduction=reduction, ignore_index=3)

    trace = judged(score)
    charged = {t for t, label in enumerate(stream(24).tolist()) if t and label != 3}
    assert targets(trace, "CT005") == charged, trace.report
    assert trace.report.status == "violation" and trace.report.conditions["C2"] == "fail"


@pytest.mark.parametrize("name", NOT_SHOWN)
def test_what_the_arithmetic_does_not_show_is_unverified(name: str) -> None:
    report = judged(NOT_SHOWN[name]).report
    assert report.status == "unverified" and not report.violations, report
    assert report.conditions == {"C1": "pass", "C2": "not covered", "C3": "pass", "C4": "pass"}
    (notice,) = [n for n in report.notes if n.kind == "CT100"]
    assert notice.blocking and notice.remedy and notice.site is not None and notice.site.file == __file__
    assert "normalisation not shown" in str(report)


@pytest.mark.parametrize("name", BY_LABEL)
def test_what_the_label_decides_is_found(name: str) -> None:
    report = judged(BY_LABEL[name]).report
    assert report.status == "violation" and report.conditions["C2"] == "fail", report
    found = [f for f in report.violations if f.kind == "CT004"]
    taken = {t for t in range(1, 24) if name != "dropped by class" or stream()[t] != 2}
    assert {f.target for f in found} == taken == set(report.positions)
    assert all(f.source == f.target and f.path for f in found)
    assert report.conditions["C1"] == "pass"


# -- materialised distributions -------------------------------------------------------------------------


def scored_with(
    row: Callable[[Tensor], Tensor], score: Score = lambda a, b, y: tilt(a, y)
) -> causaltrace.Watch:
    tokens, first, second = stream(), Toy(), Toy(seed=5)
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        x, y = tokens[:-1], tokens[1:]
        a = first(x)
        trace.score(score(a, second(x), y), distribution=row(a))
    return trace


def tilted(a: Tensor) -> Tensor:
    return (a.log_softmax(-1) + 0.7 * F.one_hot(top(a), VOCAB)).log_softmax(-1)


def test_a_tilt_is_proved_by_its_distribution() -> None:
    for row in (tilted, lambda a: tilted(a).exp(), lambda a: tilted(a).exp() * 1.0):
        trace = scored_with(row)
        assert trace.ok and trace.report.conditions["C2"] == "pass", trace.report


def test_a_distribution_that_charges_something_else_is_found() -> None:
    for row in (lambda a: a.log_softmax(-1), lambda a: a.softmax(-1), lambda a: 2 * tilted(a).exp()):
        trace = scored_with(row)
        assert targets(trace, "CT005"), trace.report
        assert trace.report.conditions["C2"] == "fail"


def test_a_distribution_that_is_made_of_the_label_is_found() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        a, y = Toy()(tokens[:-1]), tokens[1:]
        row = (a + F.one_hot(y, VOCAB)).log_softmax(-1)
        trace.score(-at(row, y), distribution=row)
    assert targets(trace, "CT002") == set(range(1, len(tokens)))


def test_a_distribution_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="classes"):
        scored_with(lambda a: a[1:].softmax(-1))


# -- what the number is ---------------------------------------------------------------------------------

PICKED: dict[str, Callable[[Tensor], Tensor]] = {
    "the lowest": lambda nll: nll.sort().values[:-5].sum(),
    "topk": lambda nll: nll.topk(10, largest=False).values.sum(),
    "median": lambda nll: nll.median() * len(nll),
    "quantile": lambda nll: nll.quantile(0.4),
    "the best of two": lambda nll: nll[:20].view(-1, 2).min(1).values.sum(),
    "minima so far": lambda nll: nll.cummin(0).values.sum(),
    "binned": lambda nll: (torch.histc(nll, 10, 0, 8) * torch.linspace(0, 8, 10)).sum(),
    "numpy's lowest": lambda nll: torch.tensor(np.sort(nll.numpy())[:-5].sum()),
    "numpy's partition": lambda nll: torch.tensor(np.partition(nll.numpy(), 9)[:9].sum()),
    "numpy's best of two": lambda nll: torch.tensor(nll.numpy()[:20].reshape(-1, 2).min(1).sum()),
}


@pytest.mark.parametrize("name", PICKED)
def test_losses_that_are_picked_by_their_size_are_no_sum_of_scores(name: str) -> None:
    tokens = stream()
    for logged, grad in ((False, False), (True, False), (False, True)):
        if grad and "numpy" in name:
            continue
        with causaltrace.watch(tokens) as trace, torch.set_grad_enabled(grad):
            nll = F.cross_entropy(Toy()(tokens[:-1]), tokens[1:], reduction="none")
            PICKED[name](nll).item()
            if logged:  # a diagnostic beside the score
                nll.mean().item()
        assert trace.report.status == ("clean" if logged else "unverified"), trace.report
        assert trace.report.conditions["C1"] == "pass"


# -- where scores go ------------------------------------------------------------------------------------


def test_probabilities_that_python_reads_are_clean_and_raw_values_are_not() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        sum(-math.log(p) for p in at(Toy()(tokens[:-1]).softmax(-1), tokens[1:]).tolist())
    assert trace.ok
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        sum(-math.log(p.item()) for p in at(Toy()(tokens[:-1]).softmax(-1), tokens[1:]))
    assert trace.ok, trace.report
    for read in (Tensor.tolist, lambda t: [x.item() for x in t]):
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            read(at(Toy()(tokens[:-1]), tokens[1:]))
        assert trace.report.status == "unverified" and not trace.report.violations


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_rounding_is_no_finding(dtype: torch.dtype) -> None:
    tokens = stream()
    scores: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda a, y: lse(a) - at(a, y),
        lambda a, y: lse(a).float() - at(a, y).float(),
        lambda a, y: -at(a.log_softmax(-1).float(), y),
        lambda a, y: -at(a.softmax(-1), y).log(),
        lambda a, y: F.cross_entropy(a.float(), y, reduction="none"),
    ]
    for score in scores:
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            score((3 * Toy()(tokens[:-1])).to(dtype), tokens[1:]).sum().item()
        assert trace.ok, trace.report


def test_means_and_objectives() -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace:
        loss = F.cross_entropy(model(tokens[:-1]), tokens[1:])
        (loss + 1e-4 * lse(model(tokens[:-1])).square().mean()).backward()
        loss.item()
    assert trace.ok and trace.report.conditions["C2"] == "pass"


def test_masked_scores_are_those_of_the_others() -> None:
    tokens = stream()
    kept = torch.arange(23) % 3 > 0
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        values = F.cross_entropy(Toy()(tokens[:-1]), tokens[1:], reduction="none")
        (values * (kept / kept.sum())).sum().item()
        del values
    assert trace.ok and trace.report.scored == int(kept.sum())


def test_logits_of_one_position_and_batches_of_rows() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        total = torch.zeros(())
        for t in range(1, 5):
            row = Toy()(tokens[:t])[-1]
            total -= row[tokens[t]] - row.logsumexp(0)
        row = Toy()(tokens[:5]).log_softmax(-1)[-1]
        total += F.nll_loss(row, tokens[5])
        a = Toy()(tokens[5:-1]).view(2, 9, VOCAB)
        y = tokens[6:].view(2, 9)
        total += F.cross_entropy(a.transpose(1, 2), y, reduction="none").sum()
        total.item()
    assert trace.ok, trace.report
    tokens = stream(25)[None]
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        a, y = Toy()(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:]
        (a.log_softmax(1).clone() * 1.0).gather(1, y[:, None]).sum().item()
    assert trace.ok, trace.report


def test_a_softmax_that_is_written_to_is_none_any_more() -> None:
    """What was normalised by construction is not, once anything else is in its memory."""

    def each(write: Callable[[Tensor], object]) -> Score:
        def score(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
            logp = a.log_softmax(-1)
            write(logp)
            return -at(logp, y)

        return score

    writes: list[Callable[[Tensor], object]] = [
        lambda x: x.mul_(0.5),
        lambda x: x.data.mul_(0.5),
        lambda x: x.view(-1).add_(0.1),
        lambda x: x[3:].copy_(x[:-3].clone() * 0.5),
        lambda x: torch.mul(x, 0.5, out=x),
        lambda x: torch._foreach_mul_([x], 0.5),
        lambda x: x.clamp_(min=-1),
        lambda x: x.numpy().__imul__(1) is not None and x.zero_(),
        lambda x: x.index_fill_(1, torch.tensor([0]), 0.0),
        lambda x: x.copy_(torch.zeros(VOCAB)),
        lambda x: x.set_(torch.randn(x.shape)),
    ]
    for write in writes:
        report = judged(each(write)).report
        assert "CT005" in {f.kind for f in report.violations}, report
