"""An exported program: a graph, what it is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_unflatten


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
    """One argument of the graph. ``kind``: "user_input", "parameter", "buffer" or "tensor_constant"."""

    kind: str
    name: str
    value: Any


@dataclass
class Exported:
    """``outputs``: which results of the graph are the user's; ``keys`` their names, if they have any; or
    ``spec``, which puts them together."""

    module: fx.GraphModule | Program
    inputs: list[Given]
    outputs: list[int]
    keys: list[str] | None = None
    spec: Any = None

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
        value = held if isinstance(held, Tensor) else _example(values.get(name), spec.arg)
        inputs.append(Given(kind, name, value))
    user = [i for i, spec in enumerate(signature.output_specs) if spec.kind.name == "USER_OUTPUT"]
    return Exported(program.graph_module, inputs, user, None, program.call_spec.out_spec)


def _example(value: Any, argument: Any) -> Any:
    """A meta tensor of the shape that the program was exported with."""
    if not isinstance(value, Tensor):
        return getattr(argument, "value", value)
    sizes = [n if isinstance(n, int) else int(n.node.hint) for n in value.shape]
    return torch.empty(sizes, dtype=value.dtype, device="meta")
