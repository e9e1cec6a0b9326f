"""Graphs that hold backward passes are judged as the functions that they were made of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import causaltrace
from causaltrace.report.model import Report
from causaltrace.static.passes import passes
from tests.flips import CASES
from tests.static import AUDITED


def verdict(report: Report) -> tuple[object, ...]:
    found = {(f.kind, f.target, f.source, f.orders) for f in report.violations}
    return report.status, list(report.positions), list(report.lags), found


def captured(
    fn: Callable[[Tensor], object], tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> fx.GraphModule:
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "item", lambda t: t)  # numbers do not leave the graph
        return make_fx(fn)(tokens)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in AUDITED if name != "warmup_restored"])
def test_an_example_as_a_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm-up makes deep copies, of which torch can make no graph."""
    case = CASES[name]
    net, other = case.make_model(), case.make_model()
    graph = captured(lambda tokens: case.evaluate(net, tokens, case.config), case.tokens, monkeypatch)
    function = causaltrace.audit(lambda tokens: case.evaluate(other, tokens, case.config), case.tokens)
    assert verdict(causaltrace.audit(graph, case.tokens)) == verdict(function)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids))


def nll(net: nn.Module, weights: dict[str, Tensor], ids: Tensor, reduction: str = "sum") -> Tensor:
    logits = torch.func.functional_call(net, weights, (ids[:-1],))
    return F.cross_entropy(logits, ids[1:], reduction=reduction)


def fitted(net: nn.Module, ids: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Weights after a step, its loss, and the size of its gradients."""
    weights = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    loss = nll(net, weights, ids)
    grads = torch.autograd.grad(loss, list(weights.values()))
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    new = {name: p.detach() - 0.1 * g / norm for (name, p), g in zip(weights.items(), grads, strict=True)}
    return new, loss, norm


def train_first(net: nn.Module, ids: Tensor) -> Tensor:
    return nll(net, fitted(net, ids)[0], ids)


def with_its_loss(net: nn.Module, ids: Tensor) -> tuple[Tensor, ...]:
    new, loss, norm = fitted(net, ids)
    return nll(net, new, ids), loss.detach(), norm


def score_first(net: nn.Module, ids: Tensor) -> Tensor:
    before = nll(net, dict(net.named_parameters()), ids[:5]).detach()
    return before + nll(net, fitted(net, ids[:5])[0], ids[4:])


def only_a_loss(net: nn.Module, ids: Tensor) -> Tensor:
    return fitted(net, ids)[1].detach()


STEPS = {"train_first": train_first, "with_its_loss": with_its_loss, "score_first": score_first,
         "only_a_loss": only_a_loss}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_step_without_anything_in_place(name: str) -> None:
    net, ids = Net(), torch.zeros(9, dtype=torch.long)

    def step(ids: Tensor) -> object:
        return STEPS[name](net, ids)

    graph = causaltrace.audit(make_fx(step)(ids), ids)
    assert graph.status == ("violation" if name in ("train_first", "with_its_loss") else "clean")
    function = causaltrace.audit(step, ids)
    assert (graph.status, sorted(graph.positions)) == (function.status, sorted(function.positions))


def test_ones_are_no_backward_pass() -> None:
    net = Net()

    def ahead(ids: Tensor) -> Tensor:
        losses = F.cross_entropy(net(ids[:-1]).roll(-1, 0), ids[1:], reduction="none").sum()
        return losses * torch.ones_like(losses)

    ids = torch.zeros(9, dtype=torch.long)
    graph = make_fx(ahead)(ids)
    assert not any(passes(graph.graph))
    assert len(causaltrace.audit(graph, ids).positions) == 8
