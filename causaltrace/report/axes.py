"""Scales, ticks and frames that the plots share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from causaltrace.report.drawing import Line, Rect, Shape, Text

LEFT, RIGHT, TOP, BOTTOM = 58, 24, 34, 40
_TEXT = 6.6  #: about the width of a letter

Scale = Callable[[float], float]


def width_of(words: str) -> float:
    """About how wide a text is."""
    return len(words) * _TEXT


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """``low`` to ``high`` spread over ``start`` to ``end``."""
    step = (end - start) / (high - low or 1)
    return lambda value: start + (value - low) * step


def signed_log(value: float) -> float:
    """Distances of both signs on a scale that shows 1 and 10,000: 0 stays 0."""
    return math.copysign(math.log10(1 + abs(value)), value)


def ticks(high: float, count: int = 5) -> list[int]:
    """Round numbers from 0 to at most ``high``, about ``count`` of them."""
    rough = max(high / max(count, 1), 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(int(m * power) for m in (1, 2, 5, 10) if m * power >= rough)
    return list(range(0, math.floor(high) + 1, step))


def distances(low: int, high: int) -> Iterator[int]:
    """Ticks of a `signed_log` axis: 0 and powers of ten of both signs."""
    yield 0
    for power in range(8):
        yield from (s * 10**power for s in (1, -1) if low <= s * 10**power <= high)


def across(values: Iterable[int], x: Scale, top: float, bottom: float, caption: str) -> Iterator[Shape]:
    """Ticks and a caption below a plot."""
    middle = x(0)
    for value in values:
        yield Line(((x(value), top), (x(value), bottom)), "grid")
        yield Text(x(value), bottom + 15, f"{value:,}", anchor="middle")
        middle = (x(0) + x(value)) / 2
    yield Text(middle, bottom + 32, caption, "ink", "middle")


def up(values: Iterable[tuple[float, str]], left: float, right: float, caption: str) -> Iterator[Shape]:
    """Ticks at heights ``values`` with their words, as far as there is room, and a caption over the axis."""
    taken: list[float] = []
    for y, words in values:
        if all(abs(y - other) >= 12 for other in taken):
            taken.append(y)
            yield Line(((left, y), (right, y)), "grid")
            yield Text(left - 6, y + 4, words, anchor="end")
    yield Text(6, 14, caption, "ink")


def legend(entries: Sequence[tuple[str, str]], right: float, y: float = 4) -> Iterator[Shape]:
    """Coloured squares with words, from right to left."""
    x = right
    for role, words in reversed(entries):
        x -= width_of(words)
        yield Text(x, y + 10, words)
        x -= 15
        yield Rect(x, y + 1, 10, 10, role)
        x -= 12
