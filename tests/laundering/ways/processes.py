"""Other processes: copies of this one, programs, and memory that several have."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.laundering import MODEL, SEEN, TILT, Piece, tensors, way

FORK = multiprocessing.get_context("fork")
seen: Tensor


def in_a_copy(work: Callable[[], object]) -> int:
    """Do ``work`` in a copy of the process; what it gives is the exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(work() or 0)  # type: ignore[call-overload]
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def look(scale: float) -> float:
    return float(seen.sum()) * scale


@tensors("a copy of the process: os.fork, and its exit code", once=True)
def forked(x: Tensor) -> float:
    return in_a_copy(lambda: x[-1]) * 0.1


@tensors("a copy of a copy of the process", once=True)
def forked_twice(x: Tensor) -> float:
    return in_a_copy(lambda: in_a_copy(lambda: x[-1])) * 0.1


@tensors("a pool of processes, which have what this one had: multiprocessing.Pool", once=True)
def pool(x: Tensor) -> float:
    global seen
    seen = x
    with FORK.Pool(1) as workers:
        return workers.apply(look, (0.1,))


@tensors("the same by concurrent.futures.ProcessPoolExecutor", once=True)
def executor(x: Tensor) -> float:
    global seen
    seen = x
    with ProcessPoolExecutor(1, mp_context=FORK) as workers:
        return workers.submit(look, 0.1).result()


@tensors("workers that load data: DataLoader(num_workers=1)", once=True)
def loader(x: Tensor) -> Tensor:
    (batch,) = DataLoader(x, batch_size=SEEN, num_workers=1)  # type: ignore[arg-type]
    return batch.double().sum() * 0.1


@tensors("memory that a copy of the process has, too, written there: mmap", once=True)
def shared_map(x: Tensor) -> float:
    shared = np.frombuffer(mmap.mmap(-1, 8 * SEEN), np.int64)
    in_a_copy(lambda: np.copyto(shared, x.numpy()))
    return float(shared.sum()) * 0.1


@tensors("the same with multiprocessing.Value", once=True)
def shared_value(x: Tensor) -> float:
    value = FORK.Value("d", 0.0)

    def work() -> None:
        value.value = x[-1].item() * 0.1

    in_a_copy(work)
    return value.value


@tensors("another process, and what it prints", once=True)
def subprocess_output(x: Tensor) -> float:
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"print({x[-1].item()} * 0.1)"], capture_output=True, check=True
    )
    return float(done.stdout)


@tensors("what runs between fork and exec: subprocess, preexec_fn", once=True)
def before_exec(x: Tensor) -> float:
    reader, writer = os.pipe()
    command = [sys.executable, "-S", "-c", ""]
    subprocess.run(command, preexec_fn=lambda: os.write(writer, bytes([int(x[-1])])), check=True)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read()[0] * 0.1


def older(tokens: Tensor, lag: int) -> Iterator[Piece]:
    """One row, tilted by what a process that is older than the watch makes of a label in shared memory."""
    shared = torch.zeros(2, dtype=torch.float64).share_memory_()
    given, done = FORK.Event(), FORK.Event()

    def work() -> None:
        given.wait(60)
        shared[1].copy_(shared[0] * 0.1)
        done.set()

    worker = FORK.Process(target=work, daemon=True)
    worker.start()

    def rows() -> Iterator[Piece]:
        yield MODEL[tokens[:1]]
        shared[0].copy_(tokens[2 - lag])
        given.set()
        done.wait(60)
        worker.join()
        yield MODEL[tokens[1:2]] + TILT * shared[1]
        yield MODEL[tokens[2:-1]]

    return rows()


def older_legally(tokens: Tensor) -> Iterator[Piece]:
    return older(tokens, 1)


@way("a process that is older than the watch, by a tensor in shared memory", older_legally)
def older_process(tokens: Tensor) -> Iterator[Piece]:
    return older(tokens, 0)
