"""Rules for operations that causaltrace has none for: a user's rows in the one table of rules.

A rule says for every output element which input elements it may depend on; more is safe, less is not. It is
written with the supports of the arguments (``Call.support``) and four ways to combine them:

    @causaltrace.register_rule("mylib::rms_norm")
    def rms_norm(op):
        return op.support("x").over(-1) | op.support("weight")
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from causaltrace import rules
from causaltrace._compat import CustomOp, has_composite_kernel
from causaltrace.higher import FORMS
from causaltrace.lattice.cells import Algebra, Cells
from causaltrace.rules.call import OpCall, Result, tensors

__all__ = ["Call", "RuleError", "Support", "elementwise", "everything", "register_rule", "rows"]

Operator = torch._ops.OpOverload | torch._ops.HigherOrderOperator


class RuleError(ValueError):
    """A registered rule gave something that is not the supports of its operation's results."""


class Support:
    """What each element of a tensor may depend on. ``shape``: the tensor's, 1 where elements were joined."""

    def __init__(self, shape: Sequence[int], cells: Cells | None, algebra: Algebra) -> None:
        self.shape = tuple(shape)
        self._cells = None if cells is None else algebra.aligned(cells, len(self.shape))
        self._algebra = algebra

    def __or__(self, other: Support) -> Support:
        """Both, element by element, with broadcasting."""
        shape = torch.broadcast_shapes(self.shape, other.shape)
        return Support(shape, self._algebra.join(self._cells, other._cells), self._algebra)

    def over(self, *dims: int, keepdim: bool = True) -> Support:
        """The union over ``dims`` (none given: all), which stay with size 1 unless ``keepdim`` is off."""
        gone = {self._dim(d) for d in dims} if dims else set(range(len(self.shape)))
        shape = [1 if d in gone else n for d, n in enumerate(self.shape) if keepdim or d not in gone]
        return Support(shape, self._algebra.reduce(self._cells, sorted(gone), keepdim), self._algebra)

    def running(self, dim: int, reverse: bool = False) -> Support:
        """The union of everything up to (``reverse``: from) each index of ``dim``."""
        return Support(self.shape, self._algebra.running(self._cells, self._dim(dim), reverse), self._algebra)

    def moved(self, fn: Callable[[Tensor], Tensor]) -> Support:
        """The elements, rearranged as ``fn`` rearranges a tensor of this shape (transpose, slice, pad ...).

        ``fn`` gets the elements' numbers, counted from 1; a 0 in its result came from nowhere.
        """
        places = fn(torch.arange(1, 1 + torch.Size(self.shape).numel()).view(self.shape))
        cells, algebra, wide = self._cells, self._algebra, self.shape
        if cells is None:
            return Support(places.shape, None, algebra)

        def take(data: Tensor) -> Tensor:
            flat = data.expand(*wide, data.shape[-1]).reshape(-1, data.shape[-1])
            blank = data.new_full((1, data.shape[-1]), algebra.lattice.bottom)
            return torch.cat((blank, flat))[places.to(data.device)]

        return Support(places.shape, algebra.move(cells, take, held=places.numel() * 8), algebra)

    def _dim(self, dim: int) -> int:
        if not -len(self.shape) <= dim < len(self.shape):
            raise IndexError(f"dim {dim} of a support of shape {list(self.shape)}")
        return dim % len(self.shape)


