"""What a watch found, as plain data: every output (terminal, JSON, ...) is made from a Report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from causaltrace.site import Site

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Finding and notice kinds, with the words that reports use for them.
KINDS: dict[str, str] = {
    "CT001": "future label reaches the distribution",
    "CT002": "own label reaches the distribution",
    "CT003": "label reaches the distribution through an update made before it was scored",
    "CT004": "score depends on its label beyond the readout",
    "CT005": "score of something that is not a normalised distribution",
    "CT006": "position scored twice",
    "CT090": "opaque operation",
    "CT091": "value left torch",
    "CT092": "possible flow through opaque operations or values that left torch",
    "CT093": "no score was found",
    "CT094": "the watched program stopped early",
    "CT095": "note on what was watched",
    "CT096": "rule of the user's",
    "CT097": "what a static audit rests on",
    "CT098": "values that the program declassified",
    "CT099": "memory that was read and never seen written",
    "CT100": "normalisation not shown",
    "CT101": "labels that Python got and nothing scored",
    "CT102": "copies of the labels that are older than the watch",
}

#: The condition each finding breaks (parameter-golf issue #1017); CT003 breaks C1 and C3.
CONDITIONS: dict[str, str] = {
    "C1": "strict causal dependence",
    "C2": "full normalized distribution",
    "C3": "score before update",
    "C4": "single left-to-right pass",
}

#: Exit codes of the command line, by status; 2 is a usage or tool error.
EXIT_CODES: dict[str, int] = {"clean": 0, "violation": 1, "unverified": 3}


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a path from a label to a score: the site that moved the label, and a detail
    such as the index of the element that carried it (``"[5, 99]"``)."""

    site: Site
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A label that reached a score it must not reach.

    ``target`` is the scored position and ``source`` the label position, both counted in ``stream``.
    ``orders`` names the orders that fail ("stream", "scored"). ``path`` leads from the label to the score.
    """

    kind: str
    target: int
    source: int
    orders: tuple[str, ...]
    site: Site
    path: tuple[Hop, ...] = ()
    stream: str = "labels"
    source_stream: str = "labels"


@dataclass(slots=True)
class Notice:
    """Something that stands in the way of a proof, or that a reader should know; ``blocking`` ones
    make the report ``unverified``. ``label`` is the latest label position involved, if any."""

    kind: str
    message: str
    remedy: str = ""
    site: Site | None = None
    count: int = 1
    label: int | None = None
    blocking: bool = False


@dataclass(frozen=True, slots=True)
class OpUse:
    """An operation that the watched program ran ``calls`` times. ``handled``: "rule" (a row of its own),
    "derived" (from a schema or a tag), "decomposed", "registered" (by the user) or "conservative" (all of its
    inputs may have reached all of its outputs); ``detail``: from what, or where."""

    op: str
    calls: int
    handled: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """Labels that went from one site to another: indices into ``Provenance.sites``.

    ``flows``: how many supports the target made of the source's. ``labels``: the first and the last of the
    latest labels that went along, if that was looked at. ``lag``: the least and the greatest distance
    (score - label; 1 or more is legal in stream order) of the scores whose path is known to go along here.
    ``bad``: the path of a finding does.
    """

    source: int
    target: int
    flows: int = 1
    labels: tuple[int, int] | None = None
    lag: tuple[int, int] | None = None
    bad: bool = False


@dataclass(slots=True)
class Provenance:
    """The provenance graph, folded: one node a site however often it ran, edges as labels went."""

    sites: list[Site] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Moment:
    """One step of the run: consecutive events of one kind at one site.

    ``kind``: "score" (positions ``first`` to ``last`` were scored), "update" (an optimizer step wrote state)
    or "escape" (a value left torch). ``label``: the latest label involved, -1 if none; ``scored``: how many
    positions had been scored by then; ``findings``: how many findings it brought.
    """

    kind: str
    site: Site
    count: int = 1
    first: int = -1
    last: int = -1
    label: int = -1
    scored: int = 0
    findings: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """What was run, for a reader elsewhere: empty where it is not known. ``command``: the script and its
    arguments; ``revision``: the revision of the code, ``+`` behind it if files were changed since."""

    command: str = ""
    revision: str = ""
    time: str = ""  #: ISO 8601, UTC
    versions: tuple[tuple[str, str], ...] = ()  #: of causaltrace, torch, Python


@dataclass(frozen=True, slots=True)
class Judged:
    """The number that a verdict is about: the mean that the scores charge, in nats a label, and of how many
    scored positions their charge is ``known``. None: of none."""

    nats: float | None = None
    known: int = 0


@dataclass(slots=True)
class Report:
    """The result of one watch.

    Positions and labels in ``positions``, ``violations`` and notices are counted in their stream; those in
    ``lags``, ``reach``, ``timeline`` and ``graph`` through all ``streams``, one after the other.
    """

    status: str
    orders: dict[str, str]
    conditions: dict[str, str]
    violations: list[Finding] = field(default_factory=list)
    positions: Sequence[int] = ()
    opaque: list[Notice] = field(default_factory=list)
    escapes: list[Notice] = field(default_factory=list)
    notes: list[Notice] = field(default_factory=list)
    labels: int = 0
    error: str | None = None
    ops: list[OpUse] = field(default_factory=list)
    streams: list[tuple[str, int]] = field(default_factory=list)  #: names and sizes
    #: of every score in ``positions``: how far before it the latest label is that reached it (0: its own,
    #: below 0: later ones); None: no label did
    lags: Sequence[int | None] = field(default_factory=list)
    #: with ``precision="exact"``, of every score: the labels that reached it, as runs (start, stop, ...)
    reach: Sequence[Sequence[int]] | None = None
    timeline: list[Moment] = field(default_factory=list)
    graph: Provenance = field(default_factory=Provenance)
    run: Run = field(default_factory=Run)
    judged: Judged = field(default_factory=Judged)
    #: of the audit of a graph: its nodes, each with the latest label in it; not kept in files
    listing: str = field(default="", compare=False)

    @property
    def scored(self) -> int:
        """How many distinct positions were scored."""
        return len(set(self.positions))

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]

    def to_text(self, width: int = 100) -> str:
        """The terminal report as plain text."""
        from causaltrace.report.text import to_text

        return to_text(self, width)

    def to_json(self) -> str:
        """The complete report as JSON, schema ``causaltrace-report/2``."""
        from causaltrace.report.json import to_json

        return to_json(self)

    def to_markdown(self) -> str:
        """At most 40 lines of Markdown for a pull-request comment."""
        from causaltrace.report.markdown import to_markdown

        return to_markdown(self)

    def to_html(self, path: str | Path | None = None) -> str:
        """One page, without network or other files, that shows everything; also written to ``path``, if one
        is given."""
        from causaltrace.report.html import to_html

        text = to_html([self])
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_sarif(self, path: str | Path | None = None) -> str:
        """SARIF 2.1.0 for code scanning; also written to ``path``, if one is given."""
        from causaltrace.report.sarif import to_sarif

        text = to_sarif([self])
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def plot(self, path: str | Path, kind: str = "influence") -> None:
        """Draw "influence", "lags", "reach" or "timeline" to ``path``, which ends in .svg or .png."""
        from causaltrace.report.plots import plot

        plot(self, path, kind)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        from causaltrace.report.html import to_notebook

        return to_notebook(self)

    def __rich__(self) -> RenderableType:
        from causaltrace.report.text import renderable

        return renderable(self)
