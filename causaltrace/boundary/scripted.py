"""Functions that ``torch.jit`` scripted or traced.

Torch runs them operation by operation, until it has seen them a few times: then it may run several as one
kernel of its own (on GPUs), of which it tells nobody. For the time of a watch it does not. What they make
without any operation, a list or text or a file, is told before they run, by what is in their graphs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from causaltrace._compat import FINDING, SCRIPTED, ScriptModule, attributes, optimized
from causaltrace.boundary.outside import Outside
from causaltrace.higher import leaves
from causaltrace.replaced import replaced
from causaltrace.schema import BLANK
from causaltrace.tracer import Tracer

#: Nodes of graphs by which values leave, if they are given tensors.
LEAVING = frozenset(
    ("prim::tolist", "prim::Print", "aten::str", "aten::format", "aten::percentFormat", "aten::save")
)
#: Those that call what the graph does not show.
CALLING = frozenset(("prim::PythonOp", "prim::CallMethod", "prim::CallFunction"))
#: Methods of modules that write all that they hold to a file, or to bytes.
SAVING = ("save", "save_to_buffer", "_save_for_mobile", "_save_to_buffer_for_mobile")


class Graph(NamedTuple):
    """What a graph does that no operation tells of: ``leaving``: names of nodes; ``filled``: is all memory
    that it makes filled?; ``constants``: tensors in it."""

    leaving: tuple[str, ...]
    filled: bool
    constants: list[Tensor]


def enter(tracer: Tracer, outside: Outside, names: dict[int, Any]) -> list[Callable[[], None]]:
    """``names``: what takes the place of functions, by their ids. Returns what ends it."""
    undo = [replaced(kind, "__call__", _called(tracer, outside, kind.__call__)) for kind in SCRIPTED]
    for name in SAVING:
        undo.append(replaced(ScriptModule, name, _saving(tracer, getattr(ScriptModule, name))))
    undo.append(replaced(*FINDING, _finding(names, getattr(*FINDING))))
    return undo


def _finding(names: dict[int, Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """The compiler knows torch's functions by their identity."""

    @functools.wraps(original)
    def find(fn: Any) -> Any:
        return original(getattr(fn, "__wrapped__", fn) if any(fn is new for new in names.values()) else fn)

    return find


def _called(tracer: Tracer, outside: Outside, original: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[Any, Graph] = {}

    @functools.wraps(original)
    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        key = function.graph
        if key not in known:
            known[key] = _look(function.inlined_graph)
            function._debug_flush_compilation_cache()  # what it had fused by now
        graph = known[key]
        for what in graph.leaving:
            for t in (*leaves((args, kwargs)), *graph.constants, *_held(getattr(function, "owner", None))):
                tracer.escape(f"{what.split('::')[1]} in TorchScript", t)
        outside.filling += graph.filled
        try:
            with optimized(False):
                return original(function, *args, **kwargs)
        except Exception:
            for t in leaves((args, kwargs)):
                tracer.escape("an error in TorchScript", t)
            raise
        finally:
            outside.filling -= graph.filled
            if tracer.counts:  # which it may ask for by itself
                tracer.counts.tell()

    return call


def _saving(tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save(module: Any, *args: Any, **kwargs: Any) -> Any:
        for t in _held(module):
            tracer.escape("jit.save", t)
        return original(module, *args, **kwargs)

    return save


def _held(module: Any) -> Iterator[Tensor]:
    """The tensors that a scripted module, and those in it, hold."""
    if module is not None:
        values, modules = attributes(module)
        yield from leaves(values)
        for inner in modules:
            yield from _held(inner)


def _look(graph: Any) -> Graph:
    nodes = list(_nodes(graph))
    kinds = {node.kind() for node in nodes}
    given = (node for node in nodes if node.kind() in LEAVING and any(map(_has_tensors, node.inputs())))
    constants = [n.t("value") for n in nodes if n.hasAttribute("value") and n.kindOf("value") == "t"]
    blank = {f"aten::{name}" for name in BLANK}
    return Graph(tuple({n.kind(): None for n in given}), not kinds & (blank | CALLING), constants)


def _nodes(block: Any) -> Iterator[Any]:
    """But for those of blocks that raise: whoever catches an error knows something, and that is told."""
    nodes = list(block.nodes())
    if any(node.kind() == "prim::RaiseException" for node in nodes):
        return
    for node in nodes:
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
        if node.hasAttribute("Subgraph"):
            yield from _nodes(node.g("Subgraph"))


def _has_tensors(value: Any) -> bool:
    return "Tensor" in str(value.type())
