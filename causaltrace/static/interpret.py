"""Supports through the nodes of a graph."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, fx

from causaltrace._compat import DTYPES
from causaltrace.places import internal
from causaltrace.site import Site
from causaltrace.static.bodies import Body, calls_bodies
from causaltrace.static.errors import AuditError
from causaltrace.static.exported import Program
from causaltrace.static.passes import Node, passes
from causaltrace.static.tracer import Static

#: Where functions of graphs come from that open and close a ``vmap`` of the whole process.
BATCHING = "torch._functorch.predispatch"
DECOMPOSE = "audit the module itself, or what program.run_decompositions() gives"

_FRAME = re.compile(r'File "(.+?)", line (\d+), in (\S+)(?:\n\s+(\S[^\n]*))?')


class ProvenanceInterpreter(fx.Interpreter):
    """Runs a graph under a ``Static`` tracer. Afterwards ``node.meta["support"]`` is the latest label that
    each element of a node's tensor may depend on (int tensor, dims full or 1; -1: none), None for what is no
    tensor, or a list for a node of several; ``node.meta["makes"]`` its type and shape, and
    ``node.meta["site"]`` where it comes from."""

    def __init__(self, module: fx.GraphModule | Program, tracer: Static) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._tracer = tracer
        self._graph = module.graph
        self._passes = passes(module.graph)
        if any(getattr(n.target, "__module__", "") == BATCHING for n in module.graph.nodes):
            raise AuditError("the graph has vmap in it as it was written", remedy=DECOMPOSE)

    def run_node(self, n: fx.Node) -> Any:
        before = self._tracer.node
        site = n.meta["site"] = _site(n)
        outer = (False,) * len(self._passes) if before is None else before[1:]
        self._tracer.node = Node(site, *(n in part or o for part, o in zip(self._passes, outer, strict=True)))
        try:
            out = super().run_node(n)
        finally:
            self._tracer.node = before
        if self._tracer.annotates and n.op != "output":
            self._annotate(n, out)
        return out

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        held = super().get_attr(target, args, kwargs)
        if isinstance(held, (fx.GraphModule, Program)):
            users = (n.users for n in self._graph.nodes if n.op == "get_attr" and n.target == target)
            if all(calls_bodies(u.target) for found in users for u in found):
                return Body(ProvenanceInterpreter(held, self._tracer).run)
        return held

    def _annotate(self, n: fx.Node, out: Any) -> None:
        many = isinstance(out, (list, tuple))
        made = [t if isinstance(t, Tensor) else None for t in out] if many else [out]
        n.meta["makes"] = ", ".join(map(_kind, made))
        supports = [self._tracer.latest(t) if isinstance(t, Tensor) else None for t in made]
        n.meta["support"] = supports if many else supports[0]


def _kind(value: Any) -> str:
    """Type and shape in short."""
    if isinstance(value, Tensor):
        return f"{DTYPES[value.dtype]}{list(value.shape)}"
    return str(value) if isinstance(value, (int, float, bool)) else "-"


def _site(node: fx.Node) -> Site:
    """The user's line that a node was made from, as far as its export says."""
    module = _module(node.meta.get("nn_module_stack"))
    for file, line, function, source in reversed(_FRAME.findall(node.meta.get("stack_trace") or "")):
        if not internal(file):
            return Site("forward", str(node.target), file, int(line), function, module, stored=source)
    return Site("forward", str(node.target), "<graph>", 0, node.name, module, stored=node.format_node())


def _module(stack: Any) -> str:
    """Dotted path of the module that a node belongs to."""
    if isinstance(stack, dict) and stack:
        last = list(stack.values())[-1]
        return str(last[0] if isinstance(last, (list, tuple)) else last)
    if isinstance(stack, str) and stack:
        parts = stack.rpartition(";")[2].split(",")
        return parts[1] if len(parts) > 1 else ""
    return ""
