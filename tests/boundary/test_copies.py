"""Copies of the labels that were made before the watch opened."""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
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
from causaltrace.boundary.alive import alive, frames
from causaltrace.boundary.ndarray import LabelArray
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


class Array(np.ndarray):
    pass


def read_only(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


def mapped(a: np.ndarray) -> np.memmap:
    with tempfile.NamedTemporaryFile() as file:
        a.tofile(file)
        file.flush()
        return np.memmap(file.name, a.dtype, "r")


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
    "numpy of other bytes": lambda t: t.numpy().astype(">i8"),
    "backwards": lambda t: t.flip(0).numpy().copy()[::-1],
    "numpy subclass": lambda t: t.numpy().copy().view(Array),
}
ARRAYS: dict[str, Callable[[Tensor], Any]] = {
    "view": Tensor.numpy,
    "part": lambda t: t.numpy()[3:],
    "part of a part": lambda t: t.numpy()[2:][1:],
    "copy": lambda t: t.numpy().copy(),
    "part of a copy": lambda t: t.numpy().copy()[3:],
    "uint16": lambda t: t.numpy().astype(np.uint16),
    "float": lambda t: t.numpy().astype(np.float32),
    "read-only": lambda t: read_only(t.numpy().copy()),
    "file": lambda t: mapped(t.numpy()),
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


@pytest.mark.parametrize("way", HELD)
def test_wherever_they_are_held(way: str) -> None:
    tokens = stream()
    held = HELD[way](tokens.tolist())
    (note,) = told(watched(tokens))
    assert note.count == 1
    del held
    assert watched(tokens).status == "clean"


@pytest.mark.parametrize("way", [way for way in HELD if way != "iterator"])
def test_arrays_are_found_wherever_they_are_held(way: str) -> None:
    tokens = stream()
    array = tokens.numpy().copy()
    ref, held = weakref.ref(array), HELD[way](array)
    del array
    with causaltrace.watch(tokens):
        assert type(ref()) is LabelArray
    assert type(ref()) is np.ndarray and held is not None


@pytest.fixture
def hide() -> Iterator[Callable[[], None]]:
    yield gc.freeze
    gc.unfreeze()


@pytest.mark.parametrize("way", [way for way in HELD if way != "iterator"])
def test_what_is_hidden_from_the_collector_is_found(way: str, hide: Callable[[], None]) -> None:
    tokens = stream()
    ids, array = HELD[way](tokens.tolist()), tokens.numpy().copy()
    ref, held = weakref.ref(array), HELD[way](array)
    del array
    hide()
    with causaltrace.watch(tokens) as trace:
        assert type(ref()) is LabelArray
    assert type(ref()) is np.ndarray and held is not None
    (note,) = told(trace.report)
    assert note.count == 1 and ids is not None


def test_arrays_over_memory_that_labels_come_to_may_be_hidden(hide: Callable[[], None]) -> None:
    tokens, model = stream(), Toy()
    memory = torch.zeros_like(tokens)
    array = memory.numpy()
    hide()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        memory.copy_(tokens)
        hints = torch.from_numpy(array[1:].astype(np.float32))[:, None]
        F.cross_entropy(model(tokens[:-1]) + hints * model.head[0], tokens[1:]).item()
    assert trace.report.status == "violation"


def hinted(kind: str, lag: int) -> Report:
    """Rows are tilted by elements of an array that is older than the watch: lag 0: by their own labels."""
    tokens, model = stream(), Toy()
    held = ARRAYS[kind](tokens)
    first = 3 if "part" in kind else 0
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        for t in range(4, 24):
            hint = torch.from_numpy(held[t - lag - first : t + 1 - lag - first].astype(np.float32) * 0.1)
            loss = F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1])
            loss.item()
    assert type(held) in (np.ndarray, np.memmap)
    return trace.report


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_followed(kind: str) -> None:
    legal, leak = hinted(kind, 1), hinted(kind, 0)
    assert legal.status == "clean" and not told(legal), legal
    assert leak.status == "violation" and {f.kind for f in leak.violations} <= {"CT002", "CT003"}, leak


def test_an_array_that_nobody_reads_harms_nothing() -> None:
    ids = stream().numpy().copy()
    tokens = torch.from_numpy(ids)
    report = watched(tokens)
    assert report.status == "clean" and not told(report) and ids is not None


