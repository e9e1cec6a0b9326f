"""How every operation of a watch was handled."""

from __future__ import annotations

from collections.abc import Iterable

from causaltrace import rules
from causaltrace.report.model import OpUse
from causaltrace.schema import Op

#: What a reader should look at first comes first.
HANDLED = ("conservative", "registered", "decomposed", "derived", "rule")


def uses(ops: Iterable[Op]) -> list[OpUse]:
    """One row an operation, by how it was handled and then by how often it ran."""
    rows = [OpUse(op.full, op.calls, *_handled(op)) for op in ops]
    return sorted(rows, key=lambda use: (HANDLED.index(use.handled), -use.calls, use.op))


def _handled(op: Op) -> tuple[str, str]:
    if op.composite:
        return "decomposed", ""
    if op.rule.source:
        return "registered", op.rule.source
    if op.derived:
        return "derived", op.derived
    return ("conservative" if op.rule.kind == rules.OPAQUE else "rule"), ""
