"""A tape has every operation of its region, and makes again what the region made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.graph.tape import Tape
from examples import slot_context
from tests import flips
from tests.flips import CASES
from tests.small import Toy, applied, nll, stream


def taped(work: Callable[..., Any], *args: Any, limit: int = 10_000) -> Tape:
    tokens = stream(9)
    with causaltrace.watch(tokens) as trace, trace.tape(limit) as tape:
        work(tokens, *args)
    return tape


def check(tape: Tape) -> None:
    """The same twice, since a replay must not write to the inputs that are kept."""
    for _ in range(2):
        again = tape.replay()
        assert len(again) == len(tape.results) > 0
        for a, b in zip(again, tape.results, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_a_whole_step_of_training_runs_again() -> None:
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def work(tokens: Tensor) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            nll(model, tokens).mean().backward()
            optimizer.step()

    tape = taped(work)
    check(tape)
    assert tape.complete and any(torch.equal(t, model.head) for t in tape.results)
    phases = {node.meta["site"].phase for node in tape.graph.nodes if "site" in node.meta}
    assert phases >= {"forward", "backward", "update"}


def test_an_example_runs_again() -> None:
    case = CASES["slot_context_batch4"]
    model, tokens = case.make_model(), case.tokens.clone()
    with flips.single_threaded(), causaltrace.watch(tokens) as trace, trace.tape() as tape:
        value = slot_context.evaluate(model, tokens, case.config)
    with flips.single_threaded():
        check(tape)
    assert any(abs(t.sum().item() / 43 - value) < 1e-12 for t in tape.results if t.ndim == 0)


def test_writes_through_views_are_seen_by_all_that_share_the_memory() -> None:
    outside = torch.zeros(4, 6)
    row, column = outside[1], outside[:, 2:4]

    def work(tokens: Tensor) -> None:
        row.add_(tokens[:6].float())
        column.mul_(2)
        outside.t()[0].fill_(7.0)
        inside = torch.zeros(5)
        view = inside[1:3]
        inside += 1
        (view * 3 + row[:2]).sum()

    tape = taped(work)
    check(tape)
    assert len([n for n in tape.graph.nodes if n.op == "placeholder"]) == len(tape.inputs) == 2


def test_several_results_lists_and_out_arguments() -> None:
    def work(tokens: Tensor) -> None:
        x = torch.stack([tokens.float(), -tokens.float()])
        values, places = x.max(0)
        first, second = torch.split(values, [4, 5])
        torch._foreach_mul_([first, second], 2.0)
        into = torch.empty(4)
        torch.add(first, second[:4], out=into)
        torch.unbind(x * places)

    check(taped(work))


def test_random_numbers_come_in() -> None:
    def work(tokens: Tensor) -> None:
        x = torch.empty(9).normal_() + torch.rand(9)
        F.dropout(x * tokens, 0.5).sum()

    check(taped(work))


def test_operators_that_call_functions_come_in() -> None:
    check(taped(lambda tokens: applied(lambda t: t * 2, (tokens.float(),)) + 1))


def test_inference_mode_has_composites_as_they_are() -> None:
    model = Toy().requires_grad_(False)

    def work(tokens: Tensor) -> None:
        with torch.inference_mode():
            F.linear(model(tokens[:-1]), torch.ones(2, 13)).sum()

    check(taped(work))


def test_nodes_know_their_line_and_their_latest_label() -> None:
    def work(tokens: Tensor) -> None:
        later = tokens[1:].float() * 2.0
        later.cumsum(0)

    tape = taped(work)
    (product,) = [n for n in tape.graph.nodes if n.target is torch.ops.aten.mul.Tensor]
    (running,) = [n for n in tape.graph.nodes if n.target is torch.ops.aten.cumsum.default]
    assert product.meta["site"].source == "later = tokens[1:].float() * 2.0"
    assert running.meta["support"].tolist() == list(range(1, 9))
    text = str(tape)
    assert "cumsum" in text and "x_8" in text and "test_tape.py" in text


def test_the_tape_ends_at_its_limit_and_says_so() -> None:
    def work(tokens: Tensor) -> None:
        x = torch.zeros(9)
        for _ in range(50):
            x += tokens

    tape = taped(work, limit=20)
    check(tape)
    assert not tape.complete and "after the limit of 20" in str(tape)
    assert len([n for n in tape.graph.nodes if n.op == "call_function"]) == 20
    whole = taped(work)
    assert whole.complete and torch.equal(whole.results[-1], 50.0 * stream(9))


def test_the_verdict_is_that_of_a_watch_without_tape() -> None:
    def run(with_tape: bool) -> causaltrace.Report:
        tokens, model = stream(9), Toy()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with causaltrace.watch(tokens) as trace:
            if with_tape:
                with trace.tape():
                    nll(model, tokens).mean().backward()
            else:
                nll(model, tokens).mean().backward()
            optimizer.step()
            with torch.no_grad():
                nll(model, tokens).sum()
        return trace.report

    plain, recorded = run(False), run(True)
    assert [(f.kind, f.target, f.source) for f in plain.violations] == [
        (f.kind, f.target, f.source) for f in recorded.violations
    ]
    assert plain.escapes == recorded.escapes and plain.status == recorded.status


def test_a_tape_needs_an_open_watch() -> None:
    trace = causaltrace.watch(stream(9))
    with pytest.raises(RuntimeError, match="not open"):
        trace.tape()
