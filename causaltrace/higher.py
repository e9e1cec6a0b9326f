"""Higher-order operations: their eager forms, which are made of ordinary operations.

Torch's own eager forms are run where they allow a mode to look on; those that only call what they are given,
or insist on being alone, are spelt here. A condition that chooses what runs is told to ``decided``: all that
comes out depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from causaltrace._compat import eager_form, held_by

Decided = Callable[[Any], None]
Body = Callable[..., Any]


def _eager(op: Any, decided: Decided, *args: Any, **kwargs: Any) -> Any:
    return eager_form(op)(*args, **kwargs)


def _cond(op: Any, decided: Decided, pred: Any, yes: Body, no: Body, operands: Any = ()) -> Any:
    decided(pred)
    return yes(*operands) if pred else no(*operands)


def _while(op: Any, decided: Decided, condition: Body, *args: Any, **kwargs: Any) -> Any:
    def observed(*carried: Any) -> Any:
        go_on = condition(*carried)
        decided(go_on)
        return go_on

    return eager_form(op)(observed, *args, **kwargs)


def _scan(op: Any, decided: Decided, step: Body, first: Any, xs: Any, extra: Any = ()) -> Any:
    """One step after the other; ``first`` and the results so far are lists of tensors, like torch's."""
    carry, rows = tuple(first), []
    for i in range(len(xs[0]) if xs else 0):
        out = step(*carry, *[x[i] for x in xs], *extra)
        carry = tuple(out[: len(first)])
        rows.append(out[len(first) :])
    return (*carry, *[None if t[0] is None else torch.stack(t) for t in zip(*rows, strict=True)])


def _call(op: Any, decided: Decided, body: Body, operands: Any) -> Any:
    return body(*operands)


def _call_flat(op: Any, decided: Decided, body: Body, *operands: Any, **options: Any) -> Any:
    return body(*operands)


def _call_named(op: Any, decided: Decided, body: Body, name: str, *operands: Any) -> Any:
    return body(*operands)


#: Operation to ``form(op, decided, *args, **kwargs)``. What is not here may run kernels that nothing sees.
FORMS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("flex_attention", "flex_attention_backward", "associative_scan", "map_impl", "out_dtype",
         "hints_wrapper", "local_map_hop"), _eager),
    "cond": _cond,
    **dict.fromkeys(("while_loop", "while_loop_stack_output"), _while),
    "scan": _scan,
    "strict_mode": _call,
    **dict.fromkeys(("foreach_map", "invoke_quant", "invoke_quant_packed"), _call_flat),
    "invoke_subgraph": _call_named,
}  # fmt: skip


def leaves(value: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and mappings, and those that a wrapper holds."""
    if isinstance(value, Tensor):
        held = held_by(value)
        return leaves(held) if held else [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [t for v in value for t in leaves(v)]
