"""Copies of the process (``os.fork``), and memory that several processes have."""

from __future__ import annotations

import mmap
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.boundary import processes
from causaltrace.ledger import Ledger
from tests.small import Toy, nll, stream

Work = Callable[[], object]


@contextmanager
def copy(work: Work, code: int = 0) -> Iterator[int]:
    """A copy of the process that does ``work``; waits for its end. Errors there end it with 99."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            code = 99
        os._exit(code)
    yield child
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


def sent(work: Callable[[], float]) -> float:
    """What a copy of the process computes, by a pipe."""
    reader, writer = os.pipe()
    with copy(lambda: os.write(writer, str(work()).encode())) as child:
        os.close(writer)
        if not select.select([reader], [], [], 60)[0]:
            os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as pipe:
        return float(pipe.read())


def run(work: Callable[[Tensor], float], **options: str) -> causaltrace.Watch:
    """Score half of the stream, the rest with a bias that ``work`` makes of the tokens."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens, **options) as trace, torch.no_grad():
        nll(model, tokens, 0, 13).sum().item()
        bias = torch.tensor(work(tokens))
        F.cross_entropy(model(tokens[12:-1]) * bias, tokens[13:], reduction="sum").item()
    return trace


@pytest.mark.parametrize("precision", ["horizon", "exact"])
def test_a_copy_tells_what_it_gives_away(precision: str) -> None:
    for position, status in ((20, "unverified"), (5, "clean")):
        report = run(lambda t, at=position: sent(lambda: int(t[at])), precision=precision).report
        assert report.status == status, report
        (told,) = (e for e in report.escapes if "os.fork" in e.message)
        assert told.label == position and told.site is not None and "int(t[at])" in told.site.source


def test_a_copy_that_gives_nothing_away_is_no_escape() -> None:
    def work(tokens: Tensor) -> float:
        with copy(lambda: tokens[20] + 1):
            return 1.0

    report = run(work).report
    assert report.status == "clean" and not [e for e in report.escapes if "os.fork" in e.message]


def test_what_is_told_last_is_in_the_report() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        nll(Toy(), tokens).sum().item()
        sent(lambda: int(tokens[20]))
    assert trace.report.status == "clean"
    assert any("os.fork" in e.message and e.label == 20 for e in trace.report.escapes)


# -- what a copy does -------------------------------------------------------------------------------------


def number(t: Tensor) -> float:
    """A number that is told of late in the process that opened the watch: it could be written back."""
    return float(np.eye(20)[t.numpy()].argmax())


def nested(t: Tensor) -> float:
    return sent(lambda: int(t))


def by_thread(t: Tensor) -> float:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(float, t).result()


@pytest.mark.parametrize("read", [number, nested, by_thread, lambda t: sent(lambda: nested(t))])
def test_ways_to_read_in_a_copy(read: Callable[[Tensor], float]) -> None:
    for position, status in ((20, "unverified"), (5, "clean")):
        assert run(lambda t, at=position: sent(lambda: read(t[at]))).report.status == status


def test_what_an_older_label_hides() -> None:
    """The copy reads label 14 after the process that it was made of gave label 20 away, and only that one is
    scored then: 14 is no less away."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens, order="scored") as trace, torch.no_grad():
        nll(model, tokens, 0, 13).sum().item()
        int(tokens[20])
        hint = sent(lambda: int(tokens[14]))
        nll(model, tokens, 14, 24).sum().item()  # all but 13 and 14
        F.cross_entropy(model(tokens[12:13]) * torch.tensor(hint), tokens[13:14], reduction="sum").item()
    assert trace.report.status == "unverified"


def test_a_copy_waits_for_no_thread_that_is_gone() -> None:
    """Neither for those that torch computes with, nor for one that was in the middle of an operation."""
    tokens, x = stream(), torch.linspace(0, 1, 1 << 20)
    x.sort()
    with causaltrace.watch(tokens):
        assert sent(lambda: float(x.exp().sum())) == pytest.approx(float(x.exp().sum()))


def test_an_operation_of_another_thread_is_unfinished_in_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has written is there, and what that depends on is not."""
    done = threading.Event()

    def in_the_middle(ledger: Ledger) -> Callable[[], None]:
        begun = threading.Event()

        def operation() -> None:
            with trace._tracer._lock:
                begun.set()
                done.wait()

        threading.Thread(target=operation).start()
        begun.wait()
        return lambda: None

    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        nll(model, tokens, 0, 13).sum().item()
        monkeypatch.setattr(Ledger, "on_host", in_the_middle)
        hint = sent(lambda: int(tokens[5]))
        done.set()
        assert hint == tokens[5]
        nll(model, tokens, 12).sum().item()
    assert trace.report.status == "unverified"


# -- room -------------------------------------------------------------------------------------------------


