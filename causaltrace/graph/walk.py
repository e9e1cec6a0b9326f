"""The way from a label to a score, walked back through the history of supports.

Each support remembers the pure function and the parents that made it. To find which element of which
parent brought a label to an element, the same function is run once more on element numbers in place of
supports: what comes out is the number of an element that carries the label and really reaches this one.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.report.model import Hop
from causaltrace.site import Site

#: Elements looked at before the search for a path gives up.
SEARCH_LIMIT = 5_000
#: Numbers in a support whose route is kept when its history is forgotten.
ROUTE_LIMIT = 1 << 14
#: Elements looked at for it: its parents were forgotten before, and have routes.
ROUTE_SEARCH = 64

Index = tuple[int, ...]
Step = tuple[Cells, Index]


def clip(index: Index, dims: tuple[int, ...]) -> Index:
    """An element's index in a compressed support (dims aligned from the right)."""
    index = (
        index[len(index) - len(dims) :]
        if len(index) >= len(dims)
        else (0,) * (len(dims) - len(index)) + index
    )
    return tuple(0 if n == 1 else i for i, n in zip(index, dims, strict=True))


def _numbers(cells: Cells, position: int) -> Tensor | None:
    """Element numbers where ``cells`` hold the label, in the form of lattice data."""
    found = (cells.data[..., :1] >> 1) == position if cells.data.shape[-1] > 1 else cells.data == position
    if not bool(found.any()):
        return None
    number = torch.arange(found.numel(), device=found.device, dtype=torch.int32).view(found.shape)
    return torch.where(found, number * 2 + 1, -1).expand(cells.data.shape).to(cells.data.dtype)


def _carriers(cells: Cells, index: Index, position: int) -> list[tuple[Cells, Index]]:
    """Elements of the parents that bring the label to ``cells[index]``; labels themselves come first."""
    origin = cells.origin
    assert origin is not None
    out: list[tuple[Cells, Index]] = []
    for i, parent in enumerate(origin.parents):
        if parent.data.shape[-1] == 1:  # verbatim labels: the end of the path
            out.insert(0, (parent, clip(index, parent.dims)))
            continue
        numbers = _numbers(parent, position)
        if numbers is None:
            continue
        data = [numbers if j == i else torch.full_like(p.data, -1) for j, p in enumerate(origin.parents)]
        made = origin.fn(*data)
        got = int(made[(*clip(index, tuple(made.shape[:-1])), 0)])
        if got >= 0:
            where = torch.unravel_index(torch.tensor(got >> 1), parent.dims) if parent.dims else ()
            out.append((parent, tuple(int(w) for w in where)))
    return out


class Route(NamedTuple):
    """The way that ``label`` came, from where it was read."""

    label: int
    hops: tuple[Hop, ...]


def keep_route(x: Cells) -> None:
    """The history of ``x`` is about to be forgotten: keep how its latest label came, as far as that is known
    of its parents and is on the host."""
    data = x.data
    if data.device.type != "cpu" or not 0 < data.numel() <= ROUTE_LIMIT:
        return
    at = int(data[..., 0].argmax())
    label = int(data[..., 0].flatten()[at]) >> 1
    if label >= 0:
        index = torch.unravel_index(torch.tensor(at), x.dims) if x.dims else ()
        hops, whole = _back(x, tuple(int(i) for i in index), label, ROUTE_SEARCH)
        x.route = Route(label, hops) if whole else None


class Walk(NamedTuple):
    """Sites from the reading of a label to a score. ``whole``: it begins where the label was read, and not
    where the history was too long to keep."""

    hops: tuple[Hop, ...]
    whole: bool


def walk(cells: Cells, index: Index, position: int, score: Site, limit: int = SEARCH_LIMIT) -> Walk:
    """Shortest chain of sites from the reading of label ``position`` to the element ``index`` of ``cells``,
    then the score. At most ``limit`` elements are looked at."""
    hops, whole = _back(cells, clip(index, cells.dims), position, limit)
    return Walk((*hops, Hop(score, _element(index))), whole)


def _back(cells: Cells, index: Index, position: int, limit: int) -> Walk:
    before: dict[tuple[int, Index], Step | None] = {(id(cells), index): None}
    queue = deque([(cells, index)])
    end: Step = (cells, index)
    known: list[Hop] = []
    whole = False
    while queue and len(before) < limit and not whole:
        here, at = end = queue.popleft()
        if here.data.shape[-1] == 1:
            whole = True
        elif here.origin is not None:
            for parent, where in _carriers(here, at, position):
                key = (id(parent), where)
                if key not in before:
                    before[key] = (here, at)
                    queue.append((parent, where))
        elif isinstance(here.route, Route) and here.route.label == position:
            known, whole = list(here.route.hops), True
    step: Step | None = end
    while step is not None:
        here, at = step
        if here.origin is not None and here.origin.site is not None:
            hop = _hop(here.origin.site, here.origin.step, at)
            if not known or known[-1].site != hop.site:
                known.append(hop)
        step = before[(id(here), at)]
    return Walk(tuple(known), whole)


def _hop(site: Site, step: int, at: Index) -> Hop:
    """The element that carried the label, and in an optimizer step which one it was."""
    return Hop(site, _element(at) + (f" step {step}" if site.phase == "update" else ""))


def _element(index: Index) -> str:
    return f"[{', '.join(map(str, index))}]"
