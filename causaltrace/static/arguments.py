"""Arguments of operations, and the stand-ins that take the place of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from causaltrace._compat import is_fake
from causaltrace.static.values import narrow, speaks


def blank(t: Tensor) -> bool:
    """Is nothing known of it?"""
    return is_fake(t) or (
        speaks(t)
        and t.numel() > 0
        and all(s == 0 for n, s in zip(t.shape, t.stride(), strict=True) if n > 1)
        and (bool(t[(0,) * t.ndim].isnan()))
    )


def part_unknown(t: Tensor) -> bool:
    """Is some of a float not known?"""
    return not is_fake(t) and speaks(t) and bool(narrow(t).isnan().any())


def fresh(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


def mapped(fn: Callable[[Tensor], Any], value: Any) -> Any:
    """``fn`` of the tensors in an argument or a result."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        made = [mapped(fn, v) for v in value]
        return tuple(made) if isinstance(value, tuple) else made
    return value


def by_id(value: Any, stand: dict[int, Tensor]) -> Any:
    """An argument with the stand-ins in the place of its tensors."""
    if isinstance(value, dict):
        return {name: by_id(v, stand) for name, v in value.items()}
    return mapped(lambda t: stand.get(id(t), t), value)


def swapped(value: Any, inputs: list[Tensor], values: list[Tensor]) -> Any:
    return by_id(value, {id(t): v for t, v in zip(inputs, values, strict=True)})
