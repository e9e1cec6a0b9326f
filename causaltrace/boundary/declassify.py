"""Values without the labels that they depend on. One function for each kind of value that has any."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from causaltrace.shadow import Memory, Shadow

TOO_LATE = (
    "declassify takes a tensor, not {}: a number or a list has left torch already, and what it may depend on "
    "counts. Declassify the tensor before it is read: causaltrace.declassify(t, reason=...).item()"
)


@functools.singledispatch
def unlabelled(x: Any, memory: Memory) -> tuple[Any, Shadow | None]:
    """The same values in memory of their own, and the shadow that ``x`` has."""
    raise TypeError(TOO_LATE.format(type(x).__name__))


@unlabelled.register
def _(x: Tensor, memory: Memory) -> tuple[Tensor, Shadow | None]:
    return x.clone(), memory.read(x)
