"""Every format is read back by another program and says the same, whatever the names are."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess

import networkx
import pytest

from causaltrace.graph import export
from causaltrace.graph.fold import fold
from causaltrace.report.model import Edge, Provenance
from causaltrace.site import Site
from tests.test_examples import watched

HOSTILE = [
    'quote " and \\" backslash \\',
    "new\nline\r\ttab",
    "<script>alert(1)</script>&amp; &#10; & <b",
    "control \x00\x01\x1b[31m\x7f",
    "\\N \\G \\l <<TABLE>> ]] --> end; subgraph",
    "한글 ← é \U0001f600 \ud800",
    "#quot; |x| {y} `z` $w",
    "",
]
dot = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz's program is not installed")


def hostile() -> Provenance:
    sites = [Site("input", "labels", "<labels>", 0)]
    sites += [Site("forward", text, text, i + 1, text, text) for i, text in enumerate(HOSTILE)]
    sites.append(Site("score", HOSTILE[0], HOSTILE[2], 9))
    edges = [
        Edge(i, i + 1, i + 1, (i, i + 3), (i - 4, i) if i % 2 else None, i == 3)
        for i in range(len(sites) - 1)
    ]
    return Provenance(sites, edges)


GRAPHS = {"hostile": hostile, "example": lambda: watched("slot_context_batch4")[0].graph, "empty": Provenance}
graphs = pytest.mark.parametrize("graph", [make() for make in GRAPHS.values()], ids=list(GRAPHS))


@graphs
def test_networkx_has_all_of_it(graph: Provenance) -> None:
    out = export.to_networkx(graph)
    for i, site in enumerate(graph.sites):
        node = out.nodes[i]
        assert Site(*(node[k] for k in ("phase", "op", "file", "line", "function", "module"))) == site
        assert node["source"] == site.source
    found = [Edge(s, t, d["flows"], d["labels"], d["lag"], d["bad"]) for s, t, d in out.edges(data=True)]
    assert sorted(found, key=str) == sorted(graph.edges, key=str)


@graphs
def test_graphml_comes_back_through_networkx(graph: Provenance) -> None:
    text = export.to_graphml(graph)
    out = networkx.read_graphml(io.BytesIO(text.encode()), node_type=int, force_multigraph=True)
    assert out.is_directed() and out.number_of_edges() == len(graph.edges)
    for i, site in enumerate(graph.sites):
        assert out.nodes[i]["op"] == re.sub("[^\t\n -퟿-�\U00010000-\U0010ffff]", "�", site.op)
    by_ends = {(s, t): d for s, t, d in out.edges(data=True)}
    for edge in graph.edges:
        data = by_ends[edge.source, edge.target]
        assert (data["flows"], data["bad"]) == (edge.flows, edge.bad)
        assert (data.get("lag_least"), data.get("lag_greatest")) == (edge.lag or (None, None))


@graphs
def test_json_comes_back_through_networkx(graph: Provenance) -> None:
    out = networkx.node_link_graph(json.loads(export.to_json(graph)), edges="edges")
    assert out.is_multigraph() and out.is_directed()
    assert [out.nodes[i]["file"] for i in range(len(graph.sites))] == [s.file for s in graph.sites]
    assert out.number_of_edges() == len(graph.edges)


@dot
@graphs
@pytest.mark.parametrize("expand", [True, False])
def test_dot_is_read_by_graphviz(graph: Provenance, expand: bool) -> None:
    drawing = fold(graph, expand)
    text = export.to_dot(graph, expand)
    run = subprocess.run(["dot", "-Tjson"], input=text, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0 and not run.stderr
    data = json.loads(run.stdout)
    nodes = [o for o in data.get("objects", ()) if re.fullmatch(r"n\d+", o["name"])]
    assert len(nodes) == len(drawing.nodes) and len(data.get("edges", ())) == len(drawing.links)
    for node in nodes:
        shown = "".join(op["text"] for op in node["_ldraw_"] if op["op"] == "T")
        expected = drawing.nodes[int(node["name"][1:])]
        if expected.phase != "input":
            start = "".join(c if c.isprintable() else "�" for c in expected.title.replace("\n", ""))
            assert shown.startswith(start[:40])


@graphs
def test_mermaid_says_the_same(graph: Provenance) -> None:
    drawing = fold(graph)
    lines = export.to_mermaid(graph).splitlines()
    assert lines[0] == "flowchart TD"
    nodes = [m for line in lines if (m := re.fullmatch(r'    n(\d+)(?:\[\(|\(\[|\[)"(.*)"[\])]+', line))]
    assert len(nodes) == len(drawing.nodes)
    for match in nodes:
        assert not set(match[2].replace("<br/>", "")) & set('"<>[]{}|&`\n\x00')
        decoded = html.unescape(re.sub(r"#(\d+);", lambda m: chr(int(m[1])), match[2].split("<br/>")[0]))
        assert decoded == html.unescape(drawing.nodes[int(match[1])].title)
    links = [m for line in lines if (m := re.fullmatch(r'    n(\d+) -->(?:\|".*"\|)? n(\d+)', line))]
    assert [(int(m[1]), int(m[2])) for m in links] == [(x.source, x.target) for x in drawing.links]
