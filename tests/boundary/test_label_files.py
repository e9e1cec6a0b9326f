"""Evals that read their tokens from files: what numpy reads is labelled by its place in the file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy import fromfile
from torch import Tensor

import causaltrace
from tests.small import VOCAB, Toy, nll, stream, targets

# torch says so of every tensor over a read-only memory map, with or without a watch
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")

N = 24
HEADER = 256 * 4
Read = Callable[[Path], np.ndarray]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A header of 256 int32, then uint16 tokens."""
    path = tmp_path / "val_000.bin"
    write(path, stream(N).numpy())
    return path


def write(path: Path, tokens: np.ndarray) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


def seen(trace: causaltrace.Watch, x: np.ndarray | Tensor) -> list[int] | None:
    """The positions of labels in an array or a tensor; None: it has none."""
    t = x if isinstance(x, Tensor) else torch.from_numpy(x)
    shadow = trace._tracer.memory.read(t)
    if shadow is None or shadow.label is None:
        return None
    data = shadow.label.data[..., 0].expand(t.shape)
    return data.flatten().tolist()  # type: ignore[no-any-return]


def notes(trace: causaltrace.Watch) -> list[causaltrace.Notice]:
    return [note for note in trace.report.notes if "no score" not in note.message]


def from_file(path: Path) -> np.ndarray:
    header = np.fromfile(path, dtype="<i4", count=256)
    return np.fromfile(path, dtype="<u2", count=int(header[2]), offset=HEADER)


