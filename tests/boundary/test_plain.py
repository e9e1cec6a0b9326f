"""Plain arrays over memory that labels come to."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.boundary import plain
from causaltrace.boundary.ndarray import LabelArray
from causaltrace.report.model import Report
from tests.small import Toy, stream

#: What numpy reads, and the tensor over its memory.
Pair = tuple[Any, Tensor]


def of_numpy() -> Pair:
    a = np.arange(24)
    return a, torch.from_numpy(a)


def of_torch() -> Pair:
    t = torch.arange(24)
    return t.numpy(), t


def as_array() -> Pair:
    t = torch.arange(24)
    return np.asarray(t), t


def fresh() -> Pair:
    a = np.zeros(24, dtype=np.int64)
    return a, torch.as_tensor(a)


def view() -> Pair:
    a = np.arange(48)
    return a[12:36], torch.from_numpy(a)[12:36]


def view_of_tensor() -> Pair:
    t = torch.arange(48)
    return t.numpy()[12:36], t[12:36]


def two_tensors() -> Pair:
    a = np.arange(48)
    kept = torch.from_numpy(a[12:36])
    return torch.from_numpy(a)[12:36].numpy(), kept


PAIRS: list[Callable[[], Pair]] = [of_numpy, of_torch, as_array, fresh, view, view_of_tensor, two_tensors]


def judged(pair: Pair, tokens: Tensor, lag: int) -> Report:
    """Labels come to memory through torch; numpy reads them from it and tilts rows: lag 0, by their own."""
    model = Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        _tilt(pair, tokens, model, lag)
    return trace.report


def _tilt(pair: Pair, tokens: Tensor, model: Toy, lag: int) -> None:
    read, written = pair
    written.copy_(tokens)
    for t in range(1, 24):
        hint = torch.from_numpy(read[t - lag : t + 1 - lag] * 0.1).float()
        F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1]).item()


@pytest.mark.parametrize("make", PAIRS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("before", [True, False])
def test_what_torch_writes_is_followed(make: Callable[[], Pair], before: bool) -> None:
    def report(lag: int) -> Report:
        tokens = stream()
        if before:
            return judged(make(), tokens, lag)
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            _tilt(make(), tokens, Toy(), lag)
        return trace.report

    legal, leak = report(1), report(0)
    assert legal.status == "clean" and not [n for n in legal.notes if n.blocking], legal
    assert leak.status == "violation", leak


def numpy_by_dlpack() -> Pair:
    t = torch.arange(24)
    return np.from_dlpack(t), t


def torch_by_dlpack() -> Pair:
    t = torch.arange(24)
    return torch.from_dlpack(t).numpy(), t


def torch_to_dlpack() -> Pair:
    t = torch.arange(24)
    return t.numpy(), torch.from_dlpack(t)


@pytest.mark.parametrize(
    "make", [numpy_by_dlpack, torch_by_dlpack, torch_to_dlpack], ids=lambda make: make.__name__
)
def test_aliases_from_before_the_watch_are_followed(make: Callable[[], Pair]) -> None:
    legal, leak = (judged(make(), stream(), lag) for lag in (1, 0))
    assert legal.status == "clean" and leak.status == "violation", (legal, leak)


@pytest.mark.parametrize("first", [0, 5])
def test_tokens_that_are_a_part_of_more(first: int) -> None:
    def status(lag: int) -> str:
        ids, model = stream(first + 24).numpy().copy(), Toy()
        whole, tokens = torch.from_numpy(ids), torch.from_numpy(ids[first : first + 24])
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            for t in range(1, 24):
                at = first + t - lag
                hint = whole[at : at + 1].float() * 0.1 + torch.from_numpy(ids[at : at + 1] * 0.1).float()
                F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1]).item()
        return trace.report.status

    assert status(1) == "clean" and status(0) == "violation"


def test_a_stream_that_is_found_has_its_arrays() -> None:
    ids = stream().numpy().copy()
    tokens, model = torch.from_numpy(ids), Toy()

    def status(lag: int) -> str:
        with causaltrace.watch() as trace, torch.no_grad():
            for t in range(1, 24):
                hint = torch.from_numpy(ids[t - lag : t + 1 - lag] * 0.1).float()
                F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1]).item()
        return trace.report.status

    assert status(0) != "clean"


def bytes_of(t: int) -> Any:
    return bytearray(t)


def numbers(t: int) -> Any:
    return array("B", bytes(t))


def pages(t: int) -> Any:
    return mmap.mmap(-1, t)


@pytest.mark.parametrize("make", [bytes_of, numbers, pages], ids=lambda make: make.__name__)
def test_buffers_tell_nobody(make: Callable[[int], Any]) -> None:
    def status(ahead: int) -> str:
        tokens, model = stream(seed=len(make.__name__)), Toy()  # nothing that others left is a copy
        read = make(24)
        written = torch.frombuffer(read, dtype=torch.uint8)
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            for t in range(1, 24):
                written[: t + ahead].copy_(tokens[: t + ahead])
                row = model(tokens[:t])[-1:] + read[t - 1 + ahead] * model.head[0]
                F.cross_entropy(row, tokens[t : t + 1]).item()
        return trace.report.status

    assert status(0) == "clean" and status(1) == "unverified"


class Other(np.ndarray):
    pass


def test_other_classes_tell_nobody() -> None:
    a = np.arange(24)
    other = a.view(Other)
    report = judged((other, torch.from_numpy(a)), stream(), 0)
    assert report.status == "unverified"


def test_tables_that_are_older_than_their_labels_are_followed() -> None:
    def report(lag: int) -> Report:
        tokens, model = stream(), Toy()
        table = np.full(64, 0.5)
        part = table[20:50]
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            labels = tokens.numpy()
            table[20:44] = labels * 0.1
            assert type(table) is type(part) is LabelArray
            for t in range(1, 24):
                hint = torch.from_numpy(part[t - lag : t + 1 - lag]).float()
                F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1]).item()
        assert type(table) is type(part) is np.ndarray
        return trace.report

    assert report(1).status == "clean" and report(0).status == "violation"


def test_memory_without_labels_is_looked_at_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        monkeypatch.setattr(plain, "alive", lambda *_: pytest.fail("looked"))
        for t in range(1, 24):
            row = torch.from_numpy(np.arange(13) * 0.1).float()
            F.cross_entropy(model(tokens[:t])[-1:] + row, tokens[t : t + 1]).item()
        weights = torch.zeros(4).numpy()
        weights += 1
    assert trace.report.status == "clean"


def test_it_looks_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "LOOKS", 2)
    tokens = stream()
    kept = []
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        for t in range(4):
            a = np.arange(24)
            torch.from_numpy(a).copy_(tokens)
            kept.append(a)
            assert (type(a) is LabelArray) == (t < 2)
    assert [n.kind for n in trace.report.notes if n.blocking] and len(kept) == 4


def test_arrays_that_come_after_something_has_left() -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        F.cross_entropy(model(tokens[:4]), tokens[1:5]).item()
        a = np.arange(24)
        torch.from_numpy(a).copy_(tokens)
        hint = torch.from_numpy(a[6:7] * 0.1).float()
        F.cross_entropy(model(tokens[:6])[-1:] + hint * model.head[0], tokens[6:7]).item()
    assert trace.report.status == "violation"


def test_an_error_leaves_plain_arrays() -> None:
    tokens, a = stream(), np.arange(24)
    t = torch.from_numpy(a)

    def fails() -> None:
        with causaltrace.watch(tokens):
            t.copy_(tokens)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fails()
    assert type(a) is np.ndarray and a.tolist() == tokens.tolist()


def test_zeros_that_have_no_memory() -> None:
    tokens, zeros = stream(), torch._efficientzerotensor(24)
    a = np.arange(24)
    torch.from_numpy(a)
    with causaltrace.watch(tokens) as trace, torch.autograd.forward_ad.dual_level():
        torch.from_numpy(a).copy_(tokens)
        dual = torch.autograd.forward_ad.make_dual(torch.ones(24), tokens.float()) * 0.1
        assert torch.autograd.forward_ad.unpack_dual(dual).tangent.shape == zeros.shape
    assert not trace.report.error
