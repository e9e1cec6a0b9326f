"""Higher-order operations: their eager forms, which are made of ordinary operations.

Torch's own eager forms are run where they allow a mode to look on; those that only call what they are given,
or insist on being alone, are spelt here. A condition that chooses what runs is read by ``decided``: all that
comes out depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from causaltrace._compat import eager_form, fakes, held_by, storage_of
from causaltrace.schema import describe, tensors

#: Takes a condition, and whether it chooses nothing but what comes out; returns what it says.
Decided = Callable[[Any, bool], bool]
Body = Callable[..., Any]

_pure: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class _Writes(TorchDispatchMode):
    """Does something write to these tensors?"""

    supports_higher_order_operators = True

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self._storages = {id(storage_of(t)) for t in given}
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            self.found = True  # a body in a body: who knows
            return func(*args, **kwargs)
        op = describe(func)
        if op.composite:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        bound = op.bind(args, kwargs)
        written = [t for name in op.written for t in tensors(bound.get(name))]
        self.found |= any(id(storage_of(t)) in self._storages for t in written)
        return func(*args, **kwargs)


def writes_nothing(body: Body, given: Iterable[Any]) -> bool:
    """Is this a captured graph that leaves its arguments as they are? Captured ones have no other effects.

    Tried on fake arguments once: a branch that is not taken could have written, too."""
    if not isinstance(body, torch.fx.GraphModule):
        return False
    if body not in _pure:
        with _disable_current_modes(), fakes() as mode:
            copies = [mode.from_tensor(t) if isinstance(t, Tensor) else t for t in given]
            writes = _Writes([t for t in copies if isinstance(t, Tensor)])
            try:
                with writes:
                    body(*copies)
            except Exception:  # it reads values, which fakes do not have
                writes.found = True
        _pure[body] = not writes.found
    return _pure[body]


def _eager(op: Any, decided: Decided, *args: Any, **kwargs: Any) -> Any:
    return eager_form(op)(*args, **kwargs)


def _cond(op: Any, decided: Decided, pred: Any, yes: Body, no: Body, operands: Any = ()) -> Any:
    pure = writes_nothing(yes, operands) and writes_nothing(no, operands)
    return yes(*operands) if decided(pred, pure) else no(*operands)


def _while(op: Any, decided: Decided, condition: Body, body: Body, *args: Any, **kwargs: Any) -> Any:
    given = [t for group in args if isinstance(group, (list, tuple)) for t in group]
    pure = writes_nothing(condition, given) and writes_nothing(body, given)
    return eager_form(op)(lambda *carried: decided(condition(*carried), pure), body, *args, **kwargs)


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
