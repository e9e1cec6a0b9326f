"""Elements of tensors by labels: ``p[y]``, ``counts[x, y] += 1`` with labels of no dims or in arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from causaltrace.boundary.arrays import Arrays, labels_in
from causaltrace.boundary.ndarray import LabelArray

_item = Tensor.__getitem__
#: What an index may be made of that no label is in.
PLAIN = frozenset((int, slice, type(None), type(Ellipsis)))


def indexed(arrays: Arrays, original: Any) -> Callable[..., Any]:
    """Torch reads arrays among indices and values itself: hand it tensors over the same memory. It reads
    labels in 0-d tensors, too: the element is chosen by an operation instead."""

    def seen(value: Any) -> Any:
        if isinstance(value, LabelArray):
            return arrays.tensor(value)
        return type(value)(map(seen, value)) if type(value) in (tuple, list) else value

    @functools.wraps(original)
    def wrapper(t: Tensor, key: Any, *values: Any) -> Any:
        try:
            return item(t, key, *values)
        except Exception:  # whoever catches it knows something about sizes
            arrays.tells([t, key, *values])
            raise

    def item(t: Tensor, key: Any, *values: Any) -> Any:
        if not values and PLAIN.issuperset(map(type, key if type(key) is tuple else (key,))):
            return original(t, key)
        if arrays.memory.starts and any(not isinstance(a, Tensor) for a in labels_in([key, *values])):
            key, values = seen(key), tuple(map(seen, values))
        keys = key if type(key) is tuple else (key,)
        if len(keys) == t.ndim and any(map(label, keys)) and all(type(k) is int or label(k) for k in keys):
            return chosen(t, keys, *values)
        return original(t, key, *values)

    def label(k: Any) -> bool:
        if not isinstance(k, Tensor) or k.ndim or k.is_floating_point() or k.dtype == torch.bool:
            return False
        arrays.tracer.seek(k)
        try:
            shadow = arrays.memory.read(k)
        except NotImplementedError:  # inside a vmap: no storage
            return False
        return shadow is not None and shadow.label is not None

    def chosen(t: Tensor, keys: tuple[Any, ...], *values: Any) -> Any:
        at = [k for k in keys if isinstance(k, Tensor)]
        rest = _item(t, tuple(slice(None) if isinstance(k, Tensor) else k for k in keys))
        if not values:
            return torch.ops.aten.index(rest, at)
        value = values[0] if isinstance(values[0], Tensor) else torch.tensor(values[0], dtype=t.dtype)
        torch.ops.aten.index_put_(rest, at, value.to(t.dtype))

    return wrapper