def test_many_copies_tell_for_themselves() -> None:
    def work(tokens: Tensor) -> float:
        return sum(sent(lambda: int(tokens[5])) for _ in range(20)) / 20

    assert run(work).report.status == "clean"


def test_copies_of_a_copy_beyond_the_room_for_them_give_all_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "COPIES", 2)

    def copies(tokens: Tensor, count: int) -> float:
        return sum(sent(lambda: int(tokens[5])) for _ in range(count))

    for count, status in ((2, "clean"), (3, "unverified")):
        assert run(lambda t, n=count: sent(lambda: copies(t, n))).report.status == status


def test_generations_beyond_the_room_for_them_give_all_away() -> None:
    def descend(tokens: Tensor, depth: int) -> float:
        return sent(lambda: descend(tokens, depth - 1)) if depth else float(tokens[5])

    for depth, status in ((3, "clean"), (4, "unverified")):
        assert run(lambda t, d=depth: descend(t, d)).report.status == status


def test_a_stream_that_is_not_named_is_known_to_copies() -> None:
    """Nobody can say which of its labels they give away."""
    tokens, model = stream(), Toy()
    with causaltrace.watch() as trace, torch.no_grad():
        nll(model, tokens, 0, 13).sum().item()
        bias = torch.tensor(sent(lambda: int(tokens[5])))
        F.cross_entropy(model(tokens[12:-1]) * bias, tokens[13:], reduction="sum").item()
    assert trace.report.status == "unverified"


# -- memory that processes share --------------------------------------------------------------------------


def shared_tensor() -> tuple[Tensor, Tensor]:
    t = torch.zeros(2).share_memory_()
    return t[:1], t[1:]


def shared_map() -> tuple[np.ndarray, np.ndarray]:
    a = np.frombuffer(mmap.mmap(-1, 16))
    return a[:1], a[1:]


def map_as_tensor() -> tuple[Tensor, Tensor]:
    t = torch.from_numpy(np.frombuffer(mmap.mmap(-1, 16)))
    return t[:1], t[1:]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("make", [shared_tensor, shared_map, map_as_tensor])
def test_labels_that_a_copy_writes_to_shared_memory(
    make: Callable[[], tuple[Tensor, Tensor]], inside: bool
) -> None:
    older = make()

    def work(tokens: Tensor, position: int) -> float:
        place = (make() if inside else older)[0]
        with copy(lambda: place.__setitem__(0, tokens[position])):
            pass
        return float(place[0])

    for position, status in ((20, "unverified"), (5, "clean")):
        assert run(lambda t, at=position: work(t, at)).report.status == status


@pytest.mark.parametrize("make", [shared_tensor, shared_map, map_as_tensor])
def test_labels_for_a_process_that_is_older_than_the_watch(
    make: Callable[[], tuple[Tensor, Tensor]],
) -> None:
    for position, status in ((20, "unverified"), (5, "clean")):
        given, taken = make()
        begin, end = os.pipe(), os.pipe()

        def serve() -> None:
            os.read(begin[0], 1)  # noqa: B023
            taken[0] = given[0]  # noqa: B023
            os.write(end[1], b".")  # noqa: B023

        def work(tokens: Tensor, at: int) -> float:
            given[0] = tokens[at]  # noqa: B023
            os.write(begin[1], b".")  # noqa: B023
            os.read(end[0], 1)  # noqa: B023
            return float(taken[0])  # noqa: B023

        with copy(serve):
            report = run(lambda t, at=position: work(t, at)).report
        assert report.status == status, report


def test_memory_that_processes_share() -> None:
    """What is written to it later leaves as well."""
    tokens, model = stream(), Toy()
    for position, status in ((20, "unverified"), (5, "clean")):
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            buffer = torch.zeros(4).share_memory_()
            nll(model, tokens, 0, 13).sum().item()
            buffer[:1].copy_(tokens[position : position + 1])
            nll(model, tokens, 12).sum().item()
        assert trace.report.status == status, trace.report


@pytest.mark.parametrize("by", ["watch", "label", "search"])
def test_labels_that_lie_in_shared_memory(by: str) -> None:
    """Who has had them since before the watch learns nothing from it."""
    tokens, model = stream().share_memory_(), Toy()
    with causaltrace.watch(tokens if by == "watch" else None) as trace, torch.no_grad():
        if by == "label":
            causaltrace.label(tokens)
        for t in range(23):
            nll(model, tokens, t, t + 2).sum().item()
    assert trace.report.status == "clean", trace.report


def test_labels_whose_address_was_handed_out_before_they_were_declared() -> None:
    tokens = stream()
    with causaltrace.watch(tokens[:1].clone()) as trace, torch.no_grad():
        tokens.data_ptr()
        causaltrace.label(tokens, stream="later")
        nll(Toy(), tokens).sum().item()
    assert trace.report.status == "unverified"
