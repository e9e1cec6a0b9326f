"""The provenance graph for other programs: networkx, GraphML, JSON, DOT and Mermaid.

All of them are made from a ``Provenance``, so a stored report can be exported as well. Names come from file
names, source lines and operations, and may hold anything: each format escapes what means something to it.
"""

from __future__ import annotations

import io
import json
from typing import Any

import networkx

from causaltrace.graph.fold import Node, fold
from causaltrace.graph.render import digraph
from causaltrace.report.model import Provenance

_MERMAID = {"update": ("[(", ")]"), "input": ("([", "])")}


def to_networkx(graph: Provenance) -> networkx.MultiDiGraph:
    """Nodes are numbered; their attributes are those of ``Site`` and ``source``, those of edges of ``Edge``:
    ``labels`` and ``lag`` are pairs or None."""
    out = networkx.MultiDiGraph()
    for i, site in enumerate(graph.sites):
        out.add_node(
            i,
            phase=site.phase,
            op=site.op,
            file=site.file,
            line=site.line,
            function=site.function,
            module=site.module,
            source=site.source,
        )
    for edge in graph.edges:
        out.add_edge(
            edge.source, edge.target, flows=edge.flows, labels=edge.labels, lag=edge.lag, bad=edge.bad
        )
    return out


def to_graphml(graph: Provenance) -> str:
    """GraphML, where pairs are two attributes (``labels_first``, ``labels_last``, ``lag_least``,
    ``lag_greatest``) that are missing where nothing is known. What XML cannot hold is replaced."""
    out = networkx.MultiDiGraph()
    for i, attributes in to_networkx(graph).nodes(data=True):
        out.add_node(i, **{k: _xml(v) if isinstance(v, str) else v for k, v in attributes.items()})
    for edge in graph.edges:
        attributes = {"flows": edge.flows, "bad": edge.bad}
        if edge.labels is not None:
            attributes |= {"labels_first": edge.labels[0], "labels_last": edge.labels[1]}
        if edge.lag is not None:
            attributes |= {"lag_least": edge.lag[0], "lag_greatest": edge.lag[1]}
        out.add_edge(edge.source, edge.target, **attributes)
    buffer = io.BytesIO()
    networkx.write_graphml_xml(out, buffer)
    return buffer.getvalue().decode()


def to_json(graph: Provenance) -> str:
    """Node-link JSON, as ``networkx.node_link_graph(..., edges="edges")`` reads it."""
    data: dict[str, Any] = networkx.node_link_data(to_networkx(graph), edges="edges")
    return json.dumps(data)


def to_dot(graph: Provenance, expand: bool = True) -> str:
    """DOT text, with every site unless ``expand`` is false."""
    text: str = digraph(fold(graph, expand)).source
    return text


def to_mermaid(graph: Provenance, expand: bool = False) -> str:
    """A Mermaid flowchart, folded as ``render`` folds unless ``expand`` is true."""
    drawing = fold(graph, expand)
    lines = ["flowchart TD"]
    for i, node in enumerate(drawing.nodes):
        start, end = _MERMAID.get(node.phase, ("[", "]"))
        lines.append(f'    n{i}{start}"{_mermaid(node)}"{end}')
    bad = []
    for i, link in enumerate(drawing.links):
        lag = "" if link.lag is None else f'|"lag {link.lag[0]} to {link.lag[1]}"|'
        lines.append(f"    n{link.source} -->{lag} n{link.target}")
        if link.bad:
            bad.append(str(i))
    if bad:
        lines.append(f"    linkStyle {','.join(bad)} stroke:#c53030,stroke-width:3px")
    return "\n".join(lines) + "\n"


def _mermaid(node: Node) -> str:
    facts = " · ".join(x for x in (node.phase, node.place, node.module) if x)
    return "<br/>".join(_coded(line) for line in (node.title, facts) if line)


def _coded(text: str) -> str:
    """Mermaid's own escapes for all that is not plainly text."""
    return "".join(c if c.isalnum() or c in " ._:/()=,-+·" else f"#{ord(c)};" for c in text)


def _xml(text: str) -> str:
    return "".join(c if _allowed(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _allowed(code: int) -> bool:
    """May XML 1.0 hold this character (and give it back as it was)?"""
    return (
        code in (0x9, 0xA)
        or 0x20 <= code <= 0xD7FF
        or 0xE000 <= code <= 0xFFFD
        or 0x10000 <= code <= 0x10FFFF
    )
