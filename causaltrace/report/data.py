"""What the page's scripts read: findings with their paths, and the map, as compact JSON."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from causaltrace.report import summary
from causaltrace.report.influence import Influence, offsets
from causaltrace.report.model import Hop, Report

#: Beyond these a page would be slow to open. What is left out is said, and is in the JSON.
FINDINGS, PATHS, BANDS = 50_000, 20_000, 70_000

T = TypeVar("T", bound=Hashable)


class _Table(Generic[T]):
    """Values in the order of first use; each is written once and named by its number."""

    def __init__(self) -> None:
        self.index: dict[T, int] = {}

    def __call__(self, value: T) -> int:
        return self.index.setdefault(value, len(self.index))

    @property
    def rows(self) -> list[T]:
        return list(self.index)


class _Paths:
    """Paths folded by source line. Those through the same lines differ only in their details."""

    def __init__(self) -> None:
        self.steps: _Table[tuple[Any, ...]] = _Table()
        self.shapes: _Table[tuple[int, ...]] = _Table()
        self.rows: list[list[Any]] = []
        self._known: dict[tuple[Hop, ...], int] = {}
        self._numbers: dict[tuple[Any, ...], int] = {}

    def __call__(self, path: tuple[Hop, ...]) -> int:
        """The number of the path, -1 for none and -2 for one that was left out."""
        if not path:
            return -1
        if path not in self._known:
            if len(self.rows) == PATHS:
                return -2
            self._known[path] = len(self.rows)
            folded = summary.fold(path)
            shape = self.shapes(tuple(map(self._number, folded)))
            self.rows.append([shape, *(step.detail for step in folded)])
        return self._known[path]

    def _number(self, step: summary.Step) -> int:
        key = (step.site, step.ops, step.modules)
        if key not in self._numbers:
            self._numbers[key] = self.steps(_step(step))
        return self._numbers[key]


def _step(step: summary.Step) -> tuple[Any, ...]:
    site = step.site
    where = summary.short_file(site.file), site.line, site.function, site.source
    return (*where, site.phase, summary.arrows(step.ops), summary.arrows(step.modules, 3))


def page_data(report: Report, influence: Influence) -> dict[str, Any]:
    return {
        **_findings(report),
        "streams": [[summary.stream_prefix(name), start] for name, start in offsets(report).items()],
        "map": {
            "size": influence.size,
            "unit": influence.unit,
            "bands": [list(band) for band in influence.bands],
        },
    }


def _findings(report: Report) -> Mapping[str, Any]:
    """Rows: kind, score, label, orders, place, path, streams; all but score and label by number."""
    kinds: _Table[str] = _Table()
    orders: _Table[str] = _Table()
    places: _Table[str] = _Table()
    streams: _Table[tuple[str, str]] = _Table()
    paths = _Paths()
    place: dict[Any, int] = {}
    rows: list[Sequence[int]] = []
    for f in report.violations[:FINDINGS]:
        if f.site not in place:
            place[f.site] = places(summary.place(f.site))
        route = paths(f.path)
        order = orders(summary.failing(f.orders).removeprefix("fails in "))
        names = streams((summary.stream_prefix(f.stream), summary.stream_prefix(f.source_stream)))
        rows.append((kinds(f.kind), int(f.target), int(f.source), order, place[f.site], route, names))
    return {
        "findings": rows,
        "kinds": kinds.rows,
        "orders": orders.rows,
        "places": places.rows,
        "prefixes": streams.rows,
        "steps": paths.steps.rows,
        "shapes": paths.shapes.rows,
        "paths": paths.rows,
    }
