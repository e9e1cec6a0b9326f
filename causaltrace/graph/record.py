"""The provenance graph, recorded while the watch runs.

Every support that is made tells its site and its parents; what is kept is one node for each site and one
edge for each pair of sites, with counts. So the graph is as large as the program, not as the run, and nothing
is looked at that is not on the host already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from causaltrace.lattice.cells import LABELS, Cells
from causaltrace.report.model import Edge, Hop, Provenance
from causaltrace.site import Site

#: Where all labels come from.
INPUT = Site("input", "labels", "<labels>", 0)


Span = tuple[int, int]


def spanned(a: Span | None, b: Span) -> Span:
    """The least and the greatest of two ranges."""
    return b if a is None else (min(a[0], b[0]), max(a[1], b[1]))


class Flow:
    """What went along one edge so far; the fields of ``Edge``."""

    __slots__ = ("flows", "labels", "lag")

    def __init__(self) -> None:
        self.flows = 0
        self.labels: Span | None = None
        self.lag: Span | None = None


class Route(NamedTuple):
    """The path of scores whose labels are at least and at most so far before them; ``bad``: of a finding."""

    path: Sequence[Hop]
    lag: Span
    bad: bool


class Record:
    """Sites by number and edges between them. A site is no edge to itself: the steps of one operation are
    not told apart from the turns of a loop."""

    def __init__(self) -> None:
        self.nodes: dict[Site, int] = {INPUT: LABELS}
        self.flows: dict[tuple[int, int], Flow] = {}

    def node(self, site: Site) -> int:
        return self.nodes.setdefault(site, len(self.nodes))

    def _flow(self, source: int, target: int) -> Flow:
        flow = self.flows.get((source, target))
        if flow is None:
            flow = self.flows[source, target] = Flow()
        return flow

    # -- during the watch -----------------------------------------------------------------------------

    def made(self, site: Site, made: Cells, parents: tuple[Cells, ...]) -> int:
        """``made`` was made at ``site`` from ``parents``; gives the site's number."""
        target = self.node(site)
        for parent in parents:
            source = parent.node
            if source < 0 or source == target:
                continue
            flow = self._flow(source, target)
            flow.flows += 1
            known = parent.bounds or (made.bounds if len(parents) == 1 else None)
            if known is not None and (last := known[1][0] >> 1) >= 0:
                first = known[0][0] >> 1
                flow.labels = spanned(flow.labels, (first if first >= 0 else last, last))
        return target

    def scored(self, site: Site, sources: Iterable[Cells | None], count: int, lag: tuple[int, int]) -> None:
        """``count`` scores at ``site`` of supports from ``sources``, with labels at least and at most so far
        before them."""
        target = self.node(site)
        for cells in sources:
            if cells is not None and cells.node >= 0 and cells.node != target:
                flow = self._flow(cells.node, target)
                flow.flows += count
                flow.lag = spanned(flow.lag, lag)

    def forget_scores(self) -> None:
        """Explicit scores replace what was taken for scores."""
        names = list(self.nodes)
        self.flows = {pair: f for pair, f in self.flows.items() if names[pair[1]].phase != "score"}

    # -- at the end -----------------------------------------------------------------------------------

    def provenance(self, routes: Iterable[Route]) -> Provenance:
        """The graph so far. ``routes`` go along edges that were recorded; where a path lost its beginning
        with the history, so does its route."""
        lags: dict[tuple[int, int], tuple[int, int]] = {}
        bad: set[tuple[int, int]] = set()
        for route in routes:
            for pair in pairwise([LABELS, *(self.nodes.get(hop.site, -1) for hop in route.path)]):
                lags[pair] = spanned(lags.get(pair), route.lag)
                if route.bad:
                    bad.add(pair)
        edges = []
        for pair, flow in self.flows.items():
            lag = flow.lag if pair not in lags else spanned(flow.lag, lags[pair])
            edges.append(Edge(*pair, flow.flows, flow.labels, lag, pair in bad))
        used = sorted({LABELS, *(node for pair in self.flows for node in pair)})
        number = {node: i for i, node in enumerate(used)}
        sites = list(self.nodes)
        return Provenance(
            [sites[node] for node in used],
            [replace(e, source=number[e.source], target=number[e.target]) for e in edges],
        )
