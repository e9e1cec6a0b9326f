"""An exported program: a graph, what it is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_unflatten

from causaltrace._compat import guards
from causaltrace.static.errors import AuditError
from causaltrace.static.sizes import Range, Size, Sizes


class Program(nn.Module):
    """A graph that was read from a file, and those in it. No ``GraphModule``: that makes Python code of its
    graph, in which the names in a file would be code, too."""

    def __init__(self, graph: fx.Graph, inner: Mapping[str, Program] | None = None) -> None:
        super().__init__()
        self.graph = graph
        for name, program in (inner or {}).items():
            self.add_module(name, program)


@dataclass
class Given:
    """One argument of the graph. ``kind``: "user_input", "parameter", "buffer" or "tensor_constant";
    ``size``: the dims of a tensor, or what a number is that may be another one."""

    kind: str
    name: str
    value: Any
    size: Size | tuple[Size, ...] = ()

    def at(self, sizes: Sizes, values: Mapping[str, int]) -> Any:
        """The argument for these values of the symbols."""
        found = sizes.of(self.name, values)
        if isinstance(self.value, Tensor):
            return torch.empty(found, dtype=self.value.dtype, device="meta")
        return found[0] if found else self.value


def example(size: tuple[Size, ...], dtype: torch.dtype) -> Tensor:
    """A tensor without memory, of the shape that the program was exported with."""
    return torch.empty([n.hint for n in size], dtype=dtype, device="meta")


@dataclass
class Exported:
    """``outputs``: which results of the graph are the user's; ``keys`` their names, if they have any; or
    ``spec``, which puts them together; ``ranges`` those of the symbols in the sizes of its inputs,
    and ``guards`` the conditions on these."""

    module: fx.GraphModule | Program
    inputs: list[Given]
    outputs: list[int]
    keys: list[str] | None = None
    spec: Any = None
    ranges: dict[str, Range] = field(default_factory=dict)
    guards: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> Sizes:
        return Sizes({g.name: g.size for g in self.user()}, self.ranges, self.guards)

    def user(self) -> list[Given]:
        return [g for g in self.inputs if g.kind == "user_input"]

    def result(self, flat: Any) -> Any:
        """What the program returns, from what the graph does."""
        flat = flat if isinstance(flat, (list, tuple)) else [flat]
        own = [flat[i] for i in self.outputs]
        if self.spec is not None:
            return tree_unflatten(own, self.spec)
        if self.keys is not None:
            return dict(zip(self.keys, own, strict=True))
        return own[0] if len(own) == 1 else tuple(own)


def of_program(program: ExportedProgram) -> Exported:
    """The parts of a program that was exported in this process."""
    signature = program.graph_signature
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    inputs = []
    for spec in signature.input_specs:
        kind = spec.kind.name.lower().replace("constant_tensor", "tensor_constant")
        name = getattr(spec.arg, "name", "")
        held = None
        if kind == "buffer":
            held = program.state_dict.get(spec.target, program.constants.get(spec.target))
        elif kind == "tensor_constant":
            held = program.constants.get(spec.target)
        if isinstance(held, Tensor):
            inputs.append(Given(kind, name, held))
        else:
            inputs.append(_given(kind, name, getattr(spec.arg, "value", values.get(name))))
    user = [i for i, spec in enumerate(signature.output_specs) if spec.kind.name == "USER_OUTPUT"]
    ranges = {str(s): (_bound(r.lower), _bound(r.upper)) for s, r in program.range_constraints.items()}
    spec, conditions = program.call_spec.out_spec, guards(program)
    return Exported(program.graph_module, inputs, user, None, spec, ranges, conditions)


def _given(kind: str, name: str, value: Any) -> Given:
    if isinstance(value, Tensor):
        size = tuple(_size(n) for n in value.shape)
        return Given(kind, name, example(size, value.dtype), size)
    if isinstance(value, torch.SymInt):
        number = _size(value)
        return Given(kind, name, number.hint, number)
    return Given(kind, name, value)


def _size(n: int | torch.SymInt) -> Size:
    if isinstance(n, int):
        return Size(n)
    if n.node.hint is None:
        raise AuditError("the program has a size that is not known", remedy="give example inputs")
    return Size.read(int(n.node.hint), str(n.node.expr))


def _bound(n: Any) -> int | None:
    """A bound of torch's; None: infinity."""
    return int(n) if str(n).lstrip("-").isdigit() else None
