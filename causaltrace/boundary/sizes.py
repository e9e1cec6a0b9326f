"""Who asks torch for the size of a tensor, once masks have chosen how many elements some have."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from causaltrace._compat import TensorBase
from causaltrace.boundary import slots
from causaltrace.counts import Counts, storage
from causaltrace.places import ours
from causaltrace.replaced import replaced

#: Attributes and methods of tensors that say how many elements there are.
SIZES = ("shape", "size", "numel", "nelement", "__len__", "ndim", "dim", "ndimension", "stride", "nbytes")
#: Those that refuse what has not one element, before any operation runs (see ``elements`` for others).
SINGLE = ("item", "__bool__", "__int__")


def telling(counts: Counts, undo: list[Callable[[], None]]) -> Callable[[], None]:
    """From the first call on they tell; what ends it goes to ``undo``."""

    def begin() -> None:
        counts.begin = lambda: None
        undo.append(slots.patched(TensorBase, {name: _telling(counts, name) for name in (*SIZES, *SINGLE)}))
        undo.append(replaced(torch, "numel", _asking(counts, torch.numel)))

    return begin


def _asking(counts: Counts, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def asking(t: Any, *args: Any, **kwargs: Any) -> Any:
        if counts and not ours(sys._getframe(1)):
            counts.asked(storage(t))
        return original(t, *args, **kwargs)

    return asking


def _telling(counts: Counts, name: str) -> Any:
    original = vars(TensorBase)[name]
    return _asking(counts, original) if callable(original) else property(_asking(counts, original.__get__))
