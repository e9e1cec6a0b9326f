"""Supports through the nodes of a graph."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, fx

from causaltrace.places import internal
from causaltrace.site import Site
from causaltrace.static.tracer import Static

_FRAME = re.compile(r'File "(.+?)", line (\d+), in (\S+)(?:\n\s+(\S[^\n]*))?')


class ProvenanceInterpreter(fx.Interpreter):
    """Runs a graph under a ``Static`` tracer. Afterwards ``node.meta["support"]`` is the latest label that
    each element of a node's tensor may depend on (int tensor, dims full or 1; -1: none), or None; and
    ``node.meta["site"]`` where it comes from."""

    def __init__(self, module: fx.GraphModule, tracer: Static) -> None:
        super().__init__(module)
        self._tracer = tracer

    def run_node(self, n: fx.Node) -> Any:
        before = self._tracer.here
        self._tracer.here = n.meta["site"] = _site(n)
        try:
            out = super().run_node(n)
        finally:
            self._tracer.here = before
        if isinstance(out, Tensor) and self._tracer.annotates:
            n.meta["support"] = self._tracer.latest(out)
        return out


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
