from __future__ import annotations

from causaltrace.report import flow
from causaltrace.report.model import Edge, Provenance
from causaltrace.site import Site
from tests.report import samples


def line(number, phase="forward", op="aten.add.default", module=""):
    return Site(phase, op, "eval.py", number, "f", module)


def test_sites_of_a_line_are_one_node_and_their_edges_one_link():
    sites = [
        line(1),
        line(2, op="aten.mm.default", module="a"),
        line(2, op="aten.add.default", module="b"),
        line(3),
    ]
    edges = [
        Edge(0, 1, 2, (0, 3), (1, 4)),
        Edge(0, 2, 3, (2, 9), None),
        Edge(1, 2, 7),
        Edge(2, 3, 1, None, (-2, 1), bad=True),
    ]
    drawn = flow.flow(Provenance(sites, edges))
    assert [(n.site.line, n.ops, n.modules, n.bad) for n in drawn.nodes] == [
        (1, ["add"], [], False),
        (2, ["mm", "add"], ["a", "b"], True),
        (3, ["add"], [], True),
    ]
    first, second = drawn.links
    assert (first.flows, first.labels, first.lag, first.bad) == (5, (0, 9), (1, 4), False)
    assert second.words == "1 flow, -2 to 1 positions before the score, on a finding's path"
    assert first.words == "5 flows, latest labels 0 to 9, 1 to 4 positions before the score"


def test_phases_of_a_line_are_apart_and_updates_are_state():
    drawn = flow.flow(Provenance([line(1), line(1, "update"), line(1, "backward")], []))
    assert [(n.site.phase, n.state) for n in drawn.nodes] == [
        ("forward", False),
        ("update", True),
        ("backward", False),
    ]


def test_of_too_many_lines_the_findings_and_the_busiest_stay(monkeypatch):
    monkeypatch.setattr(flow, "LIMIT", 4)
    sites = [line(i) for i in range(10)]
    edges = [Edge(i, i + 1, flows=i + 1) for i in range(9)] + [Edge(0, 2, bad=True)]
    drawn = flow.flow(Provenance(sites, edges))
    assert [n.site.line for n in drawn.nodes] == [0, 2, 7, 8]
    assert drawn.total == 10
    assert all(link.source in drawn.nodes and link.target in drawn.nodes for link in drawn.links)


def test_everything_lies_on_the_paper():
    drawn = flow.flow(samples.seen().graph)
    assert all(0 <= n.x <= drawn.width - flow.WIDTH for n in drawn.nodes)
    assert all(0 <= n.y <= drawn.height - flow.HEIGHT for n in drawn.nodes)
    assert [(link.source.site.line, link.target.site.line) for link in drawn.links if link.back] == [(8, 6)]
    assert all(link.path.startswith("M") for link in drawn.links)


def test_no_graph_is_empty():
    assert flow.flow(Provenance()).nodes == []


def test_long_names_are_cut_where_they_say_least():
    long = Site("forward", "aten.add.default", f"/a/{'b' * 60}/eval.py", 7)
    (node,) = flow.flow(Provenance([long])).nodes
    assert node.name.startswith("...") and node.name.endswith("/eval.py:7") and len(node.name) == 32
    assert f"/a/{'b' * 60}/eval.py:7" in node.words
