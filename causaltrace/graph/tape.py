"""The operations of a region, one after the other, as a ``torch.fx.Graph`` that can be read and run.

The folded graph has a line once however often it runs; a tape has every operation of a region, forward and
backward, with where it was run and which labels its result holds. It runs: from the values that came into the
region it makes those that the region made.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from causaltrace._compat import is_fake, storage_of
from causaltrace.places import site
from causaltrace.report.summary import place
from causaltrace.schema import tensors
from causaltrace.tracer import Tracer


class Tape(TorchDispatchMode):
    """Records what runs inside ``with trace.tape() as tape:``.

    Attributes:
        graph: a node an operation. ``node.meta["site"]`` is where it was run; ``node.meta["support"]`` the
            latest label that each element of its result may depend on (int tensor, dims full or 1; -1: none),
            or None, which is also what nodes with several results have; the results have nodes of their own.
        inputs: copies of the values that came into the region, one for each placeholder. Random numbers and
            results of operators that call functions come in, too.
        results: copies of the values, at the end, of what the region made and did not use itself, and of what
            it wrote to.
        complete: False if there were more than ``limit`` operations; then the tape ends before the first
            one that is missing.
    """

    supports_higher_order_operators = True

    def __init__(self, tracer: Tracer, limit: int) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.inputs: list[Tensor] = []
        self.results: list[Tensor] = []
        self.complete = True
        self._tracer, self._limit, self._count = tracer, limit, 0
        self._nodes: dict[int, fx.Node] = {}  #: by the id of a tensor
        self._memory: dict[int, fx.Node] = {}  #: by the id of a storage: a node that has it
        self._held: list[Tensor] = []  #: keeps ids from being used again
        self._open: dict[fx.Node, Tensor] = {}  #: made or written, and not used since
        self._taken: list[fx.Node] = []  #: by the operation that runs
        self._last: fx.Node | None = None  #: the last placeholder
        self._closed = False

    @property
    def module(self) -> fx.GraphModule:
        """Takes ``inputs`` (and writes to them where the region did), gives ``results``."""
        return fx.GraphModule({}, self.graph)

    def replay(self) -> tuple[Tensor, ...]:
        """Run the tape on copies of its inputs."""
        with torch.no_grad(), _disable_current_modes():
            results: tuple[Tensor, ...] = self.module(*[t.clone() for t in self.inputs])
        return results

    # -- recording ------------------------------------------------------------------------------------

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            with _disable_current_modes():
                self.results = [t.detach().clone() for t in self._open.values()]
            self.graph.output(tuple(self._open))
            self._held.clear()
            self._nodes.clear()
            self._memory.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(
            t is not Tensor for t in types
        ):  # a wrapper's own handler runs the operations on what it holds
            return func(*args, **kwargs) if any(map(is_fake, tensors(args))) else NotImplemented
        if not self._closed and self._count == self._limit:
            self.complete = False
            self._close()
        plain = isinstance(func, torch._ops.OpOverload)
        if self._closed or plain and func.namespace == "profiler":
            return func(*args, **kwargs)
        self._count += 1
        drawn = not plain or torch.Tag.nondeterministic_seeded in func.tags
        where = site(str(func), self._tracer.phase)
        with _disable_current_modes():
            taken = None if drawn else tree_map(self._use, (tuple(args), dict(kwargs)))
            written = _written(func, args, kwargs) if plain else []
            targets = [self._use(t) for t in written]
        out = func(*args, **kwargs)
        with _disable_current_modes():
            if taken is None:
                self._come_in(out, written, targets)
            else:
                node = self.graph.call_function(func, *taken)
                node.meta["site"] = where
                self._name(node, out)
            if written or tensors(out):  # a number that Python reads leaves its tensor a result
                for node in self._taken:
                    self._open.pop(node, None)
            self._taken.clear()
            for t, target in zip(written, targets, strict=True):
                self._open[target] = t
            for t in tensors(out):
                if (made := self._nodes.get(id(t))) is not None:
                    made.meta.setdefault("site", where)
                    made.meta["support"] = self._support(t)
        return out

    def _use(self, value: Any) -> Any:
        """The node of a tensor that an operation takes; other arguments as they are."""
        if not isinstance(value, Tensor):
            return value
        node = self._nodes.get(id(value))
        if node is None:
            node = self._outside(value)
        self._taken.append(node)
        return node

    def _outside(self, t: Tensor) -> fx.Node:
        """A tensor that no recorded operation made: a view of memory that is known, or a new input."""
        if t.layout is not torch.strided:
            return self._keep(t, self._input(t.detach().clone()))
        storage = id(storage_of(t))
        base = self._memory.get(storage)
        whole = t.is_contiguous() and t.numel() * t.itemsize == storage_of(t).nbytes()
        if base is None and whole:
            return self._keep(t, self._input(t.detach().clone()))
        if base is None:
            flat = torch.empty(0, dtype=t.dtype, device=t.device).set_(storage_of(t))
            base = self._memory[storage] = self._input(flat.clone())
        view = (base, t.shape, t.stride(), t.storage_offset())
        return self._keep(t, self.graph.call_function(torch.ops.aten.as_strided.default, view))

    def _input(self, value: Tensor) -> fx.Node:
        start = next(iter(self.graph.nodes), None)
        point = self.graph.inserting_after(self._last) if self._last else None
        if point is None and start is not None:
            point = self.graph.inserting_before(start)
        self.inputs.append(value)
        name = f"input_{len(self.inputs)}"
        if point is None:
            self._last = self.graph.placeholder(name)
        else:
            with point:
                self._last = self.graph.placeholder(name)
        return self._last

    def _keep(self, t: Tensor, node: fx.Node) -> fx.Node:
        self._nodes[id(t)] = node
        if t.layout is torch.strided:
            self._memory.setdefault(id(storage_of(t)), node)
        self._held.append(t)
        return node

    def _name(self, node: fx.Node, out: Any) -> None:
        """The results of a node have nodes; what an in-place operation returns has one already."""
        if isinstance(out, Tensor):
            if id(out) not in self._nodes:
                self._open[self._keep(out, node)] = out
        elif isinstance(out, (list, tuple)):
            for i, item in enumerate(out):
                if isinstance(item, (Tensor, list, tuple)):
                    self._name(self.graph.call_function(operator.getitem, (node, i)), item)

    def _come_in(self, out: Any, written: list[Tensor], targets: list[fx.Node]) -> None:
        """Results that running the operation again would not give."""
        for t, target in zip(written, targets, strict=True):
            value = self._input(t.detach().clone())
            self.graph.call_function(torch.ops.aten.copy_.default, (target, value))
        for t in tensors(out):
            if id(t) not in self._nodes:
                self._open[self._keep(t, self._input(t.detach().clone()))] = t

    def _support(self, t: Tensor) -> Tensor | None:
        shadow = self._tracer.memory.read(t)
        if shadow is None:
            return None
        if shadow.label is not None:
            return shadow.label.data[..., 0]
        return None if shadow.support is None else shadow.support.data[..., 0] >> 1

    # -- reading --------------------------------------------------------------------------------------

    def __str__(self) -> str:
        """One line an operation: its name, what it takes, its latest label and its line."""
        lines = [f"{self._count} operations, {len(self.inputs)} inputs, {len(self.results)} results"]
        if not self.complete:
            lines[0] += f"; the region went on after the limit of {self._limit}"
        for node in self.graph.nodes:
            latest = node.meta.get("support")
            label = "" if latest is None or not latest.numel() else f"  x_{int(latest.max())}"
            where = node.meta.get("site")
            lines.append(f"{node.format_node()}{label}" + (f"  {place(where)}" if where else ""))
        return "\n".join(lines)


def _written(func: torch._ops.OpOverload, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operation writes to."""
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors([args[i] if i < len(args) else kwargs.get(argument.name)])
    return found
