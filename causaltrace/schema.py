"""What an overload's schema says, worked out once: argument names, what is written, what is a view."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch

from causaltrace import rules
from causaltrace._compat import has_composite_kernel, has_own_kernel, python_kernel, run, siblings
from causaltrace.rules import move, pointwise
from causaltrace.rules.call import tensors as tensors

#: Tags of ops whose values, or shapes made of values, reach Python.
SHAPED = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
#: What decides the shape, where that is not every argument: the mask; the rank of a system of equations;
#: the longest target; the numbers. What decides how often is drawn: the elements below 0.
MASKED = {
    "masked_select": ("mask",),
    "index": ("indices",),
    "_unsafe_index": ("indices",),
    "linalg_lstsq": ("self",),
    "_ctc_loss": ("target_lengths",),
    "bincount": ("self",),
    "rrelu_with_noise": ("self",),
}
_SCALES = ("scale", "scales", "zero_point", "zero_points")
#: What goes into a shape, or into what a quantised tensor keeps beside its elements, though no tag says so.
UNTAGGED = {
    "_pack_padded_sequence": ("lengths",),
    "quantize_per_tensor": _SCALES,
    "quantize_per_channel": _SCALES,
    "_make_per_channel_quantized_tensor": _SCALES,
    "_empty_per_channel_affine_quantized": _SCALES,
    "quantize_per_tensor_dynamic": ("self",),
}
#: Composites whose own code reads the values of this argument, so that no operation tells of it.
SILENT = {"aten.tensor_split.tensor_indices_or_sections": 1, "aten._pad_packed_sequence.default": 1}
#: Composites that read values only to check them, once this argument says all else.
CHECKING = {"aten.one_hot.default": (1, "num_classes")}
#: Types of results that are followed.
TENSORS = ("Tensor", "List[Tensor]", "Optional[Tensor]", "List[Optional[Tensor]]")
#: Operations that draw as many random numbers as their values ask for: all later draws depend on these.
DRAWING = ("poisson", "binomial", "_standard_gamma", "_sample_dirichlet", "rrelu_with_noise")
#: Operations that return what a quantised tensor keeps beside its elements.
BESIDE = ("q_scale", "q_zero_point")
#: Operations whose results are left unwritten.
BLANK = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
)
#: Views that may bring in memory that no operation has filled.
FILLING = ("lift_fresh", "resize", "set")
#: What makes distributions.
SOFTMAX = ("_softmax", "_log_softmax", "_safe_softmax")
#: Arguments that a kernel writes although its schema does not say so.
UNDECLARED = dict.fromkeys(
    ("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm"),
    ("running_mean", "running_var"),
)


@dataclass(slots=True)
class Op:
    """One overload. ``written``: names of mutated arguments, ``outs``: those that are
    only written (``out=``); ``early``: its rule runs before it, while the old values can still be looked at;
    ``blank``: gives memory that nobody has written; ``fills``: a view that may bring in other memory, or
    shows the same as another dtype; ``foreign``: not an operation of torch's own; ``sized``: takes sizes;
    ``keeps``: one that runs Python, which may keep what it is given;
    ``foreach``: a rule for each list element; ``shares``: element-wise, with one result; ``joins``: whatever
    its operands hold; ``distributes``: what it makes may be distributions; ``derived``: how its rule follows
    from its schema or tags; ``calls``: how often it ran; ``call``: runs it.
    """

    name: str
    full: str
    rule: rules.Rule
    names: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()
    early: bool = False
    view: bool = False
    composite: bool = False
    foreach: bool = False
    escapes: tuple[str, ...] = ()
    shares: bool = False
    joins: bool = False
    distributes: bool = False
    derived: str = ""
    blank: bool = False
    fills: bool = False
    foreign: bool = False
    sized: bool = False
    keeps: bool = False
    calls: int = 0
    call: Any = None

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
    foreach = schema.name.startswith("aten::_foreach_")
    foreign = func.namespace not in ("aten", "prims")
    outs = tuple(a.name for a in schema.arguments if a.is_out)
    view = rule.kind == rules.VIEW or (aliased and not written)
    implicit = has_composite_kernel(func)
    return Op(
        name=name,
        full=str(func),
        rule=rule,
        names=tuple(a.name for a in schema.arguments),
        written=written,
        outs=outs,
        early=written[:1] == ("self",) and all(r.alias_info is not None for r in schema.returns),
        view=view,
        composite=implicit and (aliased or name not in rules.TABLE or _spelling(func)),
        call=functools.partial(run, func) if implicit else func,
        foreach=foreach,
        escapes=(MASKED | UNTAGGED).get(name, tuple(a.name for a in schema.arguments))
        if SHAPED.intersection(func.tags) or _tells_python(func) or name in (*DRAWING, *UNTAGGED, *BESIDE)
        else (),
        shares=rule.kind == rules.POINT
        and not rule.source
        and written in ((), ("self",))
        and name not in ("fill", "normal", "bernoulli")
        and len(schema.returns) == 1
        and not foreach,
        joins=rule.fn is pointwise.join,
        distributes=not written
        and (name in SOFTMAX or rule.fn is move.same and name in ("clone", "_to_copy")),
        derived=_derived(rule, name, packet, view, foreach, bool(written), bool(outs)),
        blank=name in BLANK and not outs,
        fills=name in FILLING or packet == "view" and func._overloadname == "dtype",
        foreign=foreign,
        keeps=foreign and any(python_kernel(func, [device]) is not None for device in ("cpu", "cuda")),
        sized=name not in ("slice", "select") and any("SymInt" in str(a.real_type) for a in schema.arguments),
    )


def _tells_python(func: torch._ops.OpOverload) -> bool:
    """Does an op that is not torch's own return numbers, or objects? Its tags may not say so; torch's do."""
    return func.namespace != "aten" and any(str(r.type) not in TENSORS for r in func._schema.returns)


def only_checks(full: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Does a composite's own code read values for nothing but a check of their range?"""
    if full not in CHECKING:
        return False
    place, name = CHECKING[full]
    value: int = args[place] if len(args) > place else kwargs.get(name, -1)
    return value >= 0


def _spelling(func: torch._ops.OpOverload) -> bool:
    """Is it another spelling of an overload that has a kernel? Its row does not know these arguments."""
    return not has_own_kernel(func) and not all(map(has_composite_kernel, siblings(func)))


def _derived(
    rule: rules.Rule, name: str, packet: str, view: bool, foreach: bool, written: bool, out: bool
) -> str:
    """How the rule of an overload follows from its schema or tags; nothing for a row of its own."""
    if view:
        return "a view of its input"
    if rule.source or rule.kind == rules.OPAQUE:
        return ""
    if name not in rules.TABLE:
        return "element-wise, tensor by tensor" if foreach else "element-wise, by its tag"
    if out:
        return f"{name}, written to out="
    if packet != name:
        return f"{name}, " + ("tensor by tensor" if foreach else "in place")
    return ""


def describe_higher_order(func: torch._ops.HigherOrderOperator, followed: bool) -> Op:
    """An operator that calls functions. ``followed``: into these."""
    name = rules.registered_name(func)
    return Op(name, name, rules.find(func), composite=followed)


def bind_higher_order(
    func: torch._ops.HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments by the names that Python gives them; defaults left out."""
    given = dict(inspect.signature(type(func).__call__).bind(func, *args, **kwargs).arguments)
    del given["self"]
    return given | given.pop("kwargs", {})
