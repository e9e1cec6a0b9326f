from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from causaltrace.report.layered import layout


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 12))
    node = st.integers(0, count - 1)
    edges = draw(st.lists(st.tuples(node, node).filter(lambda e: e[0] != e[1]), unique=True, max_size=24))
    return count, edges


@given(graphs())
def test_edges_go_down_but_for_those_that_close_a_loop(graph):
    count, edges = graph
    places = layout(count, edges)
    for i, (a, b) in enumerate(edges):
        assert (places.layer[a] < places.layer[b]) == (i not in places.back)
    assert min(places.layer) >= 0


@given(graphs())
def test_nodes_of_a_layer_do_not_overlap(graph):
    places = layout(*graph)
    by_layer = {}
    for x, layer in zip(places.x, places.layer, strict=True):
        by_layer.setdefault(layer, []).append(x)
    for xs in by_layer.values():
        xs.sort()
        assert all(b - a > 0.999 for a, b in pairwise(xs))


@given(graphs())
def test_routes_lead_from_source_to_target_through_every_layer(graph):
    count, edges = graph
    places = layout(count, edges)
    assert len(places.routes) == len(edges)
    for (a, b), route in zip(edges, places.routes, strict=True):
        assert route[0] == (places.x[a], places.layer[a])
        assert route[-1] == (places.x[b], places.layer[b])
        assert all(abs(p[1] - q[1]) == 1 for p, q in pairwise(route))


def test_a_loop_is_cut_where_it_comes_back():
    assert layout(3, [(0, 1), (1, 2), (2, 0)]).back == {2}
    assert layout(3, [(0, 1), (1, 2), (2, 0)], first=[1]).back == {0}


def test_a_chain_is_straight_and_nothing_is_an_empty_layout():
    assert len(set(layout(4, [(0, 1), (1, 2), (2, 3)]).x)) == 1
    assert layout(0, []).x == []
