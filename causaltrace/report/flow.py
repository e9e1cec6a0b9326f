"""The provenance graph for a page: one node a source line and phase, placed and routed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from causaltrace.report import summary
from causaltrace.report.layered import Layout, layout
from causaltrace.report.model import Edge, Provenance
from causaltrace.site import Site

#: Nodes that are drawn; of more, those on a finding's path and the busiest.
LIMIT = 150
#: Phases whose operations write the state that later scores read.
STATE = frozenset({"update"})

WIDTH, HEIGHT = 262, 48
_COLUMN, _ROW, _MARGIN = WIDTH + 24, HEIGHT + 44, 12
_SHOWN = 32  #: letters of a line that fit a node

Span = tuple[int, int] | None


@dataclass(slots=True)
class Node:
    """The sites of one source line in one phase."""

    site: Site
    ops: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    bad: bool = False
    flows: int = 0
    x: float = 0
    y: float = 0

    @property
    def state(self) -> bool:
        return self.site.phase in STATE

    @property
    def name(self) -> str:
        where = summary.place(self.site) if self.site.line else self.site.file
        return where if len(where) <= _SHOWN else f"...{where[3 - _SHOWN :]}"

    @property
    def line(self) -> str:
        text = self.site.source or summary.arrows(self.ops, 3)
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."

    @property
    def words(self) -> str:
        parts = [f"{summary.place(self.site)} {self.site.function}".strip(), self.site.source]
        parts.append(f"{self.site.phase}: {summary.arrows(self.ops)}")
        if self.modules:
            parts.append(f"in {summary.arrows(self.modules, 4)}")
        return "\n".join(p for p in parts if p)


@dataclass(slots=True)
class Link:
    """All edges from one node to another."""

    source: Node
    target: Node
    flows: int = 0
    labels: Span = None
    lag: Span = None
    bad: bool = False
    back: bool = False
    path: str = ""

    def add(self, edge: Edge) -> None:
        self.flows += edge.flows
        self.labels = _wider(self.labels, edge.labels)
        self.lag = _wider(self.lag, edge.lag)
        self.bad |= edge.bad

    @property
    def words(self) -> str:
        parts = [summary.plural(self.flows, "flow")]
        if self.labels:
            parts.append(f"latest labels {self.labels[0]:,} to {self.labels[1]:,}")
        if self.lag:
            parts.append(f"{self.lag[0]:,} to {self.lag[1]:,} positions before the score")
        return ", ".join(parts) + (", on a finding's path" if self.bad else "")


@dataclass(slots=True)
class Flow:
    """``total``: source lines before the busiest were chosen."""

    nodes: list[Node]
    links: list[Link]
    total: int
    width: float = 0
    height: float = 0

    @property
    def phases(self) -> list[str]:
        return list(dict.fromkeys(n.site.phase for n in self.nodes))


def _wider(a: Span, b: Span) -> Span:
    if a is None or b is None:
        return a or b
    return min(a[0], b[0]), max(a[1], b[1])


def flow(graph: Provenance) -> Flow:
    """The graph collapsed by source line, with places in pixels."""
    nodes, links = _collapsed(graph)
    shown = _busiest(nodes, LIMIT)
    links = [k for k in links if k.source in shown and k.target in shown]
    number = {id(node): i for i, node in enumerate(shown)}
    pairs = [(number[id(k.source)], number[id(k.target)]) for k in links]
    inputs = [i for i, node in enumerate(shown) if node.site.phase == "input"]
    return _placed(shown, links, layout(len(shown), pairs, inputs), len(nodes))


def _collapsed(graph: Provenance) -> tuple[list[Node], list[Link]]:
    by_line: dict[tuple[str, int, str, str], Node] = {}
    of: list[Node] = []
    for site in graph.sites:
        node = by_line.setdefault((site.file, site.line, site.function, site.phase), Node(site))
        _once(node.ops, summary.short_op(site.op))
        _once(node.modules, site.module)
        of.append(node)
    links: dict[tuple[int, int], Link] = {}
    for edge in graph.edges:
        a, b = of[edge.source], of[edge.target]
        if a is b:
            continue
        links.setdefault((id(a), id(b)), Link(a, b)).add(edge)
        for node in (a, b):
            node.flows += edge.flows
            node.bad |= edge.bad
    return list(by_line.values()), list(links.values())


def _once(names: list[str], name: str) -> None:
    if name and name not in names:
        names.append(name)


def _busiest(nodes: Sequence[Node], limit: int) -> list[Node]:
    """At most ``limit`` nodes, in their order."""
    best = sorted(nodes, key=lambda n: (not n.bad, -n.flows))[:limit]
    keep = {id(n) for n in best}
    return [n for n in nodes if id(n) in keep]


def _placed(nodes: list[Node], links: list[Link], places: Layout, total: int) -> Flow:
    for node, x, layer in zip(nodes, places.x, places.layer, strict=True):
        node.x, node.y = _MARGIN + x * _COLUMN, _MARGIN + layer * _ROW
    for i, (link, route) in enumerate(zip(links, places.routes, strict=True)):
        link.back = i in places.back
        link.path = _curve([(_MARGIN + x * _COLUMN + WIDTH / 2, layer) for x, layer in route])
    width = max((x for route in places.routes for x, _ in route), default=0.0)
    width = max(width, *places.x) if places.x else 0.0
    height = max(places.layer, default=-1) + 1
    return Flow(nodes, links, total, 2 * _MARGIN + width * _COLUMN + WIDTH, 2 * _MARGIN + height * _ROW)


def _curve(route: Iterable[tuple[float, int]]) -> str:
    """A path from the edge of the first node to that of the last, straight through the layers between."""
    places = [(x, _MARGIN + layer * _ROW) for x, layer in route]
    downwards = places[-1][1] > places[0][1]
    near, far = (HEIGHT, 0) if downwards else (0, HEIGHT)
    x, y = places[0][0], places[0][1] + near
    parts = [f"M{x:.0f} {y:.0f}"]
    for i, (to, top) in enumerate(places[1:], 1):
        end = top + far
        half = (y + end) / 2
        parts.append(f"C{x:.0f} {half:.0f} {to:.0f} {half:.0f} {to:.0f} {end:.0f}")
        x, y = to, end
        if i < len(places) - 1:
            y = top + near
            parts.append(f"L{x:.0f} {y:.0f}")
    return "".join(parts)
