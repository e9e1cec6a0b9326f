"""The provenance graph as a picture, drawn by graphviz."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import graphviz

from causaltrace.graph.fold import Drawing, Link, Node, fold
from causaltrace.report.model import Provenance

FORMATS = (".svg", ".png", ".pdf", ".dot")
#: Fill and line colours by phase, readable on white and told apart by colour-blind readers.
COLOURS: dict[str, tuple[str, str]] = {
    "input": ("#e8e8e8", "#555555"),
    "forward": ("#dcebfa", "#2b6cb0"),
    "backward": ("#efe3f8", "#7b3fa0"),
    "update": ("#fdebc8", "#b7791f"),
    "readout": ("#dcebfa", "#2b6cb0"),
    "score": ("#d9f2e3", "#2f855a"),
    "host": ("#f3f3f3", "#777777"),
}
SHAPES = {"input": "oval", "update": "cylinder", "score": "box"}
BAD = "#c53030"
_WIDTH = 44


class DrawingError(RuntimeError):
    """The picture could not be drawn; the message says what to do."""


def render(graph: Provenance, path: str | Path, expand: bool = False) -> Path:
    """Draw ``graph`` to ``path``: SVG, PNG, PDF, or DOT text, by its suffix.

    Sites at one source line are one node, and so are layers of one kind; ``expand`` draws every site.

    Raises:
        ValueError: another suffix.
        DrawingError: graphviz is not installed, or fails. The DOT text lies beside ``path`` then.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"cannot draw {path.name!r}: the name must end in {', '.join(FORMATS)}")
    drawing = digraph(fold(graph, expand))
    if suffix == ".dot":
        path.write_text(drawing.source, encoding="utf-8")
        return path
    try:
        data = drawing.pipe(format=suffix[1:])
    except (graphviz.ExecutableNotFound, graphviz.CalledProcessError) as error:
        text = path.with_suffix(".dot")
        text.write_text(drawing.source, encoding="utf-8")
        missing = isinstance(error, graphviz.ExecutableNotFound)
        why = (
            "graphviz's program dot is not installed (apt install graphviz, brew install graphviz, or "
            "https://graphviz.org/download)"
            if missing
            else f"dot failed: {error}"
        )
        raise DrawingError(f"cannot draw {path}: {why}. The graph is in {text}") from error
    path.write_bytes(data)
    return path


def digraph(drawing: Drawing) -> graphviz.Digraph:
    """The drawing for graphviz: modules are clusters, phases colours, written state cylinders."""
    out = graphviz.Digraph("causaltrace")
    out.attr(rankdir="TB", fontname="Helvetica", nodesep="0.3", ranksep="0.45", labelloc="b", fontsize="10")
    out.attr(fontcolor="#555555", label=_text(_caption(drawing)))
    out.attr(
        "node", fontname="Helvetica", fontsize="11", style="filled,rounded", shape="box", margin="0.14,0.07"
    )
    out.attr("edge", fontname="Helvetica", fontsize="10", color="#888888", arrowsize="0.7")
    red = {i for link in drawing.links if link.bad for i in (link.source, link.target)}
    clusters: dict[str, list[int]] = defaultdict(list)
    for i, node in enumerate(drawing.nodes):
        clusters[node.module].append(i)
    for module, members in clusters.items():
        if not module:
            for i in members:
                _add(out, i, drawing.nodes[i], i in red)
            continue
        with out.subgraph(name=f"cluster_{members[0]}") as inner:
            inner.attr(label=_text(module), labelloc="t", labeljust="l", color="#bbbbbb", style="rounded")
            for i in members:
                _add(inner, i, drawing.nodes[i], i in red)
    for link in drawing.links:
        out.edge(f"n{link.source}", f"n{link.target}", **_link(link))
    return out


def _caption(drawing: Drawing) -> str:
    phases = {node.phase for node in drawing.nodes}
    parts = ["labels flow from the top to the scores"]
    if "update" in phases:
        parts.append("cylinders: state that optimizer steps write")
    if any(link.bad for link in drawing.links):
        parts.append("red: the path of a finding")
    if any(link.lag for link in drawing.links):
        parts.append("lag: score - label, 1 or more is legal in stream order")
    return "; ".join(parts)


def _add(graph: graphviz.Digraph, i: int, node: Node, bad: bool) -> None:
    fill, line = COLOURS.get(node.phase, COLOURS["host"])
    facts = " · ".join(x for x in (node.phase, node.place) if x)
    label = "\n".join(x for x in (_cut(node.title), facts, _cut(node.operations)) if x)
    graph.node(
        f"n{i}",
        label=_text("labels" if node.phase == "input" else label),
        tooltip=_text(f"{node.title}\n{facts}\n{node.module}"),
        shape=SHAPES.get(node.phase, "box"),
        fillcolor=fill,
        color=BAD if bad else line,
        penwidth="2.2" if bad else "1",
    )


def _link(link: Link) -> dict[str, str]:
    out = {"penwidth": f"{1 + 0.25 * math.log10(max(link.flows, 1)):.2f}"}
    facts = [f"{link.flows} flows"]
    if link.labels is not None:
        facts.append(f"labels x_{link.labels[0]} to x_{link.labels[1]}")
    if link.lag is not None:
        least, greatest = link.lag
        span = f"lag {least}" if least == greatest else f"lag {least} to {greatest}"
        facts.append(span)
        if link.bad or greatest != least or least < 1:
            out["label"] = _text(f" {span}")
    out["tooltip"] = _text("\n".join(facts))
    if link.bad:
        out |= {"color": BAD, "fontcolor": BAD, "penwidth": "2.4"}
    return out


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _text(text: str) -> str:
    """Plain text for graphviz, whatever is in it: no escapes, no HTML, no control characters."""
    plain = "".join(c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    escaped: str = graphviz.escape(plain.replace("&", "&amp;"))
    return escaped.replace("\n", "\\n")
