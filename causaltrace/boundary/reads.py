"""Reads of label files that are not numpy's: bytes that Python gets, or that it puts into arrays.

``readinto`` an array, and ``torch.from_file``, give labels like numpy's readers. Whatever else reads labels
from the file is named. What only reads the bytes before them (a header) is not.
"""

from __future__ import annotations

import functools
import io
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from causaltrace._compat import as_numpy
from causaltrace.boundary import slots
from causaltrace.boundary.arrays import bare
from causaltrace.places import ours

_from_file = torch.from_file  # before a watch patches it
#: Files that Python reads, and their methods that give bytes. Those of the first are called by the others.
READING: dict[type, tuple[str, ...]] = {
    io.FileIO: ("read", "readall", "readinto"),
    **dict.fromkeys(
        (io.BufferedReader, io.BufferedRandom),
        ("read", "read1", "peek", "readline", "readinto", "readinto1", "__next__"),
    ),
}
#: Functions that read a file by its number, and where that is among their arguments.
NUMBERED = {"read": 0, "readv": 0, "pread": 0, "preadv": 0, "sendfile": 1, "copy_file_range": 0}


class Labelling(Protocol):
    """``boundary.files.Files``, for reads of a file from a byte on."""

    reading: int

    def source(self, file: Any) -> Any: ...
    def source_of_open(self, file: Any) -> Any: ...
    def labels(self, file: Any, source: Any, start: int, stop: int) -> bool: ...
    def read(self, out: Any, file: Any, source: Any, start: int) -> Any: ...
    def into(self, a: np.ndarray, size: int, file: Any, source: Any, start: int) -> None: ...
    def unfollowed(self, out: Any, file: Any, how: str) -> Any: ...


def functions(files: Labelling) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """Functions of modules, and what takes their place."""
    yield torch.from_file, _tensor(files, torch.from_file)
    for name, place in NUMBERED.items():
        if hasattr(os, name):
            yield getattr(os, name), _numbered(files, place, getattr(os, name))


def enter(files: Labelling) -> Iterator[Callable[[], None]]:
    """Gives what ends it."""
    for kind, names in READING.items():
        methods = {name: _method(files, name, vars(kind)[name]) for name in names}
        yield slots.patched(kind, methods)
    yield slots.constructing(mmap.mmap, functools.partial(_mapped, files))


def _method(files: Labelling, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(file: Any, *args: Any) -> Any:
        within = files.reading or file.closed or ours(sys._getframe(1))
        source = None if within else files.source_of_open(file)
        if source is None:
            return original(file, *args)
        start, into = file.tell(), args[0] if name.startswith("readinto") and args else None
        files.reading += 1
        try:
            out = original(file, *bare(args))
        finally:
            files.reading -= 1
        stop = start + len(out) if name == "peek" else file.tell()
        if isinstance(into, np.ndarray) and out is not None and out % into.itemsize == 0:
            files.into(into, out // into.itemsize, file, source, start)
        elif files.labels(file, source, start, stop):
            files.unfollowed(None, file, "by Python")
        return out

    return method


def _numbered(files: Labelling, place: int, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        number = args[place] if len(args) > place else None
        if isinstance(number, int) and (name := _name(number)) and files.source(name) is not None:
            files.unfollowed(None, name, f"by os.{original.__name__}")
        return original(*args, **kwargs)

    return function


def _name(number: int) -> str:
    """Of an open file; empty: it has none."""
    name = os.path.realpath(f"/proc/self/fd/{number}")
    return name if os.path.isfile(name) else ""


def _mapped(files: Labelling, original: Any, cls: Any, args: Any, kwargs: Any) -> Any:
    """Numpy maps files for its own reader."""
    out = original(cls, args, kwargs)
    number = args[0] if args else kwargs.get("fileno")
    if str(sys._getframe(2).f_globals.get("__name__")).startswith("numpy."):
        return out
    if isinstance(number, int) and (name := _name(number)) and files.source(name) is not None:
        files.unfollowed(None, name, "by mmap")
    return out


def _tensor(files: Labelling, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def from_file(filename: Any, *args: Any, **kwargs: Any) -> Any:
        source = files.source(filename)
        shared = args[0] if args else kwargs.get("shared")
        out = (original if source is None or shared else _from_file)(filename, *args, **kwargs)
        if source is None:
            return out
        if shared and files.labels(filename, source, 0, out.nbytes):
            files.unfollowed(None, filename, "by torch.from_file, to be shared")
        elif not shared:  # nobody else can write there
            files.read(as_numpy(out), filename, source, 0)
        return out

    return from_file
