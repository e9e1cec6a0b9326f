"""The provenance graph made small enough to look at: a node a source line, layers of one kind in one.

Sites of one phase and line are one node, whatever their operations, and so are those of modules that differ
in numbers only (``blocks.0.mlp`` and ``blocks.1.mlp``). What leads to no score is left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from causaltrace.report.model import Provenance
from causaltrace.report.summary import ranges, short_file, short_op
from causaltrace.site import Site

Span = tuple[int, int]
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_SHOWN_OPS = 3


@dataclass(slots=True)
class Node:
    """Sites that are drawn as one."""

    phase: str
    site: Site
    sites: list[int] = field(default_factory=list)  #: indices into ``Provenance.sites``
    ops: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)

    @property
    def module(self) -> str:
        """``GPT.blocks.0-11.mlp``: the module, with the numbers of all layers."""
        names = [name for name in self.modules if name]
        if not names:
            return ""
        numbers = [list(map(int, _NUMBER.findall(name))) for name in names]
        columns = iter([ranges(set(column)) for column in zip(*numbers, strict=True)])
        return _NUMBER.sub(lambda _: next(columns), names[0])

    @property
    def place(self) -> str:
        return f"{short_file(self.site.file)}:{self.site.line}" if self.site.line else ""

    @property
    def title(self) -> str:
        """The source line, or what stands for it."""
        return self.site.source or short_op(self.site.op) or self.phase

    @property
    def operations(self) -> str:
        names = list(dict.fromkeys(map(short_op, self.ops)))
        more = len(names) - _SHOWN_OPS
        return ", ".join(names[:_SHOWN_OPS]) + (f" and {more} more" if more > 0 else "")


@dataclass(slots=True)
class Link:
    """An edge between two nodes (indices), with what its edges say together."""

    source: int
    target: int
    flows: int = 0
    labels: Span | None = None
    lag: Span | None = None
    bad: bool = False


@dataclass(slots=True)
class Drawing:
    nodes: list[Node]
    links: list[Link]


def fold(graph: Provenance, expand: bool = False) -> Drawing:
    """What is drawn of a graph; ``expand``: all of it, a node a site."""
    shown = set(range(len(graph.sites))) if expand else _leading_to_scores(graph)
    scored = {(s.file, s.line) for s in graph.sites if s.phase == "score"}
    numbers: dict[tuple[object, ...], int] = {}
    nodes: list[Node] = []
    of: dict[int, int] = {}
    for i, site in enumerate(graph.sites):
        if i not in shown:
            continue
        phase = site.phase
        if not expand and phase == "forward" and (site.file, site.line) in scored:
            phase = "score"
        module = "" if phase == "score" else _NUMBER.sub("*", site.module)
        key = (i,) if expand else (phase, site.file, site.line, module)
        if key not in numbers:
            numbers[key] = len(nodes)
            nodes.append(Node(phase, site))
        of[i] = numbers[key]
        node = nodes[of[i]]
        node.sites.append(i)
        node.ops.append(site.op)
        if phase != "score":
            node.modules.append(site.module)
    links: dict[Span, Link] = {}
    for edge in graph.edges:
        if edge.source not in of or edge.target not in of:
            continue
        pair = (of[edge.source], of[edge.target])
        if pair[0] == pair[1]:
            continue
        link = links.setdefault(pair, Link(*pair))
        link.flows += edge.flows
        link.labels = _spanned(link.labels, edge.labels)
        link.lag = _spanned(link.lag, edge.lag)
        link.bad = link.bad or edge.bad
    return Drawing(nodes, list(links.values()))


def _leading_to_scores(graph: Provenance) -> set[int]:
    sources: dict[int, list[int]] = defaultdict(list)
    for edge in graph.edges:
        sources[edge.target].append(edge.source)
    found: set[int] = set()
    waiting = [i for i, site in enumerate(graph.sites) if site.phase == "score"]
    while waiting:
        here = waiting.pop()
        if here not in found:
            found.add(here)
            waiting += sources[here]
    return found


def _spanned(a: Span | None, b: Span | None) -> Span | None:
    if a is None or b is None:
        return a or b
    return min(a[0], b[0]), max(a[1], b[1])
