"""Label files that something else than numpy reads: followed into arrays, named where Python gets bytes."""

from __future__ import annotations

import io
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import causaltrace
from tests.boundary.test_label_files import HEADER, N, from_file, leaking, legal, scored, seen, shard, watched

__all__ = ["shard"]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
Read = Callable[[Path], np.ndarray]


def into_tensor(path: Path) -> np.ndarray:
    """As the data loaders of speed runs do it."""
    header = torch.from_file(str(path), False, 256, dtype=torch.int32)
    assert header[0] == 20240520
    tokens = torch.empty(int(header[2]), dtype=torch.uint16)
    with path.open("rb", buffering=0) as file:
        file.seek(256 * 4)
        assert file.readinto(tokens.numpy()) == 2 * N
    return tokens.numpy()


def into_array(path: Path) -> np.ndarray:
    tokens = np.zeros(N, np.uint16)
    with path.open("rb") as file:
        assert len(file.read(HEADER)) == HEADER
        assert file.readinto(tokens) == 2 * N
    return tokens


def in_parts(path: Path) -> np.ndarray:
    tokens = np.zeros((3, N // 3), np.uint16)
    with path.open("rb") as file:
        file.seek(HEADER)
        for row in tokens:
            file.readinto1(row)
    return tokens.reshape(-1)


def as_tensor(path: Path) -> np.ndarray:
    return torch.from_file(str(path), False, HEADER // 2 + N, dtype=torch.uint16)[HEADER // 2 :].numpy()


FOLLOWED = [into_tensor, into_array, in_parts, as_tensor]


@pytest.mark.parametrize("read", FOLLOWED)
def test_what_is_read_into_arrays_is_followed(read: Read, shard: Path) -> None:
    with causaltrace.watch() as trace:
        causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
        assert seen(trace, read(shard)) == list(range(N))
    assert watched(read, shard, legal).report.status == "clean"
    assert watched(read, shard, leaking).report.status == "violation"
    assert np.array_equal(read(shard), from_file(shard))


def test_who_had_the_array_is_told_of(shard: Path) -> None:
    tokens = np.zeros(N, np.uint16)

    def read(path: Path) -> np.ndarray:
        with path.open("rb") as file:
            file.seek(HEADER)
            file.readinto(tokens)
        assert int(tokens[-1]) >= 0
        return tokens

    assert watched(read, shard, legal).report.status == "unverified"
    assert type(tokens) is np.ndarray


def mapped(path: Path) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        return pages[HEADER:]


def by_number(read: Callable[[int], Any]) -> Callable[[Path], Any]:
    def way(path: Path) -> Any:
        number = os.open(path, os.O_RDONLY)
        try:
            return read(number)
        finally:
            os.close(number)

    return way


WAYS: dict[str, Callable[[Path], Any]] = {
    "read_bytes": lambda path: path.read_bytes(),
    "read": lambda path: path.open("rb").read(),
    "raw": lambda path: path.open("rb", buffering=0).read(),
    "FileIO": lambda path: io.FileIO(str(path)).readall(),
    "to be written": lambda path: path.open("r+b").read1(),
    "lines": lambda path: list(path.open("rb")),
    "readlines": lambda path: path.open("rb").readlines(),
    "text": lambda path: path.read_text(encoding="latin-1"),
    "peek": lambda path: path.open("rb").peek(),
    "bytearray": lambda path: path.open("rb").readinto(bytearray(2 * HEADER)),
    "memoryview": lambda path: path.open("rb").readinto(memoryview(np.zeros(HEADER, np.int64))),
    "half an element": lambda path: path.open("rb").readinto(np.zeros(HEADER, "S5")),
    "shared": lambda path: torch.from_file(str(path), True, HEADER // 2 + N, dtype=torch.uint16),
    "mmap": mapped,
    "os.read": by_number(lambda number: os.read(number, 2 * HEADER)),
    "os.pread": by_number(lambda number: os.pread(number, 9, HEADER)),
    "a copy": lambda path: shutil.copyfile(path, path.with_suffix(".copy")),
}


@pytest.mark.parametrize("name", WAYS)
def test_bytes_of_labels_are_never_clean(name: str, shard: Path) -> None:
    def read(path: Path) -> np.ndarray:
        WAYS[name](path)
        return from_file(path)

    report = watched(read, shard, legal).report
    assert report.status == "unverified"
    assert any("not followed" in n.message and n.blocking for n in report.notes)


def test_a_header_and_other_files_are_no_labels(shard: Path, tmp_path: Path) -> None:
    other = tmp_path / "config.txt"
    other.write_text("lines\nof text")

    def read(path: Path) -> np.ndarray:
        assert other.read_text().split("\n") == list(map(str.strip, other.open()))
        assert os.read(os.open(other, os.O_RDONLY), 5) == b"lines"
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER), np.int32)
        return from_file(path)[: header[2]]

    report = watched(read, shard, legal).report
    assert report.status == "clean" and not report.notes


def test_files_are_what_they_were(shard: Path) -> None:
    kinds = (io.FileIO, io.BufferedReader, io.BufferedRandom, mmap.mmap)
    before = [dict(vars(kind)) for kind in kinds], os.read, torch.from_file
    with causaltrace.watch():
        assert vars(io.FileIO)["read"] is before[0][0]["read"], "only label_files looks at files"
        causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
        assert vars(io.FileIO)["read"] is not before[0][0]["read"] and os.read is not before[1]
        assert shard.read_bytes()[:3] == shard.open("rb", 0).read(3)
        scored(legal, from_file(shard))
    assert ([dict(vars(kind)) for kind in kinds], os.read, torch.from_file) == before
    assert next(shard.open("rb"))
