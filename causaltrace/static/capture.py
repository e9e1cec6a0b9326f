"""What can be audited, and how each is called."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from causaltrace.static.archive import REMEDY, load
from causaltrace.static.arguments import mapped
from causaltrace.static.errors import AuditError
from causaltrace.static.exported import Exported, Given, Program, of_program
from causaltrace.static.interpret import ProvenanceInterpreter
from causaltrace.static.sizes import Sizes
from causaltrace.static.tracer import Static


@dataclass
class Dynamic:
    """An exported program whose inputs may have other sizes."""

    sizes: Sizes
    inputs: list[Given]

    def given(self, values: Mapping[str, int]) -> dict[str, Any]:
        return {g.name: g.at(self.sizes, values) for g in self.inputs}


@dataclass
class Call:
    """Something to run on arguments. ``names`` are those of the positional ones; ``modules`` may be changed
    by it; ``graph`` is what it runs, if that is a graph, and ``dynamic`` says what else its inputs may be."""

    run: Callable[[Static, Mapping[str, Any]], Any]
    args: tuple[Any, ...]
    named: dict[str, Any]
    names: list[str]
    modules: list[nn.Module] = field(default_factory=list)
    graph: fx.GraphModule | Program | None = None
    dynamic: Dynamic | None = None

    def bind(self, tracer: Static) -> dict[str, Any]:
        """Every argument by name; tensors as fakes of which nothing is known."""
        given = dict(zip(self.names, self.args, strict=False), **self.named)
        return {name: mapped(tracer.blank, value) for name, value in given.items()}


def captured(target: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Call:
    """How to run ``target``.

    Raises:
        TypeError: it is nothing that can be audited, or its arguments do not fit.
    """
    if isinstance(target, (str, os.PathLike)):
        return _exported(load(Path(target)), args, named)
    if isinstance(target, ExportedProgram):
        return _exported(of_program(target), args, named)
    if isinstance(target, fx.GraphModule):
        return _graph(target, args, named)
    if not callable(target):
        raise TypeError(
            f"{type(target).__name__} cannot be audited: give a function, a module or a .pt2 file"
        )
    names = _names(target.forward if isinstance(target, nn.Module) else target, len(args))
    modules = list(_modules((target, args, named)))

    def run(tracer: Static, given: Mapping[str, Any]) -> Any:
        positional = [given[name] for name in names]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not isinstance(target, nn.Module)):
            return target(*positional, **{name: given[name] for name in named})

    return Call(run, args, named, names, modules)


def _modules(value: Any, depth: int = 4) -> Iterator[nn.Module]:
    """Modules that a function may reach: through its arguments, what it closes over, its object, and the
    global names that it uses."""
    if isinstance(value, nn.Module):
        yield value
    elif depth and isinstance(value, (list, tuple, dict)):
        for v in value.values() if isinstance(value, dict) else value:
            yield from _modules(v, depth - 1)
    elif depth and isinstance(value, functools.partial):
        yield from _modules((value.func, value.args, value.keywords), depth - 1)
    elif depth and inspect.ismethod(value):
        yield from _modules((value.__self__, vars(value.__self__), value.__func__), depth - 1)
    elif depth and inspect.isfunction(value):
        held = inspect.getclosurevars(value)
        yield from _modules((held.nonlocals, held.globals, value.__defaults__ or ()), depth - 1)


def _names(fn: Callable[..., Any], count: int) -> list[str]:
    """Names of ``count`` positional arguments."""
    found: list[str] = []
    for p in inspect.signature(fn).parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            break
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            found.append(p.name)
    return (found + [f"input_{i}" for i in range(len(found), count)])[:count]


def _graph(module: fx.GraphModule, args: tuple[Any, ...], named: dict[str, Any]) -> Call:
    names = [str(n.target) for n in module.graph.nodes if n.op == "placeholder"]

    def run(tracer: Static, given: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return ProvenanceInterpreter(module, tracer).run(
                *[given[name] for name in names if name in given]
            )

    return Call(run, args, named, names, [module], module)


def _exported(program: Exported, args: tuple[Any, ...], named: dict[str, Any]) -> Call:
    """An exported program, on inputs as it was exported with, of other sizes if example inputs say so."""
    user = program.user()
    names = [g.name for g in user]
    unknown = sorted(set(named) - set(names))
    if unknown or len(args) > len(names):
        raise TypeError(
            f"the program takes {', '.join(names) or 'no inputs'}: {', '.join(unknown) or len(args)}"
        )
    chosen = dict(zip(names, args, strict=False)) | named
    dynamic = Dynamic(program.sizes, user)
    values: dict[str, int] = {}
    for name, value in chosen.items():
        values |= dynamic.sizes.solved(name, value)
    given = dynamic.given(values) | chosen

    def run(tracer: Static, given: Mapping[str, Any]) -> Any:
        values = [given[g.name] if g.kind == "user_input" else g.value for g in program.inputs]
        tracer.weights(
            g.value for g in program.inputs if g.kind == "parameter" and isinstance(g.value, Tensor)
        )
        try:
            with torch.no_grad():
                return program.result(ProvenanceInterpreter(program.module, tracer).run(*values))
        except AuditError:
            raise
        except Exception as error:
            if not isinstance(program.module, Program):
                raise
            text = str(error).partition("\n")[0]
            raise AuditError(f"the file's program cannot be run ({text})", remedy=REMEDY) from error

    return Call(run, (), given, [], graph=program.module, dynamic=None if chosen else dynamic)
