"""Functions that graphs give to operators (``cond``, ``scan``): graphs of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

#: Operators that may call graphs in a graph, and which of their arguments these are.
BODIES: dict[str, tuple[int, ...]] = {
    "cond": (1, 2),
    "while_loop": (0, 1),
    "scan": (0,),
    "associative_scan": (0,),
    "map_impl": (0,),
    "wrap_with_set_grad_enabled": (1,),
    "wrap_with_autocast": (4,),
}


def calls_bodies(target: Any) -> bool:
    return isinstance(target, torch._ops.HigherOrderOperator) and target.name() in BODIES


class Body:
    """A graph as a function. It has no effects but on tensors."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)
