"""Files as label sources: what numpy reads from them in a watch are labels, each at its place in the file."""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace.boundary import reads
from causaltrace.boundary.adopt import KINDS
from causaltrace.boundary.arrays import Arrays, bare
from causaltrace.boundary.number import told
from causaltrace.boundary.numpy import bound_to
from causaltrace.lattice.cells import LABELS, Cells
from causaltrace.parts import Depth
from causaltrace.replaced import replaced
from causaltrace.shadow import Shadow
from causaltrace.stream import Stream

Pattern = str | os.PathLike[str]


@dataclass
class Source:
    """Files by the glob pattern of their names, and where in them the labels lie."""

    pattern: str
    dtype: np.dtype[Any] | None
    offset: int
    matched: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and (self.dtype.kind not in "iu" or not self.dtype.isnative):
            raise TypeError(f"labels are integers in this machine's byte order, not {self.dtype!r}")
        if self.offset < 0:
            raise ValueError(f"offset= is the byte of a file at which its labels begin, not {self.offset}")

    def matches(self, path: str) -> bool:
        """As ``PurePath.match``: a pattern without a root is compared from the right."""
        return PurePath(path).match(self.pattern)


@dataclass(frozen=True)
class File:
    """The stream of a file: labels from byte ``first`` on, as they were when the file was first read."""

    stream: Stream
    tokens: np.ndarray
    first: int


