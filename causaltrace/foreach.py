"""One element of a foreach operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from causaltrace.shadow import UNHEDGED, Shadow


def flat(element: dict[str, Any], shape: torch.Size, shadows: dict[int, Shadow]) -> tuple[object, ...] | None:
    """What the supports of one element of a foreach op follow from, where each operand has one support for
    all its elements. Of factors that are broadcast, which may be exact zeros, the values count too."""
    key: list[object] = []
    for value in element.values():
        if isinstance(value, Tensor):
            shadow = shadows.get(id(value))
            if shadow is None or shadow[1:] != UNHEDGED or not value.is_floating_point():
                return None
            cells = shadow[0]
            if cells is None or not cells.uniform:
                return None
            key.append(id(cells))
            if value.shape != shape:
                key.append(id(value))
        else:
            key.append(value)
    return tuple(key)


def element(bound: dict[str, Any], count: int, i: int) -> dict[str, Any]:
    """The arguments of a foreach op's ``i``-th element, named as in the plain op."""
    names = {"tensors1": "end", "scalar": "other", "scalars": "other"}
    return {
        names.get(name, name): value[i] if isinstance(value, (list, tuple)) and len(value) == count else value
        for name, value in bound.items()
    }
