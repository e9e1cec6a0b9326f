"""Files and other things outside the process's own memory."""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import shelve
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.laundering import tensors


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def sums(t: Tensor) -> Tensor:
    return t.double().sum() * 0.1


@tensors("torch.save and torch.load through a file")
def torch_file(x: Tensor) -> Tensor:
    with folder() as at:
        torch.save(x.clone(), at / "seen.pt")
        return sums(torch.load(at / "seen.pt"))


@tensors("the older format of torch.save, and a mapped load")
def torch_file_mapped(x: Tensor) -> Tensor:
    with folder() as at:
        torch.save(x.clone(), at / "old.pt", _use_new_zipfile_serialization=False)
        torch.save(x.clone(), at / "new.pt")
        return sums(torch.load(at / "old.pt")) + torch.load(at / "new.pt", mmap=True).double()[-1]


@tensors("a state dict in a file, loaded into a module")
def state_dict_file(x: Tensor) -> Tensor:
    with folder() as at:
        layer = torch.nn.Linear(3, 1, dtype=torch.float64)
        torch.save({"weight": x[None].double(), "bias": torch.zeros(1, dtype=torch.float64)}, at / "w.pt")
        layer.load_state_dict(torch.load(at / "w.pt"))
        return layer(torch.ones(3, dtype=torch.float64)).detach()[0] * 0.1


@tensors("np.save and np.load")
def numpy_file(x: Tensor) -> Tensor:
    with folder() as at:
        np.save(at / "seen.npy", x.numpy())
        return sums(torch.from_numpy(np.load(at / "seen.npy")))


@tensors("tofile and np.fromfile")
def raw_file(x: Tensor) -> Tensor:
    with folder() as at:
        x.numpy().tofile(at / "seen.bin")
        return sums(torch.from_numpy(np.fromfile(at / "seen.bin", dtype=np.int64)))


@tensors("np.memmap, written and read by torch.from_file")
def mapped_file(x: Tensor) -> Tensor:
    with folder() as at:
        mapped = np.memmap(at / "seen.bin", dtype=np.int64, mode="w+", shape=(3,))
        mapped[:] = x.numpy()
        mapped.flush()
        return sums(torch.from_file(str(at / "seen.bin"), size=3, dtype=torch.int64).clone())


@tensors("a tensor that is a file, written in place: from_file(shared=True)")
def shared_file(x: Tensor) -> float:
    with folder() as at:
        mapped = torch.from_file(str(at / "seen.bin"), shared=True, size=3, dtype=torch.int64)
        mapped.copy_(x)
        return sum((at / "seen.bin").read_bytes()) * 0.1


@tensors("text that is written and read")
def text_file(x: Tensor) -> float:
    with folder() as at:
        (at / "seen.txt").write_text(f"0.{x[-1].item()}")
        return float((at / "seen.txt").read_text())


@tensors("the size of a file")
def file_size(x: Tensor) -> float:
    with folder() as at:
        (at / "seen").write_bytes(bytes(int(x[-1])))
        return (at / "seen").stat().st_size * 0.1


@tensors("the name of a file, and whether it is there")
def file_name(x: Tensor) -> float:
    with folder() as at:
        (at / str(x[-1].item())).touch()
        return 0.1 * next(v for v in range(9) if (at / str(v)).exists())


@tensors("pickled to a file")
def pickle_file(x: Tensor) -> Tensor:
    with folder() as at:
        (at / "seen").write_bytes(pickle.dumps({"seen": x}))
        return sums(pickle.loads((at / "seen").read_bytes())["seen"])


@tensors("a database: sqlite3, shelve")
def database(x: Tensor) -> float:
    base = sqlite3.connect(":memory:")
    with base:
        base.execute("create table seen (label integer)")
        base.execute("insert into seen values (?)", (x[-1].item(),))
    value = base.execute("select label from seen").fetchone()[0]
    base.close()
    with folder() as at, shelve.open(str(at / "seen")) as shelf:
        shelf["seen"] = x[0].item()
        return value * 0.1 + shelf["seen"] * 0.01


@tensors("anonymous mapped memory: mmap")
def anonymous_map(x: Tensor) -> float:
    with mmap.mmap(-1, 24) as memory:
        memory.write(x.numpy().tobytes())
        return sum(memory[:]) * 0.1


@tensors("a block of shared memory")
def shared_block(x: Tensor) -> float:
    block = shared_memory.SharedMemory(create=True, size=24)
    try:
        block.buf[:24] = x.numpy().tobytes()
        return sum(bytes(block.buf[:24])) * 0.1
    finally:
        block.close()
        block.unlink()


@tensors("a pipe")
def pipe(x: Tensor) -> float:
    reading, writing = os.pipe()
    os.write(writing, bytes(x.tolist()))
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        return sum(file.read()) * 0.1


@tensors("a log record")
def logged(x: Tensor) -> float:
    kept: list[logging.LogRecord] = []
    logger = logging.Logger("seen")
    handler = logging.Handler()
    handler.emit = kept.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.warning("%s", x[-1])
    return float(kept[0].getMessage()[-2:].strip("()")) * 0.1
