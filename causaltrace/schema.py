"""What an overload's schema says, worked out once: argument names, what is written, what is a view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causaltrace import rules
from causaltrace._compat import has_composite_kernel
from causaltrace.rules import pointwise

#: Tags of ops whose values, or shapes made of values, reach Python.
SHAPED = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
#: What decides the shape, where that is not every argument: the mask; the rank of a system of equations.
MASKED = {
    "masked_select": ("mask",),
    "index": ("indices",),
    "_unsafe_index": ("indices",),
    "linalg_lstsq": ("self",),
}
#: Arguments that a kernel writes although its schema does not say so.
UNDECLARED = dict.fromkeys(
    ("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm"),
    ("running_mean", "running_var"),
)


@dataclass(frozen=True, slots=True)
class Op:
    """One overload. ``written``: names of mutated arguments, ``outs``: those that are
    only written (``out=``); ``foreach``: a rule for each list element; ``shares``: element-wise, with one
    result; ``joins``: whatever its operands hold."""

    name: str
    full: str
    rule: rules.Rule
    names: tuple[str, ...]
    written: tuple[str, ...]
    outs: tuple[str, ...]
    view: bool
    composite: bool
    foreach: bool
    escapes: tuple[str, ...]
    shares: bool
    joins: bool

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by schema name; defaults left out."""
        return dict(zip(self.names, args, strict=False), **kwargs)


def describe(func: torch._ops.OpOverload) -> Op:
    schema = func._schema
    written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    written = written or UNDECLARED.get(schema.name, ())
    aliased = any(a.alias_info is not None for a in schema.arguments)
    rule = rules.find(func)
    name = rules.functional_name(func)
    packet = schema.name.split("::")[1]
    return Op(
        name=name,
        full=str(func),
        rule=rule,
        names=tuple(a.name for a in schema.arguments),
        written=written,
        outs=tuple(a.name for a in schema.arguments if a.is_out),
        view=rule.kind == rules.VIEW or (aliased and not written),
        composite=has_composite_kernel(func) and (aliased or name not in rules.TABLE),
        foreach=packet.startswith("_foreach_"),
        escapes=MASKED.get(name, tuple(a.name for a in schema.arguments))
        if SHAPED.intersection(func.tags)
        else (),
        shares=rule.kind == rules.POINT
        and written in ((), ("self",))
        and name not in ("fill", "normal", "bernoulli")
        and len(schema.returns) == 1
        and not packet.startswith("_foreach_"),
        joins=rule.fn is pointwise.join,
    )


def tensors(value: Any) -> list[Tensor]:
    """Tensors in an argument or a result: itself, or in lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    out: list[Tensor] = []
    if isinstance(value, (list, tuple)):
        for v in value:
            if isinstance(v, Tensor):
                out.append(v)
            elif isinstance(v, (list, tuple)):
                out += tensors(v)
    return out
