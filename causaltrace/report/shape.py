"""Check plain JSON data against a shape, so that what is read can be trusted to have its types.

A shape is written like the data it describes: ``str``, ``bool`` or ``int``; ``[shape]`` for a list of any
length; ``(a, b)`` for a list of exactly these; ``{"key": shape}`` for an object with these keys, and perhaps
others that are ignored; ``Map(shape)`` for an object with any keys; ``Maybe(shape)`` for null as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

#: Whole numbers that every reader of JSON can hold.
LIMIT = 2**53

#: Characters that steer a terminal, or that no encoding can hold; line ends and tabs are left.
_STEERING = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Maybe:
    shape: Any


@dataclass(frozen=True, slots=True)
class Map:
    shape: Any


def take(shape: Any, data: Any, where: str = "") -> Any:
    """``data`` as ``shape`` says, with control characters made visible.

    Raises:
        ValueError: ``data`` has another shape; the text says where, and what was expected there.
    """
    if shape is str:
        return _STEERING.sub("\ufffd", _expect(data, str, "text", where))
    if shape is bool:
        return _expect(data, bool, "true or false", where)
    if shape is int:
        if type(data) is not int or abs(data) >= LIMIT:
            raise _error(data, "a whole number below 2**53", where)
        return data
    if isinstance(shape, Maybe):
        return None if data is None else take(shape.shape, data, where)
    if isinstance(shape, Map):
        found = _expect(data, dict, "an object", where)
        return {take(str, k, where): take(shape.shape, v, f"{where}.{k}") for k, v in found.items()}
    if isinstance(shape, dict):
        found = _expect(data, dict, "an object", where)
        for key in shape:
            if key not in found:
                raise ValueError(f"{where.lstrip('.') or 'the document'} has no {key!r}")
        return {key: take(inner, found[key], f"{where}.{key}") for key, inner in shape.items()}
    found = _expect(data, (list, tuple), "a list", where)
    if isinstance(shape, list):
        return [take(shape[0], item, f"{where}[{i}]") for i, item in enumerate(found)]
    if len(found) != len(shape):
        raise _error(data, f"a list of {len(shape)}", where)
    return [
        take(inner, item, f"{where}[{i}]") for i, (inner, item) in enumerate(zip(shape, found, strict=True))
    ]


def _expect(data: Any, kind: type | tuple[type, ...], words: str, where: str) -> Any:
    if not isinstance(data, kind):
        raise _error(data, words, where)
    return data


def _error(data: Any, words: str, where: str) -> ValueError:
    shown = ascii(data) if isinstance(data, str | bool | None) else type(data).__name__
    return ValueError(f"{where.lstrip('.') or 'the document'} must be {words}, not {shown[:40]}")