def from_open_file(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        header = np.fromfile(file, dtype="<i4", count=256)
        assert header[0] == 20240520
        return np.fromfile(file, dtype="<u2", count=int(header[2]))


def by_imported_name(path: Path) -> np.ndarray:
    return fromfile(path, "<u2", offset=HEADER)


def from_bytes(path: Path) -> np.ndarray:
    return np.fromfile(path, dtype=np.uint8)[HEADER:].view("<u2")


def from_parts(path: Path) -> np.ndarray:
    parts = [np.fromfile(path, "<u2", 8, offset=HEADER + 2 * i) for i in range(0, N, 8)]
    return np.concatenate(parts)


def mapped(path: Path) -> np.ndarray:
    return np.memmap(path, dtype=np.uint16, mode="r", offset=HEADER)[:]


def sliced(path: Path) -> np.ndarray:
    return np.memmap(str(path), dtype=np.uint16, mode="r")[HEADER // 2 :]


READERS = [from_file, from_open_file, by_imported_name, from_bytes, from_parts, mapped, sliced]


def legal(model: Toy, tokens: Tensor) -> Tensor:
    return model(tokens[:-1])  # type: ignore[no-any-return]


def leaking(model: Toy, tokens: Tensor) -> Tensor:
    """From row 10 on the next token is in the row that should predict it."""
    rows = model(tokens)
    return torch.cat([rows[:10], rows[10:-1] + rows[11:]])


def scored(rows: Callable[[Toy, Tensor], Tensor], array: np.ndarray) -> tuple[Tensor, Tensor]:
    tokens = torch.from_numpy(array.astype(np.int64))
    logits = rows(Toy(), tokens)
    return logits, F.cross_entropy(logits, tokens[1:], reduction="none").sum()


def watched(read: Read, path: Path, rows: Callable[[Toy, Tensor], Tensor]) -> causaltrace.Watch:
    with causaltrace.watch() as trace, torch.no_grad():
        causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
        scored(rows, read(path))
    return trace


@pytest.mark.parametrize("read", READERS)
def test_a_legal_eval_of_a_file_is_clean(read: Read, shard: Path) -> None:
    trace = watched(read, shard, legal)
    assert trace.report.status == "clean", trace.report
    assert sorted(trace.report.positions) == list(range(1, N)) and not trace.report.notes
    assert [(s.name, s.size) for s in trace.streams.streams] == [("val_000.bin", N)]


@pytest.mark.parametrize("read", READERS)
def test_a_leak_from_a_file_is_found(read: Read, shard: Path) -> None:
    """The truth: which rows change if one token in the file does."""
    trace = watched(read, shard, leaking)
    tokens = stream(N).numpy()
    with torch.no_grad():
        before, _ = scored(leaking, read(shard))
        truth = set()
        for j in range(N):
            flipped = tokens.copy()
            flipped[j] = (flipped[j] + 1) % VOCAB
            write(shard, flipped)
            changed = (scored(leaking, read(shard))[0] != before).any(-1).nonzero().flatten() + 1
            truth |= {int(t) for t in changed if t <= j}
    assert truth == set(range(11, N))
    assert trace.report.status == "violation" and targets(trace) == truth, trace.report


@pytest.mark.parametrize("read", READERS)
def test_values_are_the_same_bits(read: Read, shard: Path) -> None:
    plain = read(shard)
    with torch.no_grad():
        _, loss = scored(legal, plain)
        with causaltrace.watch() as trace:
            causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
            array = read(shard)
            _, same = scored(legal, array)
            assert seen(trace, array) == list(range(N))
    assert array.dtype == plain.dtype and array.tobytes() == plain.tobytes()
    assert loss.item() == same.item()


def test_a_place_has_one_position(shard: Path) -> None:
    with causaltrace.watch() as trace:
        causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
        whole, again = from_file(shard), from_file(shard)
        part = np.fromfile(shard, "<u2", 5, offset=HEADER + 14)
        table = np.memmap(shard, np.uint16, "r", offset=HEADER, shape=(4, 6))
        column = np.memmap(shard, np.uint16, "r", offset=HEADER, shape=(4, 6), order="F")
        over = np.memmap(shard, np.uint16, "r")[HEADER // 2 - 2 : HEADER // 2 + 2]
        assert seen(trace, whole) == seen(trace, again) == list(range(N))
        assert seen(trace, part) == [7, 8, 9, 10, 11]
        assert seen(trace, table[1:3, ::2]) == [6, 8, 10, 12, 14, 16]
        assert seen(trace, column[0]) == [0, 4, 8, 12, 16, 20]
        assert seen(trace, over) == [-1, -1, 0, 1]
        assert trace.streams.size == N


def test_maps_are_still_maps(shard: Path) -> None:
    with causaltrace.watch() as trace:
        causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
        tokens = np.memmap(shard, np.uint16, "r+", offset=HEADER)
        assert isinstance(tokens, np.memmap) and tokens.mode == "r+" and tokens.offset == HEADER
        assert tokens.filename == shard
        tokens.flush()
        rows = np.ones((VOCAB, 2))[tokens]
        assert trace._tracer.memory.read(torch.from_numpy(rows)) is not None
        assert seen(trace, tokens[3:5]) == [3, 4]
    assert int(tokens[3]) == int(stream(N)[3])


def read_buffer(a: Any) -> int:
    return memoryview(a).tolist()[20]  # type: ignore[no-any-return]


#: Ways to a value that no array with labels tells of by itself.
WAYS: list[Callable[[Any], int]] = [
    lambda a: int(a[20]),
    lambda a: int(a.base[20]),
    lambda a: int(a._mmap[HEADER + 40]),
    lambda a: int(a.view(np.ndarray)[20]),
    lambda a: int(np.asarray(a)[20]),
    lambda a: int(a.tobytes()[40]),
    read_buffer,
]


@pytest.mark.parametrize("way", WAYS)
def test_no_way_out_of_a_map_goes_unnoticed(way: Callable[[Any], int], shard: Path) -> None:
    model = Toy()
    with causaltrace.watch() as trace, torch.no_grad():
        causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
        array = np.memmap(shard, np.uint16, "r", offset=HEADER)
        known = torch.tensor(float(way(array)))
        tokens = torch.from_numpy(array.astype(np.int64))
        F.cross_entropy(model(tokens[:-1]) * known, tokens[1:], reduction="none").sum()
    assert trace.report.status == "unverified" and trace.report.escapes, trace.report


@pytest.mark.parametrize("mode", [None, "r"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files(mode: Any, order: Any, tmp_path: Path) -> None:
    path = tmp_path / "val.npy"
    np.save(path, np.asarray(stream(N).numpy().reshape(4, 6), order=order))
    with causaltrace.watch() as trace:
        causaltrace.label_files(tmp_path / "*.npy")
        tokens = np.load(path, mmap_mode=mode)
        assert isinstance(tokens, np.memmap) is (mode is not None)
        place = np.arange(N).reshape((4, 6), order=order)
        assert seen(trace, tokens[1]) == place[1].tolist()
        with path.open("rb") as file:
            assert seen(trace, np.load(file)) == place.flatten().tolist()
        assert seen(trace, np.fromfile(path, np.int64, offset=128)) == list(range(N))
    assert np.array_equal(tokens, stream(N).numpy().reshape(4, 6))


def test_a_leak_from_a_npy_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "val.npy"
    np.save(path, stream(N).numpy())
    for rows, status in ((legal, "clean"), (leaking, "violation")):
        with causaltrace.watch() as trace, torch.no_grad():
            causaltrace.label_files("*.npy")
            scored(rows, np.load(path, mmap_mode="r"))
        assert trace.report.status == status, trace.report


def test_negative_ids_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "val.npy"
    np.save(path, np.array([3, -100, 4]))
    with causaltrace.watch() as trace:
        causaltrace.label_files("val.npy")
        assert seen(trace, np.load(path)) == [0, -1, 2]


def test_each_file_is_a_stream(shard: Path) -> None:
    second = shard.with_name("val_001.bin")
    write(second, stream(10, seed=2).numpy())
    with causaltrace.watch() as trace, torch.no_grad():
        causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
        for path in (shard, second):
            scored(legal, from_file(path))
        assert seen(trace, from_file(second)) == list(range(N, N + 10))
    assert trace.report.status == "clean", trace.report
    assert [s.name for s in trace.streams.streams] == ["val_000.bin", "val_001.bin"]


def test_training_on_a_file_before_it_is_scored_is_found(shard: Path) -> None:
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with causaltrace.watch() as trace:
        causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
        nll(model, torch.from_numpy(from_file(shard).astype(np.int64))).mean().backward()
        optimizer.step()
        with torch.no_grad():  # the file is read again
            nll(model, torch.from_numpy(mapped(shard).astype(np.int64))).sum()
    assert targets(trace, "CT003") == set(range(1, N)), trace.report


def test_other_files_are_untouched(shard: Path) -> None:
    other = shard.with_name("train_000.bin")
    write(other, stream(N).numpy())
    with causaltrace.watch() as trace:
        causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
        for read in READERS:
            assert type(read(other)) in (np.ndarray, np.memmap) and seen(trace, read(other)) is None
        assert type(np.fromfile(shard, "<i4", 256)) is np.ndarray
        assert not notes(trace)


def test_numbers_of_another_size_hold_the_labels_in_their_bytes(shard: Path) -> None:
    """Of several labels in one number the latest counts, as in any view of tokens as another dtype."""
    with causaltrace.watch() as trace:
        causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
        assert seen(trace, np.fromfile(shard, "<u4", offset=HEADER)) == list(range(1, N, 2))
        assert seen(trace, np.fromfile(shard, "<i4"))[: HEADER // 4 + 1] == [-1] * (HEADER // 4) + [1]  # type: ignore[index]
        assert seen(trace, np.fromfile(shard, np.uint8, 4, offset=HEADER)) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "read",
    [
        lambda path: np.fromfile(path, np.float32, offset=HEADER),
        lambda path: np.fromfile(path, ">u2", offset=HEADER),
        lambda path: np.fromfile(path, "<u2", 3, offset=HEADER + 1),
        lambda path: np.memmap(path, "S2", "r", offset=HEADER),
    ],
)
def test_what_cannot_be_labelled_is_never_clean(read: Read, shard: Path) -> None:
    with causaltrace.watch() as trace, torch.no_grad():
        causaltrace.label_files("val_*.bin", dtype=np.uint16, offset=HEADER)
        assert type(read(shard)) in (np.ndarray, np.memmap)
        scored(legal, from_file(shard))
    assert trace.report.status == "unverified", trace.report
    assert any("not followed" in note.message and note.blocking for note in trace.report.notes)


def test_files_that_were_written_in_the_watch_are_never_clean(shard: Path) -> None:
    """What was written there may depend on labels."""

    def later(path: Path) -> np.ndarray:
        from_file(path)
        tokens = np.memmap(path, np.uint16, "r+", offset=HEADER)
        tokens[5] = tokens[20] + 1
        tokens.flush()
        return from_file(path)

    def at_once(path: Path) -> np.ndarray:
        write(path, stream(N, seed=3).numpy())
        return from_file(path)

    def longer(path: Path) -> np.ndarray:
        from_file(path)
        write(path, stream(N + 1).numpy())
        return from_file(path)

    for read in (later, at_once, longer):
        write(shard, stream(N).numpy())
        time.sleep(0.05)  # clocks of file systems are coarse
        trace = watched(read, shard, legal)
        assert trace.report.status == "unverified", trace.report
        assert any("not followed" in note.message and note.blocking for note in trace.report.notes)


def test_labels_of_two_dtypes_need_one_that_is_said(shard: Path) -> None:
    with causaltrace.watch():
        causaltrace.label_files("val_*.bin")
        with pytest.raises(ValueError, match=r"int32 and as uint16.*dtype=.*offset="):
            from_file(shard)


@pytest.mark.parametrize("pattern", ["*.bin", "data/*.bin", "/absolute"])
def test_patterns_are_paths_or_their_ends(pattern: str, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    np.arange(4).tofile(folder / "val.bin")
    monkeypatch.chdir(folder)
    with causaltrace.watch() as trace:
        causaltrace.label_files("nothing", str(folder / "v*") if pattern == "/absolute" else pattern)
        for name in ("val.bin", Path("val.bin"), b"val.bin"):
            assert seen(trace, np.fromfile(name, np.int64)) == [0, 1, 2, 3]
    (note,) = notes(trace)
    assert "label_files('nothing') matched no file" in note.message and not note.blocking


def test_no_file_no_clean_report(shard: Path) -> None:
    with causaltrace.watch() as trace, torch.no_grad():
        causaltrace.label_files("test_*.bin")
        scored(legal, from_file(shard))
    assert trace.report.status == "unverified", trace.report
    assert "test_*.bin" in str(trace.report)


def readers() -> list[Any]:
    return [np.fromfile, np.load, vars(np.memmap)["__new__"]]


def test_readers_are_replaced_only_by_label_files_and_put_back() -> None:
    before = readers()
    with causaltrace.watch():
        assert all(a is b for a, b in zip(readers(), before, strict=True))
        causaltrace.label_files("val_*.bin")
        causaltrace.label_files("test_*.bin", dtype=np.int32)
        assert not any(a is b for a, b in zip(readers(), before, strict=True))
    assert all(a is b for a, b in zip(readers(), before, strict=True))
    with pytest.raises(ZeroDivisionError):
        watched(lambda path: np.zeros(1 // 0), Path("val_000.bin"), legal)
    assert all(a is b for a, b in zip(readers(), before, strict=True))


def test_it_needs_an_open_watch() -> None:
    with pytest.raises(RuntimeError, match="call it at the top of the block"):
        causaltrace.label_files("val_*.bin")
    trace = causaltrace.watch()
    with pytest.raises(RuntimeError, match="call it at the top of the block"):
        trace.label_files("val_*.bin")


def test_bad_arguments() -> None:
    with causaltrace.watch():
        with pytest.raises(ValueError, match="names of files"):
            causaltrace.label_files()
        with pytest.raises(TypeError):
            causaltrace.label_files(3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="integers"):
            causaltrace.label_files("a", dtype=np.float32)
        with pytest.raises(ValueError, match="offset="):
            causaltrace.label_files("a", offset=-1)


def by_number(path: Path) -> np.ndarray:
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as file:
        return np.fromfile(file, dtype="<u2", offset=HEADER)


def symlink(path: Path) -> np.ndarray:
    other = path.with_name("other.dat")
    other.symlink_to(path)
    return np.fromfile(other, dtype="<u2", offset=HEADER)


def hard_link(path: Path) -> np.ndarray:
    other = path.with_name("other.dat")
    other.hardlink_to(path)
    return np.memmap(other, dtype="<u2", mode="r", offset=HEADER)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="nothing says what a number stands for")
@pytest.mark.parametrize("read", [by_number, symlink, hard_link])
def test_other_names_of_a_file(shard: Path, read: Read) -> None:
    with causaltrace.watch() as trace:
        causaltrace.label_files("val_*.bin", dtype="<u2", offset=HEADER)
        assert seen(trace, read(shard)) == list(range(N))
        assert seen(trace, np.fromfile(shard, dtype="<u2", offset=HEADER)) == list(range(N))


def test_records_are_named(shard: Path) -> None:
    with causaltrace.watch() as trace:
        causaltrace.label_files("val_*.bin", dtype="<u2", offset=HEADER)
        np.rec.fromfile(str(shard), dtype=[("t", "<u2")], offset=HEADER)
    assert any("as records" in note.message and note.blocking for note in trace.report.notes)
