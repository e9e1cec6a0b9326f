"""Other threads and moments."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tests.laundering import VOCAB, tensors

TABLE = torch.linspace(0.1, 1.3, VOCAB, dtype=torch.float64)


def sums(x: Tensor) -> Tensor:
    return x.double().sum() * 0.1


@tensors("computed on another thread")
def thread(x: Tensor) -> Tensor:
    found: list[Tensor] = []
    worker = threading.Thread(target=lambda: found.append(sums(x)))
    worker.start()
    worker.join()
    return found[0]


@tensors("computed by a pool of threads")
def thread_pool(x: Tensor) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(sums, x).result()


@tensors("written by another thread into a tensor of this one")
def thread_writes(x: Tensor) -> Tensor:
    hint = torch.zeros(3, dtype=torch.float64)
    worker = threading.Thread(target=lambda: hint.copy_(x))
    worker.start()
    worker.join()
    return hint.sum() * 0.1


@tensors("read by another thread: .item() there, a queue back")
def thread_reads(x: Tensor) -> float:
    numbers: queue.Queue[int] = queue.Queue()
    worker = threading.Thread(target=lambda: numbers.put(x[-1].item()))
    worker.start()
    worker.join()
    return numbers.get() * 0.1


@tensors("a timer")
def timer(x: Tensor) -> Tensor:
    found: list[Tensor] = []
    clock = threading.Timer(0.0, lambda: found.append(sums(x)))
    clock.start()
    clock.join()
    return found[0]


@tensors("a coroutine")
def coroutine(x: Tensor) -> float:
    async def seen() -> float:
        await asyncio.sleep(0)
        return x[-1].item() * 0.1

    return asyncio.run(seen())


@tensors("what is run when an object is collected")
def finalizer(x: Tensor) -> Tensor:
    class Thing:
        pass

    found: list[Tensor] = []
    thing = Thing()
    weakref.finalize(thing, lambda: found.append(sums(x)))
    del thing
    return found[0]


@tensors("a tracing function of the interpreter: sys.setprofile")
def profiled(x: Tensor) -> Tensor:
    found: list[Tensor] = []
    before = sys.getprofile()

    def look(frame: object, event: str, argument: object) -> None:
        if not found:
            found.append(sums(x))

    sys.setprofile(look)
    abs(1)
    sys.setprofile(before)
    return found[0]
