"""What the verdicts on examples are not yet, and why. A name that is right fails its tests until it is taken
out here. Names are those of modules in ``examples`` and of cases in ``tests.flips``."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

#: Some of the positions that are reported are moved by no flip.
LARGER = {
    "blend_target": "the label picks from a row of zeros where the cache does not know the context",
}


def marked(names: Iterable[str], *tables: dict[str, str]) -> list[object]:
    """The names as parameters of a test that it must fail for where a table has them."""
    marks = {name: pytest.mark.xfail(reason=why, strict=True) for t in tables for name, why in t.items()}
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]
