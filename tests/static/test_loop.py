"""Loops by induction, against watches of the same loops over several steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from tests.flips import CASES as EXAMPLES
from tests.static import AUDITED

CLASSES, STEPS = 11, 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(CLASSES, 8), nn.Linear(8, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).cumsum(-2))


def score(net: Any, ids: Tensor, first: int = 0) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(net(ids[:-1])[first:], ids[1 + first :], reduction="sum")


def train(net: Any, optimizer: Any, ids: Tensor, clear: bool = True) -> None:
    if clear:
        optimizer.zero_grad()
    F.cross_entropy(net(ids[:-1]), ids[1:]).backward()
    optimizer.step()


def sgd() -> list[Any]:
    net = Net()
    return [net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)]


def adamw() -> list[Any]:
    net = Net()
    return [net, torch.optim.AdamW(net.parameters(), lr=0.1)]


def averaged() -> list[Any]:
    net, optimizer = sgd()
    return [net, optimizer, copy.deepcopy(net)]


def cached() -> dict[str, Any]:
    return {"net": Net(), "cache": torch.zeros(8)}


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Any], int, int, str]] = {}


def case(make: Callable[[], Any], length: int, stride: int, expected: str) -> Callable[[Any], Any]:
    def register(fn: Any) -> Any:
        CASES[f"{fn.__name__}-{make.__name__}"] = make, fn, length, stride, expected
        return fn

    return register


@case(sgd, 9, 8, "clean")
@case(adamw, 9, 8, "clean")
def score_first(state: Any, ids: Tensor) -> Tensor:
    nll = score(state[0], ids)
    train(*state, ids)
    return nll


@case(sgd, 9, 8, "violation")
@case(adamw, 9, 8, "violation")
def train_first(state: Any, ids: Tensor) -> Tensor:
    train(*state, ids)
    return score(state[0], ids)


@case(adamw, 9, 8, "clean")
def several_epochs(state: Any, ids: Tensor) -> Tensor:
    nll = score(state[0], ids)
    for _ in range(3):
        train(*state, ids)
    return nll


@case(sgd, 9, 7, "violation")
@case(adamw, 9, 7, "violation")
def trains_on_the_next_label(state: Any, ids: Tensor) -> Tensor:
    nll = score(state[0], ids[:-1])
    train(*state, ids)
    return nll


@case(sgd, 9, 4, "clean")
def window_with_context(state: Any, ids: Tensor) -> Tensor:
    nll = score(state[0], ids, first=4)
    train(*state, ids)
    return nll


@case(sgd, 9, 4, "clean")
def context_slot(state: Any, ids: Tensor) -> Tensor:
    net = state[0].requires_grad_(False)
    delta = torch.zeros(CLASSES, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy((net(ids[:-1]) + delta)[:4], ids[1:5]).backward()
        optimizer.step()
    return score(lambda x: net(x) + delta, ids, first=4)


@case(sgd, 9, 8, "violation")
def standard_slot(state: Any, ids: Tensor) -> Tensor:
    net = state[0].requires_grad_(False)
    delta = torch.zeros(CLASSES, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=0.1)
    optimizer.zero_grad()
    F.cross_entropy(net(ids[:-1]) + delta, ids[1:]).backward()
    optimizer.step()
    return score(lambda x: net(x) + delta, ids)


@case(averaged, 9, 8, "clean")
def average_after(state: Any, ids: Tensor) -> Tensor:
    nll = score(state[2], ids)
    train(*state[:2], ids)
    with torch.no_grad():
        for old, new in zip(state[2].parameters(), state[0].parameters(), strict=True):
            old.lerp_(new, 0.1)
    return nll


@case(averaged, 9, 7, "clean")
def average_of_a_look_ahead_that_comes_too_late(state: Any, ids: Tensor) -> Tensor:
    nll = score(state[2], ids[:-1])
    with torch.no_grad():
        for old, new in zip(state[2].parameters(), state[0].parameters(), strict=True):
            old.lerp_(new, 0.1)
    train(*state[:2], ids)
    return nll


@case(adamw, 9, 7, "clean")
def a_look_ahead_that_no_score_sees(state: Any, ids: Tensor) -> Tensor:
    nll = score(state[0], ids[:-1])
    twin = copy.deepcopy(state[0])
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), ids)
    return nll


def adapted(state: Any, ids: Tensor, before: bool) -> Tensor:
    new = state["net"].embedding(ids[1:]).mean(0).detach()
    if before:
        state["cache"] = state["cache"] + new
    nll = score(lambda x: state["net"](x) + state["cache"].sum(), ids)
    if not before:
        state["cache"] = state["cache"] + new
    return nll


@case(cached, 9, 8, "clean")
def cache_after(state: Any, ids: Tensor) -> Tensor:
    return adapted(state, ids, False)


@case(cached, 9, 8, "violation")
def cache_before(state: Any, ids: Tensor) -> Tensor:
    return adapted(state, ids, True)


@case(sgd, 9, 8, "clean")
def accumulates_gradients(state: Any, ids: Tensor) -> Tensor:
    nll = score(state[0], ids)
    train(*state, ids, clear=False)
    return nll


@case(sgd, 9, 7, "violation")
def accumulates_ahead(state: Any, ids: Tensor) -> Tensor:
    state[1].step()  # with gradients that the step before left
    nll = score(state[0], ids[:-1])
    state[1].zero_grad()
    F.cross_entropy(state[0](ids[:-1]), ids[1:]).backward()
    return nll


@pytest.mark.parametrize("name", CASES)
def test_a_loop_is_judged_as_in_a_watch(name: str) -> None:
    make, step, length, stride, expected = CASES[name]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(CLASSES, (length + stride * (STEPS - 1),), generator=generator)
    state = make()
    with causaltrace.watch(tokens) as trace:
        for k in range(STEPS):
            step(state, tokens[k * stride : k * stride + length])
    unrolled = causaltrace.audit_loop(step, make(), tokens[:length], steps=STEPS)
    proved = causaltrace.audit_loop(step, make(), tokens[:length])
    found, seen, all_steps = (
        {(f.kind, f.target, f.source) for f in r.violations} for r in (unrolled, trace.report, proved)
    )
    assert seen <= found and unrolled.positions == trace.report.positions
    assert proved.status == unrolled.status == trace.report.status == expected
    for report in (proved, unrolled):
        assert any("any number of steps" in n.message for n in report.notes)
    local = {(kind, target % stride) for kind, target, _ in all_steps}
    assert {(kind, target % stride) for kind, target, _ in seen} <= local


@pytest.mark.parametrize("name", AUDITED)
def test_an_example_as_the_step_of_a_loop(name: str) -> None:
    example = EXAMPLES[name]

    def step(net: nn.Module, ids: Tensor) -> float:
        return example.evaluate(net, ids, example.config)

    report = causaltrace.audit_loop(step, example.make_model(), example.tokens)
    assert report.status == ("clean" if example.legal else "violation")


def ids(*shape: int) -> Tensor:
    return torch.empty(shape or (9,), dtype=torch.long, device="meta")


def test_all_is_put_back() -> None:
    state = adamw()
    causaltrace.audit_loop(score_first, state, ids())
    assert not state[1].state and all(p.grad is None for p in state[0].parameters())
    state = cached()
    held = state["cache"]
    causaltrace.audit_loop(cache_after, state, ids())
    assert state["cache"] is held and not held.any()


def test_a_state_that_is_returned() -> None:
    net = Net()

    def step(cache: Tensor, ids: Tensor, ahead: bool) -> tuple[Tensor, Tensor]:
        last = ids if ahead else ids[:-1]
        nll = score(lambda x: net(x) + cache.sum(), ids[:-1])
        return cache + net.embedding(last).detach().sum(0), nll

    assert causaltrace.audit_loop(step, torch.zeros(8), ids(), False).status == "clean"
    assert causaltrace.audit_loop(step, torch.zeros(8), ids(), True).status == "violation"


def test_what_is_not_declared_is_named() -> None:
    net, optimizer = sgd()
    kept: list[Tensor] = []
    hidden = torch.zeros(8)

    def trains(_: Any, ids: Tensor) -> Tensor:
        return score_first([net, optimizer], ids)

    def writes(_: Any, ids: Tensor) -> Tensor:
        nll = score(lambda x: net(x) + hidden.sum(), ids[:-1])
        hidden.copy_(net.embedding(ids[-1]).detach())
        return nll

    def keeps(_: Any, ids: Tensor) -> Tensor:
        nll = score(lambda x: net(x) + sum(k.sum() for k in kept), ids[:-1])
        kept.append(net.embedding(ids).detach())
        return nll

    class Elsewhere:
        __slots__ = ("held",)

    elsewhere = Elsewhere()

    def hides(_: Any, ids: Tensor) -> Tensor:
        nll = score(net, ids)
        elsewhere.held = net.embedding(ids).detach()  # type: ignore[attr-defined]
        return nll

    for step, expected, name in (
        (trains, "clean", "net.embedding.weight"),
        (writes, "violation", "hidden"),
        (keeps, "violation", "kept[0]"),
        (hides, "unverified", "out of reach of the state"),
    ):
        report = causaltrace.audit_loop(step, None, ids())
        assert report.status == expected, step.__name__
        assert any(name in n.message for n in report.notes), step.__name__
    assert not kept and not hidden.any()


def test_a_state_that_grows() -> None:
    def step(state: dict[str, Any], ids: Tensor) -> Tensor:
        nll = score(lambda x: state["net"](x) + state["cache"].sum(), ids)
        state["cache"] = torch.cat((state["cache"], state["net"].embedding(ids).detach().mean(1)))
        return nll

    report = causaltrace.audit_loop(step, cached(), ids())
    assert report.status == "unverified"
    assert any("state['cache'] grows to" in n.message for n in report.notes)
    report = causaltrace.audit_loop(step, cached(), ids(), steps=5)
    assert report.status == "clean" and any("a loop of 5 steps" in n.message for n in report.notes)


def test_a_leak_that_takes_several_steps() -> None:
    def step(state: dict[str, Any], ids: Tensor) -> Tensor:
        nll = score(lambda x: state["net"](x) + state["cache"][0], ids[:-4])
        state["cache"] = torch.cat((state["cache"][1:], state["net"].embedding(ids[-1:])[0, :1].detach()))
        return nll

    def state(size: int) -> dict[str, Any]:
        return {"net": Net(), "cache": torch.zeros(size)}

    assert causaltrace.audit_loop(step, state(1), ids(7)).status == "violation"  # two scored, three ahead
    assert causaltrace.audit_loop(step, state(2), ids(7)).status == "violation"
    assert causaltrace.audit_loop(step, state(6), ids(7)).status == "clean"  # passed when it is used


def test_values_that_change_are_not_known() -> None:
    def step(state: dict[str, Any], ids: Tensor) -> Tensor:
        late = (state["count"] > 2).float()
        nll = score(lambda x: state["net"](x) + state["net"](x).roll(-1, 0) * late, ids)
        state["count"] += 1
        return nll

    assert causaltrace.audit_loop(step, {"net": Net(), "count": torch.zeros(())}, ids()).status == "violation"


def test_numbers_that_change_are_named() -> None:
    def step(state: dict[str, Any], ids: Tensor) -> Tensor:
        state["turn"] += 1
        return score(state["net"], ids)

    report = causaltrace.audit_loop(step, {"net": Net(), "turn": 0}, ids())
    assert report.status == "clean"
    assert any("state['turn']" in n.message for n in report.notes)


def test_inputs_and_targets_apart() -> None:
    net = Net()

    def step(_: Any, inputs: Tensor, targets: Tensor, ahead: int) -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(net(inputs).roll(-ahead, 0), targets, reduction="sum")

    places = {"inputs": 0, "targets": 1}
    for ahead, expected in ((0, "clean"), (1, "violation")):
        report = causaltrace.audit_loop(step, None, ids(8), ids(8), ahead, labels=places)
        assert report.status == expected
    with pytest.raises(ValueError, match="several inputs hold integers"):
        causaltrace.audit_loop(step, None, ids(8), ids(8), 0)


def test_rows_that_go_on() -> None:
    def step(state: Any, ids: Tensor) -> Tensor:
        net, optimizer = state
        optimizer.zero_grad()
        nll = F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        nll.mean().backward()
        optimizer.step()
        return nll.detach().sum()

    assert causaltrace.audit_loop(step, sgd(), ids(3, 9), documents=False).status == "clean"
    apart = causaltrace.audit_loop(step, sgd(), ids(3, 9), documents=True)
    assert apart.status == "violation" and {f.orders for f in apart.violations} == {("stream",)}
    assert causaltrace.audit_loop(step, sgd(), ids(3, 9)).status == "unverified"


def test_logits_of_a_step() -> None:
    def step(state: dict[str, Any], ids: Tensor, ahead: bool) -> Tensor:
        logits = state["net"](ids) + state["cache"].sum()
        state["cache"] = state["net"].embedding(ids if ahead else ids[:-1]).detach().sum(0)
        return logits

    assert causaltrace.audit_loop(step, cached(), ids(), False).status == "clean"
    assert causaltrace.audit_loop(step, cached(), ids(), True, stride=7).status == "violation"


def test_so_many_steps() -> None:
    for steps, words in (
        (1, "for a loop of 1 step of these shapes"),
        (3, "for a loop of 3 steps, and for any number of steps, of these shapes"),
        (None, "for any number of steps of these shapes"),
    ):
        report = causaltrace.audit_loop(score_first, sgd(), ids(), steps=steps)
        assert report.status == "clean" and words in report.notes[0].message


def test_usage() -> None:
    with pytest.raises(ValueError, match="order must be"):
        causaltrace.audit_loop(score_first, sgd(), ids(), order="x")
    with pytest.raises(ValueError, match="steps must be a positive number"):
        causaltrace.audit_loop(score_first, sgd(), ids(), steps=0)
    with pytest.raises(ValueError, match="no input holds labels"):
        causaltrace.audit_loop(score_first, sgd(), torch.zeros(9))
    with pytest.raises(ValueError, match="labels name 'x'"):
        causaltrace.audit_loop(score_first, sgd(), ids(), labels="x")
    with pytest.raises(TypeError, match="step must be a function"):
        causaltrace.audit_loop(3, sgd(), ids())
    with pytest.raises(causaltrace.AuditError, match=r"test_loop\.py:\d+: "):
        causaltrace.audit_loop(lambda s, i: score(s[0], i) if i.sum() > 3 else None, sgd(), ids())
