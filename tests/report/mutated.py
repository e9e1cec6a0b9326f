"""Reports as JSON, damaged: for the tests that nothing but an error comes of them."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

from causaltrace.report.json import from_dict, to_dict
from causaltrace.report.model import Edge, Judged, Moment, OpUse, Provenance, Report, Run
from tests.report import samples


def full() -> Report:
    """A violation with something in every field."""
    report = samples.violation(40)
    report.opaque = samples.unverified().opaque
    report.escapes = samples.unverified().escapes
    report.ops = [OpUse("aten.mm.default", 3, "rule"), OpUse("x::y", 1, "conservative")]
    report.streams = [("labels", 256)]
    report.lags = [None, -3, 1]
    report.reach = [[0, 3, 5, 6], []]
    report.timeline = [Moment("score", samples.SCORE, 2, 1, 2, 0, 2, 1)]
    report.graph = Provenance(
        [hop.site for hop in samples.PATH], [Edge(0, 1, 5, (0, 3), (-1, 2), True), Edge(1, 2)]
    )
    report.judged = Judged(3.25, 250)
    report.run = Run("eval.py --x 1", "0123456789ab+", "2026-01-02T03:04:05Z", (("torch", "2.13.0"),))
    return report


#: Text that means something to a terminal, rich, Markdown, HTML, XML or GitHub.
TEXTS = [
    "\x1b[2J\x9b",
    "[/bold]",
    "[bold]:smile:",
    "``` | @all <b> %0A ::error::x",
    "a\nb\r\u2028c",
    "\x00\ufffe",
    "]]><x/>&amp;",
    "-" * 5_000,
]


def everywhere(text: str) -> Report:
    """`full` with ``text`` in the place of every text but the status."""

    def replaced(data: Any) -> Any:
        if isinstance(data, list):
            return [replaced(d) for d in data]
        if isinstance(data, dict):
            return {k: replaced(v) for k, v in data.items()}
        return text if isinstance(data, str) else data

    data = to_dict(full())
    kept = {key: data[key] for key in ("schema", "status")}
    names = {"orders": {text: text}, "conditions": {text: text, "C1": text}}
    return from_dict(
        {**replaced(data), **kept, **names, "run": {**replaced(data["run"]), "versions": {text: text}}}
    )


numbers = st.sampled_from([0, -1, 1, 7, 2**52, 2**60])
texts = st.sampled_from(["", "../../etc/passwd", "clean", "CT006", *TEXTS])
anything = st.sampled_from([None, True, 1.5, [], {}, [[]], {"schema": 1}]) | numbers | texts


def like(data: Any) -> st.SearchStrategy[Any]:
    """Other data of the same type, so that some documents are still read."""
    if isinstance(data, bool):
        return st.booleans()
    if isinstance(data, str):
        return texts
    if isinstance(data, list | dict):
        return st.just(type(data)())
    return numbers if isinstance(data, int) else anything


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """A report's JSON with one to four places changed, removed or doubled."""
    data = json.loads(json.dumps(to_dict(full())))
    for _ in range(draw(st.integers(1, 4))):
        at: Any = data
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = at[key]
            if isinstance(inner, dict | list) and inner and draw(st.integers(0, 4)):
                at = inner
                continue
            what = draw(st.integers(0, 5))
            if what == 0 and isinstance(at, list):
                del at[key]
            elif what == 1 and isinstance(at, list):
                at.append(copy.deepcopy(inner))
            else:
                at[key] = copy.deepcopy(draw(like(inner) if what < 5 else anything))
            break
    return data