def test_arrays_are_given_back_as_they_were() -> None:
    tokens = stream()
    held, kept = tokens.numpy().copy(), mapped(tokens.numpy())
    counts = [sys.getrefcount(kind) for kind in (LabelArray, np.memmap)]
    for _ in range(3):
        with causaltrace.watch(tokens):
            assert type(held) is LabelArray and isinstance(kept, LabelArray) and isinstance(kept, np.memmap)
            assert kept.filename and kept.mode == "r"
        assert type(held) is np.ndarray and type(kept) is np.memmap
    assert [sys.getrefcount(kind) for kind in (LabelArray, np.memmap)] == counts
    with causaltrace.watch(tokens):
        ref = weakref.ref(held)
        del held
        assert ref() is None


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
    "scaled": lambda t: t.double() * 0.5 - 1,
    "half": lambda t: t.half(),
    "squares": lambda t: (t - 3) ** 2,
    "table": lambda t: torch.randn(VOCAB)[t],
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_have_the_labels(kind: str) -> None:
    def judged(shift: int) -> Report:
        tokens, model = stream(), Toy()
        copy = TENSORS[kind](tokens)
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            seen = copy.reshape(-1, 1).float()[shift : shift + 23]
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


@pytest.mark.parametrize("kind", ["clone", "int", "numpy"])
def test_pieces_have_the_labels(kind: str) -> None:
    copied: dict[str, Callable[[Tensor], Tensor]] = {
        "clone": Tensor.clone,
        "int": Tensor.int,
        "numpy": lambda t: torch.from_numpy(t.numpy().copy()),
    }
    tokens, model = stream(), Toy()
    x, y = copied[kind](tokens[:-1]), copied[kind](tokens[1:])
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        F.cross_entropy(model(x.long()), y.long(), reduction="sum").item()
    assert trace.report.status == "clean" and trace.report.scored == 23
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        F.cross_entropy(model(x.long()) + y.float()[:, None] * torch.ones(VOCAB), y.long()).item()
    assert trace.report.status == "violation"


def test_rows_of_pieces_have_the_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (200,), generator=generator)
    starts = torch.tensor([120, 7, 55])
    rows = torch.stack([tokens[s : s + 33] for s in starts])
    model = Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        losses = F.cross_entropy(model(rows[:, :-1]).mT, rows[:, 1:], reduction="none")
        losses.sum().item()
    assert trace.report.status == "clean" and trace.report.scored == 96


@pytest.mark.parametrize(
    "piece",
    [
        lambda t: t[3:10].clone(),
        lambda t: t[40:56].clone(),
        lambda t: torch.cat([t[:20], t[30:40]]),
        lambda t: torch.zeros(16, dtype=torch.long),
        lambda t: torch.arange(16) % 2,
    ],
    ids=["short", "twice", "not one piece", "zeros", "another"],
)
def test_these_are_no_pieces(piece: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (200,), generator=generator)
    tokens[140:156] = tokens[40:56]
    held, model = piece(tokens), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        F.cross_entropy(model(tokens[:-1]) * held.sum(), tokens[1:], reduction="sum").item()
    assert trace.report.status == "clean"


def test_classes_of_labels_have_the_labels() -> None:
    tokens, model = stream(100), Toy()
    even = tokens % 2 == 0
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        F.cross_entropy(model(tokens[:-1]) + even[1:, None] * model.head[0], tokens[1:]).item()
    assert trace.report.status == "violation"


OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "other values": lambda t: t.flip(0).tolist(),
    "one other value": lambda t: [*t.tolist()[:-1], -1],
    "another array": lambda t: t.numpy().cumsum(),
    "another tensor": lambda t: t.cumsum(0),
    "most of them equal": lambda t: (t == t[0]) & (torch.arange(24) > 0),
    "two values": lambda t: torch.arange(24) % 2,
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


def test_iterators_that_a_module_has_freed() -> None:
    """Python 3.12's _asyncio refers to them still, and whoever takes them from there breaks its memory."""

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, 1)
        await future

    for _ in range(3):
        asyncio.run(wait())
        alive(list(frames()))
    asyncio.run(wait())