class Files:
    """Labels what ``np.fromfile``, ``np.memmap`` and ``np.load`` give from the files of its sources; what
    else reads there, ``reads`` knows.

    Args:
        arrays: of the open watch.
        add: makes a new stream of a name and its tokens.
        note: tells the report something: a message, a remedy, and whether it stands in the way of ``clean``.
    """

    reading = Depth()  #: of methods of files, on this thread, that are looked at as a whole

    def __init__(
        self, arrays: Arrays, add: Callable[[str, Tensor], Stream], note: Callable[[str, str, bool], None]
    ) -> None:
        self._arrays, self._add, self._note = arrays, add, note
        self._sources: list[Source] = []
        self._files: dict[tuple[int, int], File] = {}  #: by device and inode: a file has many names
        self._open: weakref.WeakKeyDictionary[Any, tuple[Source | None, int]] = weakref.WeakKeyDictionary()
        self._noted: set[tuple[str, str]] = set()
        self._undo: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        self._begun = time.time_ns()

    def declare(self, patterns: tuple[Pattern, ...], dtype: Any, offset: int) -> None:
        if not patterns:
            raise ValueError('label_files needs the names of files: label_files("data/val_*.bin")')
        kind = None if dtype is None else np.dtype(dtype)
        self._sources += [Source(os.fspath(p), kind, offset) for p in patterns]

    # -- the readers ----------------------------------------------------------------------------------

    def enter(self) -> None:
        readers = {
            np.fromfile: self._fromfile(np.fromfile),
            np.load: self._load(np.load),
            np.rec.fromfile: self._records(np.rec.fromfile),
        }
        names: dict[int, Any] = {id(original): reader for original, reader in readers.items()}
        names |= {id(original): reader for original, reader in reads.functions(self)}
        for owner, name, original in list(bound_to(names)):
            self._undo.append(replaced(owner, name, names[id(original)]))
        self._undo.append(replaced(np.memmap, "__new__", staticmethod(self._memmap(np.memmap.__new__))))
        self._undo += reads.enter(self)

    def close(self) -> None:
        for undo in reversed(self._undo):
            undo()
        for source in self._sources:
            if not source.matched:
                self._note(
                    f"label_files({source.pattern!r}) matched no file that numpy read in the watch",
                    "patterns are compared with whole paths, or with their last parts; the file must be read "
                    "inside the watch, after label_files, with np.fromfile, np.memmap or np.load",
                    False,
                )

    def _fromfile(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def fromfile(
            file: Any, dtype: Any = float, count: Any = -1, sep: str = "", offset: Any = 0, **like: Any
        ) -> Any:
            count, offset = told((count, offset))
            source = self.source(file)
            start = _place(file) + offset if source else 0
            out = original(file, dtype, count, sep, offset, **like)
            if source is None:
                return out
            return self.unfollowed(out, file, "as text") if sep else self.read(out, file, source, start)

        return fromfile

    def _load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def load(file: Any, *args: Any, **kwargs: Any) -> Any:
            source = self.source(file)
            if source is None:
                return original(file, *args, **kwargs)
            start = _values(_path(file), _place(file))
            out = self._arrays.plainly(original, (file, *args), kwargs)
            return self.read(out, file, source, start)

        return load

    def _records(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def fromfile(fd: Any, *args: Any, **kwargs: Any) -> Any:
            source = self.source(fd)
            out = original(fd, *args, **kwargs)
            return out if source is None else self.unfollowed(out, fd, "as records")

        return fromfile

    def _memmap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def new(subtype: Any, filename: Any, *args: Any, **kwargs: Any) -> Any:
            args, kwargs = told(args), {key: told(value) for key, value in kwargs.items()}
            out = original(subtype, filename, *args, **kwargs)
            source = self.source(filename)
            return out if source is None else self.read(out, filename, source, out.offset)

        return new

    # -- labels ---------------------------------------------------------------------------------------

    def source(self, file: Any) -> Source | None:
        """The source that a file belongs to, unless numpy's own code reads it for a reader."""
        path = "" if self._arrays.inside else _path(file)
        if not path:
            return None
        names = list(_names(path)) if self._sources else []
        found = [source for source in self._sources if any(map(source.matches, names))]
        for source in found:
            source.matched = True
        return found[0] if found else None

    def source_of_open(self, file: Any) -> Source | None:
        """The same for a file that is read line by line, maybe: it is looked up once."""
        if self._arrays.inside:
            return None
        known, count = self._open.get(file, (None, 0))
        if count != len(self._sources):
            known = self.source(file)
            self._open[file] = known, len(self._sources)
        return known

    def labels(self, file: Any, source: Source, start: int, stop: int) -> bool:
        """Are there labels between these bytes?"""
        return start < stop and stop > _values(os.path.realpath(_path(file)), 0) + source.offset

    def read(self, out: Any, file: Any, source: Source, start: int) -> Any:
        """What was read from the bytes of ``file`` from ``start`` on, with its labels."""
        path = os.path.realpath(_path(file))
        first = _values(path, 0) + source.offset
        if isinstance(out, np.ndarray) and (not out.size or start + out.nbytes <= first):
            return out
        kind = KINDS.get(type(out))
        if kind is None:
            return self.unfollowed(out, file, f"as {type(out).__name__}")
        if out.dtype.kind not in "iu" or not out.dtype.isnative:
            return self.unfollowed(out, file, f"as {out.dtype!r}")
        with self._lock, torch.inference_mode(False), _disable_current_modes():
            status = os.stat(path)
            key = status.st_dev, status.st_ino
            if key not in self._files and status.st_mtime_ns > self._begun:
                return self.unfollowed(out, file, "after the watch had begun and the file was written")
            known = self._files.get(key)
            if known is None:
                known = self._files[key] = self._opened(path, source, out.dtype, first)
            dtype = known.tokens.dtype
            if source.dtype is None and out.dtype != dtype:
                raise ValueError(
                    f"{path} was read as {dtype} and as {out.dtype}: say which of them labels are, and "
                    f"where they begin: label_files({source.pattern!r}, dtype=..., offset=<bytes of header>)"
                )
            memory = (out if out.flags.c_contiguous else out.T).reshape(-1).view(np.uint8)
            place, split = divmod(start - known.first, dtype.itemsize)
            if split or memory.size % dtype.itemsize:
                return self.unfollowed(out, file, "from the middle of a label")
            tokens, stop = memory.view(dtype), place + memory.size // dtype.itemsize
            was = known.tokens[max(place, 0) : stop]
            if stop > known.tokens.size or bool((tokens[-was.size :] != was).any()):
                return self.unfollowed(out, file, "after it had changed")
            positions = torch.arange(place, stop)
            none = (positions < 0) | (self._arrays.tensor(tokens).to(positions.dtype) < 0)
            positions = torch.where(none, -1, positions + known.stream.offset)
            self._arrays.write(tokens, Shadow(label=Cells(positions.unsqueeze(-1), node=LABELS)))
        return np.ndarray.view(out, kind)

    def into(self, a: np.ndarray, size: int, file: Any, source: Source, start: int) -> None:
        """The same for the first elements of an array that was there before."""
        self.read(bare(a).reshape(-1)[:size], file, source, start)
        if self._arrays.known(bare(a)):
            self._arrays.unseen("readinto", a)

    def _opened(self, path: str, source: Source, dtype: np.dtype[Any], first: int) -> File:
        """A new stream of all the labels of a file."""
        dtype = source.dtype or dtype
        size = (os.path.getsize(path) - first) // dtype.itemsize
        tokens = self._arrays.plainly(np.fromfile, (path, dtype, size), {"offset": first})
        name = os.path.basename(path)
        taken = {file.stream.name for file in self._files.values()}
        return File(self._add(path if name in taken else name, self._arrays.tensor(tokens)), tokens, first)

    def unfollowed(self, out: Any, file: Any, how: str) -> Any:
        path = _path(file)
        if (path, how) not in self._noted:
            self._noted.add((path, how))
            self._note(
                f"{path} holds labels and was read {how}: what was read is not followed",
                "give label_files a pattern of label files only, with dtype= and offset= of the labels; "
                "numpy must read them as integers",
                True,
            )
        return out


def _path(file: Any) -> str:
    """The absolute path of a file that was named, or is open; empty: it has none."""
    name = getattr(file, "name", "") if hasattr(file, "read") else file
    if isinstance(name, int) and not getattr(file, "closed", True):  # it was opened by number
        name = os.path.realpath(f"/proc/self/fd/{name}")
        return name if os.path.exists(name) else ""
    return os.path.abspath(os.fsdecode(name)) if isinstance(name, (str, bytes, os.PathLike)) and name else ""


def _names(path: str) -> Iterator[str]:
    """The names of a file, as far as they are near: its own, behind links, and in the same directory."""
    real = os.path.realpath(path)
    yield path
    yield real
    if os.path.isfile(real) and (status := os.stat(real)).st_nlink > 1:
        with os.scandir(os.path.dirname(real)) as near:
            yield from (one.path for one in near if one.inode() == status.st_ino)


def _place(file: Any) -> int:
    """The byte from which a file is read."""
    return int(file.tell()) if hasattr(file, "read") else 0


def _values(path: str, start: int) -> int:
    """The byte at which values begin: behind the header, if a .npy file begins at ``start``."""
    with open(path, "rb") as file:
        file.seek(start)
        magic = file.read(8)
        if magic[:6] != b"\x93NUMPY":
            return start
        width = 2 if magic[6] == 1 else 4
        return start + 8 + width + int.from_bytes(file.read(width), "little")
