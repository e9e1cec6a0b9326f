"""Pictures: what is folded, what is marked, and what happens where graphviz is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import causaltrace
from causaltrace.graph.fold import fold
from causaltrace.graph.render import DrawingError, digraph, render
from causaltrace.report.model import Edge, Provenance
from causaltrace.site import Site
from examples import lora_documents
from examples.common import ModelConfig, build_model
from tests.test_examples import watched

dot = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz's program is not installed")


def violating() -> Provenance:
    return watched("slot_context_batch4")[0].graph


def test_twelve_layers_that_are_adapted_are_one_page() -> None:
    model = build_model(ModelConfig(vocab=16, context=16, layers=12, heads=2, dim=8), seed=1)
    tokens = torch.randint(16, (33,), generator=torch.Generator().manual_seed(0))
    with causaltrace.watch(tokens) as trace:
        lora_documents.evaluate(model, tokens, lora_documents.Config(batch=2, document=16, chunk=4))
    folded, whole = fold(trace.report.graph), fold(trace.report.graph, expand=True)
    assert len(folded.nodes) <= 10 < len(whole.nodes) == len(trace.report.graph.sites)
    assert "GPT.blocks.0-11.attention" in {node.module for node in folded.nodes}
    assert {node.phase for node in folded.nodes} == {"input", "forward", "backward", "update", "score"}


def test_what_leads_to_no_score_is_drawn_only_if_all_is() -> None:
    sites = [
        Site("input", "labels", "", 0),
        Site("forward", "mul", "a.py", 1),
        Site("score", "sum", "a.py", 2),
    ]
    graph = Provenance([*sites, Site("forward", "sink", "a.py", 3)], [Edge(0, 1), Edge(1, 2), Edge(1, 3)])
    assert [n.site.op for n in fold(graph).nodes] == ["labels", "mul", "sum"]
    assert len(fold(graph, expand=True).nodes) == 4


def test_edges_that_are_folded_add_up() -> None:
    sites = [Site("input", "labels", "", 0), Site("score", "sum", "a.py", 9)]
    sites += [Site("forward", "mm", "a.py", 1, module=f"GPT.blocks.{i}.mlp") for i in range(3)]
    edges = [Edge(0, 2 + i, 1, (i, i + 1), None) for i in range(3)]
    edges += [Edge(2 + i, 1, 2, None, (i - 1, i), i == 0) for i in range(3)] + [Edge(2, 3), Edge(3, 4)]
    folded = fold(Provenance(sites, edges))
    labels, out = folded.links
    assert (labels.flows, labels.labels, labels.bad) == (3, (0, 3), False)
    assert (out.flows, out.lag, out.bad) == (6, (-1, 2), True)
    assert folded.nodes[-1].module == "GPT.blocks.0-2.mlp"


def test_the_path_is_red_state_is_a_cylinder_and_modules_are_clusters() -> None:
    text = digraph(fold(violating())).source
    lines = text.splitlines()
    assert sum("->" in line and "#c53030" in line for line in lines) == 4
    assert any("optimizer.step()" in line and "shape=cylinder" in line for line in lines)
    assert "subgraph cluster_" in text and "lag -11 to 0" in text


@dot
@pytest.mark.parametrize(
    ("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF"), (".dot", b"digraph")]
)
def test_the_suffix_says_what_is_written(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = render(violating(), tmp_path / f"graph{suffix}")
    assert path.read_bytes().startswith(start)


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.svg, \.png, \.pdf, \.dot"):
        render(violating(), tmp_path / "graph.jpeg2000")


def test_without_graphviz_the_text_is_there_and_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DrawingError, match="apt install graphviz"):
        render(violating(), tmp_path / "graph.svg")
    assert (tmp_path / "graph.dot").read_text(encoding="utf-8").startswith("digraph")
    assert not (tmp_path / "graph.svg").exists()
    assert render(violating(), tmp_path / "other.dot").exists()


@dot
def test_a_watch_draws_its_own_graph(tmp_path: Path) -> None:
    tokens = torch.arange(5)
    with causaltrace.watch(tokens) as trace:
        torch.nn.functional.cross_entropy(torch.randn(4, 5) + tokens[4], tokens[1:], reduction="none").sum()
    assert trace.render(tmp_path / "graph.svg").exists()
    phases = {phase for _, phase in trace.graph.nodes(data="phase")}
    assert trace.graph.number_of_edges() > 0 and phases >= {"input", "forward", "score"}
