"""Check plain JSON data against a shape, so that what is read can be trusted to have its types.

A shape is written like the data it describes: ``str``, ``bool``, ``int`` or ``float``; ``[shape]`` for a list
of any length; ``(a, b)`` for a list of exactly these; ``{"key": shape}`` for an object with these keys, and
perhaps others that are ignored; ``Map(shape)`` for an object with any keys; ``Maybe(shape)`` for null, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Whole numbers that every reader of JSON can hold.
LIMIT = 2**53

#: Characters that steer a terminal, or that no encoding can hold; line ends and tabs are left.
_STEERING = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

Reader = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Maybe:
    shape: Any


@dataclass(frozen=True, slots=True)
class Map:
    shape: Any


class ShapeError(ValueError):
    """Data of another shape; the text says where, and what was expected there."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem, self.where = problem, ""

    def within(self, place: object) -> ShapeError:
        """The same error, seen from the list or object around it."""
        step = f"[{place}]" if isinstance(place, int) else f".{place}"
        self.where = step + self.where
        return self

    def __str__(self) -> str:
        return f"{self.where.lstrip('.') or 'the document'} {self.problem}"


def reader(shape: Any) -> Reader:
    """A function that gives data as ``shape`` says, with control characters made visible, or raises
    `ShapeError`."""
    if isinstance(shape, list):
        return _list(reader(shape[0]))
    if isinstance(shape, tuple):
        return _tuple([reader(inner) for inner in shape])
    if isinstance(shape, dict):
        return _object({key: reader(inner) for key, inner in shape.items()})
    if isinstance(shape, Map):
        return _map(reader(shape.shape))
    if isinstance(shape, Maybe):
        inner = reader(shape.shape)
        return lambda data: None if data is None else inner(data)
    return {str: _text, int: _number, float: _measure, bool: _flag}[shape]


def _text(data: Any) -> str:
    if type(data) is not str:
        raise _expected("text", data)
    return _STEERING.sub("\ufffd", data)


def _number(data: Any) -> int:
    if type(data) is not int or not -LIMIT < data < LIMIT:
        raise _expected("a whole number below 2**53", data)
    return data


def _measure(data: Any) -> float:
    if type(data) not in (int, float) or not -math.inf < data < math.inf:
        raise _expected("a number", data)
    return float(data)


def _flag(data: Any) -> bool:
    if type(data) is not bool:
        raise _expected("true or false", data)
    return data


def _list(inner: Reader) -> Reader:
    def read(data: Any) -> list[Any]:
        if not isinstance(data, list | tuple):
            raise _expected("a list", data)
        found: list[Any] = []
        try:
            for item in data:
                found.append(inner(item))
        except ShapeError as error:
            raise error.within(len(found)) from None
        return found

    return read


def _tuple(inner: list[Reader]) -> Reader:
    def read(data: Any) -> tuple[Any, ...]:
        if not isinstance(data, list | tuple) or len(data) != len(inner):
            raise _expected(f"a list of {len(inner)}", data)
        found: list[Any] = []
        try:
            for one, item in zip(inner, data, strict=True):
                found.append(one(item))
        except ShapeError as error:
            raise error.within(len(found)) from None
        return tuple(found)

    return read


def _object(inner: dict[str, Reader]) -> Reader:
    def read(data: Any) -> dict[str, Any]:
        if type(data) is not dict:
            raise _expected("an object", data)
        found = {}
        for key, one in inner.items():
            if key not in data:
                raise ShapeError(f"has no {key!r}")
            try:
                found[key] = one(data[key])
            except ShapeError as error:
                raise error.within(key) from None
        return found

    return read


def _map(inner: Reader) -> Reader:
    def read(data: Any) -> dict[str, Any]:
        if type(data) is not dict:
            raise _expected("an object", data)
        clean = {_text(key): value for key, value in data.items()}
        return _object(dict.fromkeys(clean, inner))(clean)

    return read


def _expected(what: str, data: Any) -> ShapeError:
    shown = ascii(data)[:40] if isinstance(data, str | bool | None) else type(data).__name__
    return ShapeError(f"must be {what}, not {shown}")
