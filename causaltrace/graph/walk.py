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

from causaltrace.lattice.cells import Cells, Origin
from causaltrace.report.model import Hop
from causaltrace.site import Site

#: Elements looked at before the search for a path gives up.
SEARCH_LIMIT = 5_000

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


class Walk(NamedTuple):
    """Sites from the reading of a label to a score. ``whole``: it begins where the label was read, and not
    where the history was too long to keep."""

    hops: tuple[Hop, ...]
    whole: bool


def walk(cells: Cells, index: Index, position: int, score: Site, limit: int = SEARCH_LIMIT) -> Walk:
    """Shortest chain of sites from the reading of label ``position`` to the element ``index`` of ``cells``,
    then the score. At most ``limit`` elements are looked at."""
    start = (cells, clip(index, cells.dims))
    before: dict[tuple[int, Index], Step | None] = {(id(cells), start[1]): None}
    queue = deque([start])
    end = start
    while queue and len(before) < limit:
        here, at = end = queue.popleft()
        if here.data.shape[-1] == 1:
            break
        if here.origin is None:
            continue
        for parent, where in _carriers(here, at, position):
            key = (id(parent), where)
            if key not in before:
                before[key] = (here, at)
                queue.append((parent, where))
    hops: list[Hop] = []
    step: Step | None = end
    while step is not None:
        here, at = step
        if here.origin is not None and here.origin.site is not None:
            hop = Hop(here.origin.site, _detail(here.origin, at))
            if not hops or hops[-1].site != hop.site:
                hops.append(hop)
        step = before[(id(here), at)]
    hops.append(Hop(score, f"[{', '.join(map(str, index))}]"))
    return Walk(tuple(hops), end[0].data.shape[-1] == 1)


def _detail(origin: Origin, at: Index) -> str:
    """The element that carried the label, and which optimizer step it was."""
    element = f"[{', '.join(map(str, at))}]"
    return f"{element} step {origin.step}" if origin.site and origin.site.phase == "update" else element
