"""Labels on other threads."""

from __future__ import annotations

import _thread
import asyncio
import atexit
import os
import threading
from _thread import start_new_thread
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from tests.small import Toy, nll, stream

Work = Callable[[], Tensor]


def by_thread(work: Work) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


class Worker(threading.Thread):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def run(self) -> None:
        self.found = self.work()


def by_subclass(work: Work) -> Tensor:
    worker = Worker(work)
    worker.start()
    worker.join()
    return worker.found


def by_pool(work: Work) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def by_map(work: Work) -> Tensor:
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(lambda scale: work() * scale, [1.0, 2.0]), torch.zeros(()))


def by_initializer(work: Work) -> Tensor:
    found: list[Tensor] = []
    with ThreadPoolExecutor(1, initializer=lambda: found.append(work())) as pool:
        pool.submit(len, "").result()
    return found[0]


OLDER = ThreadPoolExecutor(1)
OLDER.submit(len, "").result()  # its thread runs before any watch


def by_older_pool(work: Work) -> Tensor:
    return OLDER.submit(work).result()


OLDER_THREADS = ThreadPool(1)
atexit.register(OLDER_THREADS.terminate)


def by_older_threads(work: Work) -> Tensor:
    return OLDER_THREADS.apply(work)


def by_older_map(work: Work) -> Tensor:
    return sum(OLDER_THREADS.map(lambda scale: work() * scale, [1.0, 2.0]), torch.zeros(()))


def by_older_star_map(work: Work) -> Tensor:
    return OLDER_THREADS.starmap(lambda scale, other: work() * scale * other, [(1.0, 2.0)])[0]


def by_older_imap(work: Work) -> Tensor:
    return sum(OLDER_THREADS.imap_unordered(lambda scale: work() * scale, [1.0, 2.0], 2), torch.zeros(()))


def by_older_generator(work: Work) -> Tensor:
    """Its items are made on the thread that hands out tasks."""
    return next(OLDER_THREADS.imap(torch.neg, (work() for _ in range(1))))


def by_raw_thread(work: Work, start: Callable[..., object] | None = None) -> Tensor:
    found: list[Tensor] = []
    done = threading.Event()

    def run() -> None:
        found.append(work())
        done.set()

    (start or _thread.start_new_thread)(run, ())
    done.wait()
    return found[0]


def by_a_name_of_its_own(work: Work) -> Tensor:
    return by_raw_thread(work, start_new_thread)


def by_asyncio(work: Work) -> Tensor:
    return asyncio.run(asyncio.to_thread(work))


def by_nested(work: Work) -> Tensor:
    return by_thread(lambda: by_pool(work))


WAYS = [by_thread, by_subclass, by_pool, by_map, by_initializer, by_older_pool, by_raw_thread]
WAYS += [by_a_name_of_its_own]
WAYS += [by_asyncio, by_nested, by_older_threads, by_older_map, by_older_star_map, by_older_imap]
WAYS += [by_older_generator]


def run(way: Callable[[Work], Tensor], position: int) -> causaltrace.Watch:
    """Score the stream with a bias that another thread makes of a label."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        nll(model, tokens, 0, 13).sum().item()
        bias = way(lambda: F.embedding(tokens[position : position + 1], model.embedding.detach()).sum())
        F.cross_entropy(model(tokens[12:-1]) * bias, tokens[13:], reduction="sum").item()
    return trace


@pytest.mark.parametrize("way", WAYS)
def test_operations_on_other_threads_are_followed(way: Callable[[Work], Tensor]) -> None:
    report = run(way, 20).report
    assert report.status == "violation", report
    assert {f.source for f in report.violations} == {20}
    assert run(way, 5).report.status == "clean"


def test_a_pool_of_threads_gives_what_it_gave() -> None:
    """Arrays among its items, and an iterable that is none."""
    with causaltrace.watch(stream()):
        rows = list(OLDER_THREADS.imap(np.negative, iter(np.eye(2))))
        assert [row.tolist() for row in rows] == [[-1, 0], [0, -1]]
        with pytest.raises(TypeError, match="not iterable"):
            list(OLDER_THREADS.imap(len, 3))  # type: ignore[arg-type]


def test_scores_on_another_thread() -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace:
        by_pool(lambda: nll(model, tokens).detach().sum())
    assert trace.report.status == "clean" and len(trace.report.positions) == 23


def test_reads_on_another_thread_are_named() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        by_thread(lambda: torch.tensor(float(tokens[20:21].sum().item())))
        with torch.no_grad():
            nll(Toy(), tokens).sum().item()
    sites = [e.site for e in trace.report.escapes if e.site is not None]
    assert trace.report.status == "unverified" and sites[0].file == __file__


def test_a_check_on_one_thread_hides_no_read_on_another() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        trace._tracer.quiet += 1
        by_thread(lambda: torch.tensor(tokens[20:21].sum().item()))
        trace._tracer.quiet -= 1
    assert trace.report.escapes


@torch.library.custom_op("causaltrace_tests::pooled", mutates_args=())
def pooled(x: Tensor) -> Tensor:
    """A kernel that works on threads: the operation is what is seen."""
    return OLDER.submit(lambda: x * 2).result() + WORKERS[-1].submit(lambda: x * 2).result()


WORKERS: list[ThreadPoolExecutor] = []


def test_a_kernel_may_wait_for_threads_that_are_followed() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, ThreadPoolExecutor(1) as pool:
        WORKERS.append(pool)
        pool.submit(len, "").result()
        torch.ops.causaltrace_tests.pooled(tokens.float())
    assert [n.kind for n in trace.report.opaque] == ["CT090"]


def test_threads_are_left_as_they_were() -> None:
    before = threading.Thread.start, ThreadPoolExecutor.submit, start_new_thread, os.fork
    with causaltrace.watch(stream()):
        thread = threading.Thread(target=len, args=("",), name="mine")
        thread.start()
        thread.join()
        assert thread.name == "mine" and not thread.is_alive()
    assert before == (threading.Thread.start, ThreadPoolExecutor.submit, _thread.start_new_thread, os.fork)
