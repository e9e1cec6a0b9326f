"""Copies of the labels that were made before the watch opened."""

from __future__ import annotations

import gc
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.report.model import Notice, Report
from tests.small import VOCAB, Toy, nll, stream


def watched(tokens: Tensor) -> Report:
    """A legal eval."""
    model = Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        nll(model, tokens).sum().item()
    return trace.report


def told(report: Report) -> list[Notice]:
    return [n for n in report.notes if n.kind == "CT102"]


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held


def waiting(held: Any) -> Iterator[Any]:
    yield held


def closed_over(held: Any) -> Callable[[], Any]:
    return lambda: held


def as_default(held: Any) -> Callable[[], Any]:
    def read(held: Any = held) -> Any:
        return held

    return read


PLAIN: dict[str, Callable[[Tensor], Any]] = {
    "list": Tensor.tolist,
    "tuple": lambda t: tuple(t.tolist()),
    "deque": lambda t: deque(t.tolist()),
    "dict": lambda t: dict(enumerate(t.tolist())),
    "floats": lambda t: t.float().tolist(),
    "numpy numbers": lambda t: list(t.numpy().copy()),
    "array.array": lambda t: array("i", t.tolist()),
    "bytes": lambda t: t.numpy().tobytes(),
    "short bytes": lambda t: bytes(t.tolist()),
    "bytearray": lambda t: bytearray(t.int().numpy().tobytes()),
    "numpy view": Tensor.numpy,
    "numpy part": lambda t: t.numpy()[3:5],
    "numpy copy": lambda t: t.numpy().copy(),
    "numpy of uint16": lambda t: t.numpy().astype(np.uint16),
    "numpy of float": lambda t: t.numpy().astype(np.float32),
}
HELD: dict[str, Callable[[Any], Any]] = {
    "attribute": Holder,
    "dict": lambda held: {"ids": held},
    "tuples": lambda held: ((held,), 1),
    "list": lambda held: [held],
    "generator": waiting,
    "closure": closed_over,
    "default": as_default,
    "iterator": lambda held: zip(held, held, strict=True),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_copies_are_named_and_block(kind: str) -> None:
    tokens = stream()
    held = PLAIN[kind](tokens)
    report = watched(tokens)
    (note,) = told(report)
    assert report.status == "unverified" and note.blocking and note.remedy and note.count == 1
    assert f"{type(held).__name__} 'held' in test_plain_copies" in note.message


@pytest.mark.parametrize("kind", ["list", "numpy copy"])
@pytest.mark.parametrize("way", HELD)
def test_wherever_they_are_held(way: str, kind: str) -> None:
    tokens = stream()
    held = HELD[way](PLAIN[kind](tokens))
    (note,) = told(watched(tokens))
    assert note.count == 1
    del held
    assert watched(tokens).status == "clean"


def test_a_list_of_rows_of_tokens_with_rows() -> None:
    tokens = stream().view(4, 6)
    held = tokens.tolist()
    with causaltrace.watch(tokens) as trace:
        pass
    assert len(told(trace.report)) == 1 and held


TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": Tensor.clone,
    "rows": lambda t: t.view(4, 6).clone(),
    "int32": Tensor.int,
    "uint8": lambda t: t.to(torch.uint8),
    "other order in memory": lambda t: t.view(4, 6).t().contiguous().t(),
    "same memory": lambda t: torch.from_numpy(t.numpy()),
    "float": Tensor.float,
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_have_the_labels(kind: str) -> None:
    def judged(shift: int) -> Report:
        tokens, model = stream(), Toy()
        copy = TENSORS[kind](tokens)
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            seen = F.one_hot(copy.reshape(-1).long(), VOCAB)[shift : shift + 23]
            F.cross_entropy(model(tokens[:-1]) + seen, tokens[1:], reduction="sum").item()
        return trace.report

    assert judged(0).status == "clean"
    leak = judged(1)
    assert leak.status == "violation" and {f.kind for f in leak.violations} == {"CT002"}


@pytest.mark.parametrize(
    "copy", [Tensor.clone, Tensor.int, lambda t: torch.from_numpy(t.numpy())], ids=["clone", "int", "alias"]
)
def test_copies_can_be_targets(copy: Callable[[Tensor], Tensor]) -> None:
    tokens, model = stream(), Toy()
    targets = copy(tokens)
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        F.cross_entropy(model(tokens[:-1]), targets[1:].long(), reduction="sum").item()
    assert trace.report.status == "clean" and trace.report.scored == 23


def test_all_streams_are_looked_for() -> None:
    x, y = stream(seed=1), stream(seed=2)
    copy, held = y.clone(), x.tolist()
    with causaltrace.watch({"x": x, "y": y}) as trace, torch.no_grad():
        F.cross_entropy(torch.zeros(24, VOCAB), copy, reduction="sum").item()
    assert trace.report.scored == 24 and len(told(trace.report)) == 1 and held


def test_an_array_of_an_earlier_watch_over_the_same_memory_is_followed() -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens):
        seen = tokens.numpy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        hint = torch.from_numpy(seen * 0.1)[1:, None].float()
        F.cross_entropy(model(tokens[:-1]) * hint, tokens[1:], reduction="sum").item()
    assert trace.report.status == "violation" and not told(trace.report), trace.report


OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "other values": lambda t: t.flip(0).tolist(),
    "one other value": lambda t: [*t.tolist()[:-1], -1],
    "another array": lambda t: t.numpy() + 1,
    "another tensor": lambda t: t + 1,
    "words": lambda t: [str(v) for v in t.tolist()],
    "tensors": lambda t: list(t.clone().split(1)),
    "other bytes": lambda t: bytes(24),
    "complex": lambda t: t.to(torch.complex64),
    "freed": lambda t: (c := t.clone(), c.untyped_storage().resize_(0)),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_copy_is_not_named(kind: str) -> None:
    tokens = stream()
    held = OTHERS[kind](tokens)
    report = watched(tokens)
    assert report.status == "clean" and not told(report) and held is not None, report


@pytest.mark.parametrize(
    "tokens",
    [
        torch.tensor([3, 1, 2, 0, 1, 2, 3]),
        torch.full((24,), 3),
        torch.arange(24),
    ],
    ids=["short", "one class", "counting"],
)
def test_these_are_no_evidence(tokens: Tensor) -> None:
    held = tokens.tolist()
    with causaltrace.watch(tokens) as trace:
        pass
    assert not told(trace.report) and held


def test_constants_of_code_are_no_copies() -> None:
    tokens = torch.tensor([3, 1, 4, 1, 5, 2, 6, 0, 3, 5, 2, 6])
    assert watched(tokens).status == "clean"


def test_nothing_is_looked_for_without_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "get_objects", lambda: pytest.fail("looked"))
    with causaltrace.watch():
        pass


def test_nothing_is_kept_alive() -> None:
    class Array(np.ndarray):
        pass

    tokens = stream()
    copy, held, other = tokens.clone(), Holder(tokens.tolist()), tokens.numpy().copy().view(Array)
    refs = [weakref.ref(x) for x in (copy, held, other)]
    with causaltrace.watch(tokens) as trace:
        del copy, held, other
        assert [ref() for ref in refs] == [None] * 3
    assert told(trace.report)[0].count == 2


def test_locals_that_somebody_holds_stay_as_they_are() -> None:
    tokens = stream()
    seen = locals()
    with causaltrace.watch(tokens):
        pass
    assert seen["tokens"] is tokens
