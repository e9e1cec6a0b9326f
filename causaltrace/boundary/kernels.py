"""Functions that run kernels outside torch (Triton, ctypes, numba on ``data_ptr``), by a rule of the user's.

    @causaltrace.kernel_rule(lambda op: op.support("x").over(-1), writes=("out",))
    def rms_norm(x, out): ...

The rule is written as for ``register_rule``. Inside the function the watch sees nothing: what it reads by
address is no escape, and what it returns and writes has the supports that the rule gives.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace import rules
from causaltrace.custom import Call, Checked, Support
from causaltrace.schema import Op, tensors
from causaltrace.tracer import Tracer

Function = TypeVar("Function", bound=Callable[..., Any])

#: The tracer of the watch that is open, while one is.
following: list[Tracer] = []


def kernel_rule(
    rule: Callable[[Call], Support | Sequence[Support]],
    *,
    writes: Sequence[str] = (),
    updates: Sequence[str] = (),
) -> Callable[[Function], Function]:
    """Decorator: what a function that works on the memory of its tensor arguments reads and writes.

    Args:
        rule: takes a ``custom.Call`` and returns a support for each tensor of ``Call.outs``: the tensors that
            the function returns, then its arguments ``writes``, then ``updates``. One needs no list.
        writes: arguments that are written without being read; what they held before counts for nothing.
        updates: arguments that are read and written.

    Reports name the rule (CT096). A number that the function returns has left torch.

    Raises:
        ValueError: the function has no such argument.
    """
    caller = sys._getframe(1)
    source = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    written = (*writes, *updates)

    def declare(fn: Function) -> Function:
        signature = inspect.signature(fn)
        unknown = [name for name in written if name not in signature.parameters]
        name = f"{fn.__module__}.{fn.__qualname__}"
        if unknown:
            raise ValueError(f"{name} has no argument {', '.join(unknown)}")
        row = rules.Rule(rules.LEAVE, Checked(rule, name, source, {}), source, "")
        op = Op(name, name, row, tuple(signature.parameters), written, tuple(writes))

        @functools.wraps(fn)
        def run(*args: Any, **kwargs: Any) -> Any:
            if not following:
                return fn(*args, **kwargs)
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return _launched(following[-1], op, given.arguments, lambda: fn(*args, **kwargs))

        return cast(Function, run)

    return declare


def _launched(tracer: Tracer, op: Op, given: dict[str, Any], fn: Callable[[], Any]) -> Any:
    op = tracer._ops.setdefault(op.full, dataclasses.replace(op, calls=0))
    op.calls += 1
    inputs = tensors(list(given.values()))
    for t in inputs:
        tracer.seek(t)
    known = {id(t): s for t in inputs if (s := tracer.memory.read(t)) is not None}
    for lost in op.outs:
        for t in tensors(given[lost]):
            known.pop(id(t), None)
    tracer.quiet += 1
    try:
        with _disable_current_modes():
            out = fn()
    finally:
        tracer.quiet -= 1
    outs = [*tensors(out), *(t for name in op.written for t in tensors(given[name]))]
    if known and not _only_tensors(out):
        for t in inputs:
            tracer.escape(op.full, t)
    with tracer._lock, _disable_current_modes():
        tracer._op_name = op.full
        tracer._write(outs, tracer._step(op, given, outs, outs, inputs, known))
    return out


def _only_tensors(out: Any) -> bool:
    if isinstance(out, (list, tuple)):
        return all(map(_only_tensors, out))
    return out is None or isinstance(out, Tensor)