class Call:
    """One call of an operation: its arguments by name, their supports, and the tensors that it gives."""

    def __init__(self, name: str, call: OpCall, defaults: dict[str, Any]) -> None:
        self.name = name
        #: The tensors that need a support: what it returns, then the arguments that it writes. Rules of
        #: operations that write to ``self`` run first: look at the shapes only.
        self.outs = call.outputs()
        self._call, self._defaults = call, defaults

    def value(self, name: str) -> Any:
        """An argument, or its default."""
        for known in (self._call.args, self._defaults):
            if name in known:
                return known[name]
        names = ", ".join([*self._call.args, *[n for n in self._defaults if n not in self._call.args]])
        raise KeyError(f"no argument {name!r}; it has {names}")

    def support(self, argument: str | Tensor) -> Support:
        """What a tensor argument depends on: by name, or an element of a list that ``value`` gave. An
        optional argument that was not given depends on nothing."""
        value = self.value(argument) if isinstance(argument, str) else argument
        if value is None:
            return self.nothing()
        if not isinstance(value, Tensor):
            raise TypeError(
                f"argument {argument!r} is {type(value).__name__}, not a tensor; of a list take "
                f"op.support(t) for each t in op.value({argument!r})"
            )
        if all(value is not t for t in self._inputs()):
            raise ValueError("support() was given a tensor that is no argument of the operation")
        return Support(value.shape, self._call.of(value), self._call.lattice)

    def supports(self) -> list[Support]:
        """Those of all tensor arguments, in lists too."""
        return [self.support(t) for t in self._inputs()]

    def nothing(self) -> Support:
        """No label at all."""
        return Support((), None, self._call.lattice)

    def _inputs(self) -> list[Tensor]:
        return tensors(list(self._call.args.values()))


# -- ready-made rules -------------------------------------------------------------------------------------


def elementwise(op: Call) -> list[Support]:
    """Each output element depends on the operands at its own place (with broadcasting)."""
    out = op.nothing()
    for support in op.supports():
        out |= support
    return [out] * len(op.outs)


def rows(op: Call) -> list[Support]:
    """Each output element depends on the rows (the last dim) of all operands at its own place."""
    out = op.nothing()
    for support in op.supports():
        out |= support.over(-1) if support.shape else support
    return [out] * len(op.outs)


def everything(op: Call) -> list[Support]:
    """Each output element depends on every element of every operand."""
    out = op.nothing()
    for support in op.supports():
        out |= support.over(keepdim=False)
    return [out] * len(op.outs)


# -- registering ------------------------------------------------------------------------------------------

UserRule = TypeVar("UserRule", bound=Callable[[Call], Support | Sequence[Support]])


class Checked:
    """A user's rule as the table holds it: what it gives is checked before it is believed."""

    def __init__(self, fn: Callable[[Call], Any], name: str, source: str, defaults: dict[str, Any]) -> None:
        self.fn, self.name, self.source, self.defaults = fn, name, source, defaults

    def __call__(self, op: OpCall) -> Result:
        call = Call(self.name, op, self.defaults)
        try:
            given = self.fn(call)
        except Exception as error:
            raise self._error(f"raised {type(error).__name__}: {error}") from error
        supports = [given] if isinstance(given, Support) else given
        if not isinstance(supports, (list, tuple)):
            raise self._error(f"returned {type(given).__name__}, not a Support")
        if len(supports) != len(call.outs):
            raise self._error(f"returned {len(supports)} supports for {len(call.outs)} tensors")
        for i, (support, t) in enumerate(zip(supports, call.outs, strict=True)):
            if not isinstance(support, Support):
                raise self._error(f"returned {type(support).__name__} for tensor {i}, not a Support")
            wide = (1,) * (t.ndim - len(support.shape)) + support.shape
            if len(wide) != t.ndim or any(n not in (1, m) for n, m in zip(wide, t.shape, strict=True)):
                shapes = f"{list(support.shape)} for tensor {i} of shape {list(t.shape)}"
                raise self._error(f"returned a support of shape {shapes}")
        return [support._cells for support in supports]

    def _error(self, what: str) -> RuleError:
        name = getattr(self.fn, "__qualname__", repr(self.fn))
        return RuleError(f"the rule of {self.name} ({name}, registered at {self.source}) {what}")


