"""A layered layout of a small graph: sources on top, edges down, loops back up.

The steps are those of Sugiyama, Tagawa and Toda (1981): break cycles, put nodes in layers, order each layer
by the middle of its neighbours, then place them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_SWEEPS, _MOVES = 8, 24
_BEND = 0.18  #: the room that a passing edge takes in a layer, next to 1 for a node

Edge = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """``x`` and ``layer`` of each node, in units of a node; of each edge, the places (x, layer) that it
    passes, from source to target; ``back``: the edges that close a loop."""

    x: list[float]
    layer: list[int]
    routes: list[list[tuple[float, int]]]
    back: set[int]


def layout(count: int, edges: Sequence[Edge], first: Sequence[int] = ()) -> Layout:
    """Places for nodes ``0 .. count - 1``. ``first``: where to look for sources first."""
    back = _back(count, edges, first)
    down = [(b, a) if i in back else (a, b) for i, (a, b) in enumerate(edges)]
    layer = _layers(count, down)
    rows: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for node in range(count):
        rows[layer[node]].append(node)
    chains = [_chain(edge, layer, rows, count + 1000 * i) for i, edge in enumerate(down)]
    links = _links(chains)
    _order(rows, links)
    x = _place(rows, links, count)
    height = {node: i for i, row in enumerate(rows) for node in row}
    routes = [[(x[n], height[n]) for n in chain] for chain in chains]
    for i in back:
        routes[i].reverse()
    return Layout([x[n] for n in range(count)], layer, routes, back)


def _back(count: int, edges: Sequence[Edge], first: Sequence[int]) -> set[int]:
    """The edges that a walk from the sources finds to lead back to a node that it is still below."""
    out: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for i, (a, b) in enumerate(edges):
        out[a].append((i, b))
    found: set[int] = set()
    below, done = set(), set()
    for root in (*first, *range(count)):
        if root in done:
            continue
        below.add(root)
        stack = [(root, iter(out[root]))]
        while stack:
            node, rest = stack[-1]
            for i, target in rest:
                if target in below:
                    found.add(i)
                elif target not in done:
                    below.add(target)
                    stack.append((target, iter(out[target])))
                    break
            else:
                stack.pop()
                below.discard(node)
                done.add(node)
    return found


def _layers(count: int, edges: Sequence[Edge]) -> list[int]:
    """Each node one layer below the lowest of those above it; sources just above what they lead to."""
    into: list[list[int]] = [[] for _ in range(count)]
    out: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        into[b].append(a)
        out[a].append(b)
    waiting = [len(above) for above in into]
    ready = [n for n in range(count) if not waiting[n]]
    layer = [0] * count
    for node in ready:  # grows while it is walked
        for target in out[node]:
            layer[target] = max(layer[target], layer[node] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    for node in range(count):
        if not into[node] and out[node]:
            layer[node] = min(layer[t] for t in out[node]) - 1
    return layer


def _chain(edge: Edge, layer: Sequence[int], rows: list[list[int]], free: int) -> list[int]:
    """The edge with a bend in every layer that it passes; bends are numbered from ``free`` on."""
    a, b = edge
    bends = range(free, free + max(layer[b] - layer[a] - 1, 0))
    for i, bend in enumerate(bends, layer[a] + 1):
        rows[i].append(bend)
    return [a, *bends, b]


Links = tuple[dict[int, list[int]], dict[int, list[int]]]


def _links(chains: Sequence[Sequence[int]]) -> Links:
    """Neighbours above and below each node and bend."""
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for chain in chains:
        for a, b in pairwise(chain):
            above.setdefault(b, []).append(a)
            below.setdefault(a, []).append(b)
    return above, below


def _order(rows: list[list[int]], links: Links) -> None:
    """Sort each layer by the middle of its neighbours, down and up in turn."""
    place = {n: i for row in rows for i, n in enumerate(row)}
    for sweep in range(_SWEEPS):
        near = links[sweep % 2]
        for row in rows if sweep % 2 == 0 else reversed(rows):
            middle = {n: _mean([place[m] for m in near.get(n, ())], place[n]) for n in row}
            row.sort(key=lambda n: middle[n])
            place.update((n, i) for i, n in enumerate(row))


def _place(rows: Sequence[Sequence[int]], links: Links, count: int) -> dict[int, float]:
    """Each node near the middle of its neighbours, as far as those beside it leave room."""
    x: dict[int, float] = {}
    for row in rows:
        for node, at in zip(row, _apart([0.0] * len(row), _room(row, count)), strict=True):
            x[node] = at
    for sweep in range(_MOVES):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            near = [[*links[0].get(n, ()), *links[1].get(n, ())] for n in row]
            want = [_mean([x[m] for m in others], x[n]) for n, others in zip(row, near, strict=True)]
            x.update(zip(row, _apart(want, _room(row, count)), strict=True))
    left = min(x.values(), default=0.0)
    return {node: at - left for node, at in x.items()}


def _room(row: Sequence[int], count: int) -> list[float]:
    return [1.0 if node < count else _BEND for node in row]


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _apart(want: Sequence[float], room: Sequence[float]) -> list[float]:
    """The places nearest to ``want`` (least squares) that keep the order and the room of each."""
    start, at = [], 0.0
    for i, r in enumerate(room):
        at += (room[i - 1] + r) / 2 if i else 0.0
        start.append(at)
    blocks: list[tuple[float, int]] = []  #: mean and size of runs that touch
    for w, s in zip(want, start, strict=True):
        mean, size = w - s, 1
        while blocks and blocks[-1][0] >= mean:
            other, more = blocks.pop()
            mean, size = (mean * size + other * more) / (size + more), size + more
        blocks.append((mean, size))
    means = [mean for mean, size in blocks for _ in range(size)]
    return [m + s for m, s in zip(means, start, strict=True)]
