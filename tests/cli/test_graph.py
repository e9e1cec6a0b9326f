"""``causaltrace graph`` by itself: what it asks the renderer and the exporters for."""

from __future__ import annotations

import sys
import types

import pytest

from tests.cli.recordings import call, record
from tests.report import mutated, samples


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """Stand-ins for the renderer and the exporters; what they were asked for."""
    calls: list[tuple] = []

    def render(provenance, path, expand=False):
        calls.append(("render", len(provenance.sites), path.name, expand))

    def exporter(name):
        return lambda provenance: f"{name} of {len(provenance.sites)} sites"

    names = ("to_dot", "to_graphml", "to_mermaid", "to_json")
    exports = types.SimpleNamespace(**{name: exporter(name) for name in names})
    monkeypatch.setitem(sys.modules, "causaltrace.graph.render", types.SimpleNamespace(render=render))
    monkeypatch.setitem(sys.modules, "causaltrace.graph.export", exports)
    return calls


@pytest.mark.parametrize("expand", [(), ("--expand",)])
@pytest.mark.parametrize("name", ["g.svg", "g.PNG", "g.pdf"])
def test_pictures_are_drawn(tmp_path, asked, name, expand):
    result = call("graph", record(tmp_path, mutated.full()), "-o", tmp_path / name, *expand)
    assert result.exit_code == 0, result.stderr
    assert asked == [("render", 8, name, bool(expand))]


@pytest.mark.parametrize(
    ("name", "export"),
    [("g.dot", "to_dot"), ("g.graphml", "to_graphml"), ("g.mmd", "to_mermaid"), ("g.json", "to_json")],
)
def test_text_is_exported(tmp_path, asked, name, export):
    assert call("graph", record(tmp_path, mutated.full()), "-o", tmp_path / name).exit_code == 0
    assert (tmp_path / name).read_text() == f"{export} of 8 sites"


def test_the_watch_is_chosen(tmp_path, asked):
    path = record(tmp_path, samples.clean(), mutated.full())
    assert "choose one with --watch" in call("graph", path, "-o", tmp_path / "g.svg").stderr
    assert "no watch 3, only 2" in call("graph", path, "-o", tmp_path / "g.svg", "--watch", 3).stderr
    assert "has no graph" in call("graph", path, "-o", tmp_path / "g.svg", "--watch", 1).stderr
    assert asked == []
    assert call("graph", path, "-o", tmp_path / "g.svg", "--watch", 2).exit_code == 0


def test_what_cannot_be_done_is_an_error(tmp_path, asked):
    path = record(tmp_path, mutated.full())
    result = call("graph", path, "-o", tmp_path / "g.doc")
    assert result.exit_code == 2 and "must end in one of .svg, .png" in result.stderr
    result = call("graph", path, "-o", tmp_path / "no" / "g.dot")
    assert result.exit_code == 2 and "cannot write" in result.stderr