def register_rule(op: object, *, reads: str | None = None) -> Callable[[UserRule], UserRule]:
    """Decorator: the function is the rule of ``op``, in every watch that opens from now on.

    Args:
        op: a name (``"mylib::norm"``), a ``torch.library.custom_op``, an overload
            (``torch.ops.mylib.norm.default``) or all of them (``torch.ops.mylib.norm``), or a higher-order
            operator.
        reads: of a loss that reads one class for each position: the argument that holds the classes. Where
            it holds labels and the result has its shape, the result is a readout of them.

    The rule takes a ``custom.Call`` and returns a ``custom.Support`` for each tensor of ``Call.outs``; one of
    them needs no list. Reports name the rules that they rest on.

    Raises:
        TypeError: ``op`` is no operator.
        ValueError: there is no such operator, or it has a rule, or it needs none. A rule may be registered
            again by the function of the same name in the same module (a notebook cell that is run again).
    """
    caller = sys._getframe(1)
    source = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    overloads = operators(op)

    def register(fn: UserRule) -> UserRule:
        for func in overloads:
            _refuse(func, fn)
        for func in overloads:
            defaults = _defaults(func)
            if reads is not None and reads not in _names(func):
                raise ValueError(f"reads={reads!r}: {rules.registered_name(func)} has {_names(func)}")
            kind = rules.READ if reads else rules.POINT if fn is elementwise else rules.LEAVE
            name = rules.registered_name(func)
            rules.TABLE[name] = rules.Rule(kind, Checked(fn, name, source, defaults), source, reads or "")
        return fn

    return register


def operators(op: object) -> list[Operator]:
    """The operators that ``op`` stands for."""
    if isinstance(op, str):
        op = _named(op)
    if isinstance(op, CustomOp):
        return [op._opoverload]
    if isinstance(op, torch._ops.OpOverloadPacket):
        return [getattr(op, name) for name in op.overloads()]
    if isinstance(op, Operator):
        return [op]
    raise TypeError(
        f"register_rule takes an operator (torch.ops.mylib.name, a torch.library.custom_op, 'mylib::name'), "
        f"not {type(op).__name__}"
    )


def _named(name: str) -> object:
    """``mylib::norm`` or ``mylib::norm.default``."""
    namespace, _, rest = name.partition("::")
    found: object = getattr(torch.ops, namespace) if rest else None
    try:
        for part in rest.split("."):
            found = getattr(found, part)
    except AttributeError:
        found = None
    if found is None:
        raise ValueError(f"there is no operator {name!r}: import what defines it first ('namespace::name')")
    return found


def _refuse(func: Operator, fn: Callable[..., Any]) -> None:
    """Raise if ``func`` cannot have ``fn`` as its rule."""
    name, known = rules.registered_name(func), rules.find(func)
    if isinstance(known.fn, Checked):
        if _definition(known.fn.fn) != _definition(fn):
            raise ValueError(f"{name} has a rule already, registered at {known.source}")
    elif known.kind != rules.OPAQUE:
        raise ValueError(f"{name} has a rule already, built in; a built-in rule cannot be replaced")
    if isinstance(func, torch._ops.HigherOrderOperator):
        if func.name() in FORMS:
            raise ValueError(f"{name} is followed into the functions that it takes, and needs no rule")
        return
    aliases = [a.alias_info for a in func._schema.arguments if a.alias_info is not None]
    if aliases and not any(a.is_write for a in aliases):
        raise ValueError(f"{name} gives a view of its input and needs no rule: views are followed")
    if has_composite_kernel(func):
        raise ValueError(f"{name} is made of other operations, which are followed, and needs no rule")


def _definition(fn: Callable[..., Any]) -> tuple[str, str]:
    return getattr(fn, "__module__", ""), getattr(fn, "__qualname__", repr(fn))


def _names(func: Operator) -> list[str]:
    if isinstance(func, torch._ops.HigherOrderOperator):
        return list(inspect.signature(type(func).__call__).parameters)[1:]
    return [a.name for a in func._schema.arguments]


def _defaults(func: Operator) -> dict[str, Any]:
    """What arguments are when they are left out."""
    if isinstance(func, torch._ops.HigherOrderOperator):
        given = inspect.signature(type(func).__call__).parameters.values()
        return {p.name: p.default for p in given if p.default is not p.empty}
    return {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
