"""The report as one HTML page: no network, no other files, quick with many findings.

The page works without scripts but for the map and the list of all findings. Its policy allows no requests,
and no style and script but those in the templates; all text of the report is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from causaltrace.report import data, plots, summary
from causaltrace.report.drawing import Drawing, to_svg
from causaltrace.report.flow import HEIGHT, WIDTH, Flow, flow
from causaltrace.report.influence import AHEAD, FINDINGS, LATEST, Influence, influence
from causaltrace.report.model import KINDS, Report
from causaltrace.report.timeline import summary as timeline_summary

_TEMPLATES = Path(__file__).parent / "templates"
_STYLES = ("style.css", "parts.css")
_SCRIPTS = ("view.js", "map.js", "findings.js", "page.js")
_WIDE, _SIDE, _NARROW = 1080, 480, 340
_GROUPS, _OPEN, _STEPS, _MOMENTS = 40, 1, 24, 200

#: What no verdict covers, in the words of docs/limitations.md.
LIMITS = (
    "A branch that was not taken was not judged; run the eval on the tokens, and with the flags, of the "
    "published number.",
    "It says that a label can change a score, not by how much.",
    "Weights that were trained on the labels before the watch opened are constants to it.",
    "Compiled functions run eagerly inside a watch; a leak that only the compiled form has is not seen.",
    "Processes that the eval starts, threads that ran before the watch, CUDA graph replays and kernels "
    "outside torch's dispatcher are not followed.",
    "A value that leaves torch (NumPy, Python, files) is noticed, with its place, but not followed.",
    "Whether a distribution is normalized (C2) is checked on the values of this run, by watches only.",
)


@dataclass(frozen=True, slots=True)
class Watch:
    """One report and what its part of the page is made of."""

    number: int
    report: Report
    groups: Sequence[summary.Group]
    influence: Influence
    flow: Flow

    @property
    def id(self) -> str:
        """Stands before every id in this part."""
        return f"w{self.number}"

    @property
    def json(self) -> Markup:
        return _embedded(data.page_data(self.report, self.influence))

    @property
    def optional(self) -> list[tuple[str, str, bool]]:
        """Sections that may be missing: id, words, whether there is something to show."""
        report = self.report
        others = any(not n.blocking for n in summary.notices(report))
        return [
            ("map", "Map", bool(self.influence.bands)),
            ("timeline", "Timeline", bool(report.timeline)),
            ("graph", "Graph", bool(self.flow.nodes)),
            ("notes", "Notes", others),
            ("ops", "Operations", bool(report.ops)),
        ]

    @property
    def missing(self) -> list[str]:
        """What a report of this version has and this one does not, though something was scored."""
        report = self.report
        there = {
            "distances": report.lags,
            "timeline": report.timeline,
            "graph": self.flow.nodes,
            "operations": report.ops,
        }
        return [name for name, value in there.items() if not value and len(report.positions)]

    @property
    def abridged(self) -> list[str]:
        """What this page leaves out; the JSON has all of it."""
        return list(_abridged(self))


def to_html(reports: Sequence[Report]) -> str:
    """One page for the reports of a run; several get a switch.

    Raises:
        ValueError: there is no report.
    """
    if not reports:
        raise ValueError("no report, no page")
    style, script = _joined(_STYLES), f'"use strict";\n(() => {{\n{_joined(_SCRIPTS)}}})();\n'
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    return _render(
        "page.html",
        watches=[_watch(i, r) for i, r in enumerate(reports, 1)],
        style=Markup(style),
        script=Markup(script),
        policy=f"{policy}; base-uri 'none'; form-action 'none'",
    )


def to_notebook(report: Report) -> str:
    """A short form without scripts, for a notebook's output cell."""
    groups = summary.group(report.violations)
    return _render("notebook.html", report=report, groups=groups[:3], more=groups[3:], all_groups=groups)


def _watch(number: int, report: Report) -> Watch:
    groups = summary.group(report.violations)
    return Watch(number, report, groups, influence(report, data.BANDS), flow(report.graph))


def _abridged(watch: Watch) -> Iterator[str]:
    report, drawn = watch.report, watch.influence
    findings = len(report.violations)
    if findings > data.FINDINGS:
        yield f"{findings - data.FINDINGS:,} of {findings:,} findings are not listed"
    if (
        findings > data.PATHS
        and len({f.path for f in report.violations[: data.FINDINGS]} - {()}) > data.PATHS
    ):
        yield f"only the first {data.PATHS:,} different paths are shown"
    if drawn.unit > 1:
        yield f"the map puts {drawn.unit:,} positions together"
    if watch.flow.total > len(watch.flow.nodes):
        yield f"the graph shows {len(watch.flow.nodes):,} of {watch.flow.total:,} source lines"
    if len(report.timeline) > _MOMENTS:
        yield f"the table of steps shows the first {_MOMENTS:,} of {len(report.timeline):,}"


# -- templates ----------------------------------------------------------------------------------------


@cache
def _environment() -> Environment:
    env = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    env.globals |= {
        "summary": summary,
        "KINDS": KINDS,
        "LIMITS": LIMITS,
        "GROUPS": _GROUPS,
        "OPEN": _OPEN,
        "STEPS": _STEPS,
        "MOMENTS": _MOMENTS,
        "NODE": (WIDTH, HEIGHT),
        "AHEAD": AHEAD,
        "LATEST": LATEST,
        "FINDINGS": FINDINGS,
        "wide": lambda make, report: _figure(make, report, _WIDE),
        "side": lambda make, report: _figure(make, report, _SIDE),
        "plots": plots,
        "timeline_summary": timeline_summary,
    }
    env.filters["number"] = lambda n: f"{n:,}"
    return env


def _render(name: str, **values: Any) -> str:
    """A template as text that any file takes: names of files may hold what is no character."""
    text = _environment().get_template(name).render(values)
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _figure(make: Any, report: Report, width: int) -> Markup:
    """A drawing for desks and one for phones; the style shows one of them."""
    drawings: list[tuple[str, Drawing]] = [("wide", make(report, width)), ("narrow", make(report, _NARROW))]
    return Markup("").join(
        Markup('<div class="drawing {}">{}</div>').format(name, Markup(to_svg(d, alone=False)))
        for name, d in drawings
    )


@cache
def _joined(names: Sequence[str]) -> str:
    return "\n".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in names)


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _embedded(value: Any) -> Markup:
    """JSON that no string in it can end: nothing that HTML or JavaScript reads as markup or as a line end."""
    text = json.dumps(value, separators=(",", ":"))  # ASCII only, so U+2028 is escaped
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
