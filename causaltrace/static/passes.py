"""Which nodes of a graph are a backward pass, and which lead to the loss that it begins at.

A graph does not say so. What tells it: a pass begins at a loss with a gradient of ones, all that follows from
that is its gradients, and it ends where a gradient is written to something that the loss was made of. A pass
without a single backward operation is not taken for one. What is found here only tells an objective from a
score, and an update from a direct flow; every flow is followed in any case.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import fx

from causaltrace import rules
from causaltrace.schema import Op, describe
from causaltrace.site import Site

#: Operations whose result is the same whatever tensor they are given.
FILLS = (
    "ones_like",
    "zeros_like",
    "full_like",
    "empty_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
)


class Node(NamedTuple):
    """What is known of a node of a graph: where it comes from, and what part it has in a backward pass."""

    site: Site
    backward: bool = False
    silent: bool = False
    objective: bool = False


class Passes(NamedTuple):
    """``backward``: nodes that calculate gradients; ``silent``: those of them from which nothing but updates
    follows; ``objective``: nodes that a loss is made of."""

    backward: frozenset[fx.Node]
    silent: frozenset[fx.Node]
    objective: frozenset[fx.Node]


def passes(graph: fx.Graph) -> Passes:
    """The backward passes of a graph."""
    found = _Search(graph)
    real = {seed for seed, made in found.gradients.items() if any(_is_gradient(n) for n in made)}
    backward = frozenset(n for n, seeds in found.seeds.items() if seeds & real)
    used = found.used(graph)
    silent = frozenset(n for n in backward if _is_gradient(n) or n not in used)
    objective = frozenset(n for seed in real for n in found.makers[seed] if n not in backward)
    return Passes(backward, silent, objective)


class _Search:
    """Gradients, from the first node to the last. ``seeds``: the beginnings that a gradient follows from;
    ``makers``: by beginning, what its loss was made of; ``updates``: nodes that end a pass."""

    def __init__(self, graph: fx.Graph) -> None:
        self.seeds: dict[fx.Node, set[fx.Node]] = {}
        self.gradients: dict[fx.Node, list[fx.Node]] = {}
        self.makers: dict[fx.Node, set[fx.Node]] = {}
        self.updates: set[fx.Node] = set()
        self._memory: dict[fx.Node, object] = {}  #: what a node is a view of, or a new value of
        self._state: set[fx.Node] = set()  #: arguments, constants, and what is made of these alone
        for n in graph.nodes:
            self._meet(n, _op(n))

    def _meet(self, n: fx.Node, op: Op | None) -> None:
        self._memory[n] = n
        if n.op in ("placeholder", "get_attr"):
            self._memory[n] = n if n.op == "placeholder" else str(n.target)
            self._state.add(n)
            return
        inputs = n.all_input_nodes
        if op is not None and op.name == "ones_like":
            loss = inputs[0]
            self.makers[n] = self._before(loss)
            self.seeds[n], self.gradients[n] = {n}, []
            return
        seeds: set[fx.Node] = set()
        if op is None or op.name not in FILLS:
            seeds = seeds.union(*(self.seeds.get(a, ()) for a in inputs))
        written = _written(n, op)
        if written or op is not None and op.view and inputs:
            self._memory[n] = self._memory[(written or inputs)[0]]
        if seeds and self._ends(n, op, written, seeds):
            self.updates.add(n)
            self._state.add(n)
            return
        if seeds:
            self.seeds[n] = seeds
            for seed in seeds:
                self.gradients[seed].append(n)
        elif op is not None and _pointwise(op) and inputs and all(a in self._state for a in inputs):
            self._state.add(n)
            self._memory[n] = self._memory[inputs[0]]

    def _before(self, loss: fx.Node) -> set[fx.Node]:
        """All that a loss is made of, since the last updates."""
        found, left = set[fx.Node](), [loss]
        while left:
            n = left.pop()
            if n not in found:
                found.add(n)
                left += [] if n in self.updates else n.all_input_nodes
        return found

    def _ends(self, n: fx.Node, op: Op | None, written: list[fx.Node], seeds: Iterable[fx.Node]) -> bool:
        """Does a gradient go into something that the loss was made of?"""
        made_of = {self._memory[m] for seed in seeds for m in self.makers[seed]}
        if written:
            return any(t not in self.seeds and self._memory[t] in made_of for t in written)
        if op is None or not _pointwise(op):
            return False
        own = [a for a in n.all_input_nodes if a not in self.seeds and a in self._state]
        ends = [a for a in own if self._memory[a] in made_of and _shape(a) == _shape(n) is not None]
        if ends:
            self._memory[n] = self._memory[ends[0]]
        return bool(ends)

    def used(self, graph: fx.Graph) -> set[fx.Node]:
        """What the results follow from otherwise than by an update. What else is written to may be one."""
        left = [n for n in graph.nodes if n.op == "output" or n not in self.updates and _written(n, _op(n))]
        found = set[fx.Node]()
        while left:
            n = left.pop()
            op = _op(n)
            if n in found or n in self.updates:
                continue
            found.add(n)
            left += [] if op is not None and op.name in FILLS else n.all_input_nodes
        return found


def _op(n: fx.Node) -> Op | None:
    return describe(n.target) if isinstance(n.target, torch._ops.OpOverload) else None


def _is_gradient(n: fx.Node) -> bool:
    op = _op(n)
    return op is not None and "_backward" in op.name


def _pointwise(op: Op) -> bool:
    return op.rule.kind == rules.POINT


def _written(n: fx.Node, op: Op | None) -> list[fx.Node]:
    """The nodes that a node writes to."""
    found: list[fx.Node] = []
    if op is not None and op.written:
        bound = op.bind(n.args, dict(n.kwargs))
        fx.map_arg([bound.get(name) for name in op.written], found.append)
    return found


def _shape(n: fx.Node) -> Any:
    value = n.meta.get("val", n.meta.get("tensor_meta"))
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)
