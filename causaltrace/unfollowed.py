"""Operations that cannot be followed: on sparse tensors, and those that call functions; and what results of
branches depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace._compat import is_fake, python_kernel
from causaltrace.higher import FORMS, leaves
from causaltrace.schema import Op, bind_higher_order, describe_higher_order, tensors
from causaltrace.shadow import Shadow
from causaltrace.step import opaque

if TYPE_CHECKING:
    from causaltrace.tracer import Tracer

_ROWS = ("crow_indices", "col_indices", "values")
_COLUMNS = ("ccol_indices", "row_indices", "values")
#: What gives the parts of tensors of a layout.
KEEPING: dict[torch.layout, tuple[str, ...]] = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: _ROWS,
    torch.sparse_bsr: _ROWS,
    torch.sparse_csc: _COLUMNS,
    torch.sparse_bsc: _COLUMNS,
}
#: Views of sparse tensors that copy nothing.
ALIASES = frozenset(("indices", "detach", "alias")).union(*KEEPING.values())


def also(tracer: Tracer, t: Tensor, causes: list[Shadow]) -> None:
    """``t`` depends on all of ``causes`` as well."""
    algebra, depends = tracer.algebra, tracer.ledger.depends
    shadow = tracer.memory.read(t) or Shadow()
    support, possible = (
        algebra.join(*[algebra.everything(depends(s, plane), t.ndim) for s in causes])
        for plane in ("support", "possible")
    )
    hedged = possible is not support or shadow.possible is not None
    possible = algebra.join(shadow.possible or shadow.support, possible) if hedged else None
    tracer.memory.write(t, shadow._replace(support=algebra.join(shadow.support, support), possible=possible))


def higher_order(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Operators that call functions (cond, flex_attention): the operations that they are made of."""
    inputs = leaves((args, kwargs))
    if any(is_fake(t) or t.is_meta for t in inputs):
        return func(*args, **kwargs)
    for t in inputs:
        tracer.seek(t)
    form = FORMS.get(func.name())
    op = tracer._ops.get(func)
    if op is None:
        op = tracer._ops[func] = describe_higher_order(func, form is not None)
    op.calls += 1
    if form is None:
        return unfollowed(tracer, op, func, args, kwargs, inputs)
    conditions: list[Shadow] = []

    def decided(condition: Any, only_results: bool) -> bool:
        shadow = tracer.memory.read(condition) if isinstance(condition, Tensor) else None
        if shadow is not None:
            conditions.append(shadow)
        if shadow is None or not only_results:
            return bool(condition)  # seen as a value that leaves torch
        with _disable_current_modes():
            return bool(condition)

    with tracer:
        out = form(func, decided, *args, **kwargs)
    if conditions:
        tracer._op_name = func.name()
        with _disable_current_modes():
            for t in leaves(out):
                also(tracer, t, conditions)
    return out


def unfollowed(tracer: Tracer, op: Op, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
    """Operators that run kernels of their own: all that goes in may come out, or be written to what went
    in."""
    out = func(*args, **kwargs)
    if op.rule.source:
        with tracer._lock:
            known = {id(t): s for t in inputs if (s := tracer.memory.read(t)) is not None}
            outs = leaves(out)
            tracer._op_name = op.full
            if known:
                bound = bind_higher_order(func, args, kwargs)
                tracer._write(outs, tracer._step(op, bound, out, outs, inputs, known))
        return out
    cells = tracer.algebra.join(
        *[tracer.algebra.everything(tracer.ledger.depends(tracer.memory.read(t), "possible")) for t in inputs]
    )
    if cells is not None:
        tracer._op_name = op.full
        opaque(tracer, op.full, cells)
        for t in (*inputs, *leaves(out)):
            shadow = (tracer.memory.read(t) or Shadow())._replace(mass=None)
            possible = tracer.algebra.reshaped(cells, (1,) * t.ndim)
            tracer.memory.write(t, shadow._replace(possible=possible))
    return out


def sparse(tracer: Tracer, op: Op, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
    """Operations on sparse tensors: what goes in leaves sight, what comes out may hold all that did."""
    out = func(*args, **kwargs)
    dense = [t for t in inputs if t.layout is torch.strided]
    with tracer._lock:
        for part in _parts(inputs):  # which may have been written to since the tensor was made
            tracer.vanished(f"{op.full} (a sparse tensor)", tracer.memory.read(part))
        for t in tensors(out):
            if t.layout is torch.strided:
                tracer.host_data(t, dense)
            else:
                for source in dense:
                    tracer.vanished(f"{op.full} (a sparse result)", tracer.memory.read(source))
    return out


def _parts(inputs: list[Tensor]) -> list[Tensor]:
    """The dense tensors that sparse ones are made of."""
    with _disable_current_modes():
        return [getattr(t, name)() for t in inputs for name in KEEPING.get(t.layout, ())]


def body(tracer: Tracer, func: torch._ops.OpOverload, args: Any, kwargs: Any) -> Any:
    """An operation that is not torch's own, and is given no labels: what it runs in Python may bring some."""
    kernel = python_kernel(func, [t.device.type for t in tensors(args)])
    if kernel is None:
        return func(*args, **kwargs)
    with tracer:
        return kernel(*args, **kwargs)
