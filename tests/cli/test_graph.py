"""``causaltrace graph``: a recorded graph drawn and exported."""

from __future__ import annotations

import shutil

import pytest

from causaltrace.graph.export import to_dot, to_graphml, to_json, to_mermaid
from causaltrace.report.recording import read
from tests.cli.recordings import call, record
from tests.report import mutated, samples

KIND = {"g.svg": b"<svg", "g.PNG": b"PNG", "g.pdf": b"%PDF"}


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
@pytest.mark.parametrize("expand", [(), ("--expand",)])
@pytest.mark.parametrize("name", KIND)
def test_pictures_are_drawn(tmp_path, name, expand):
    result = call("graph", record(tmp_path, mutated.full()), "-o", tmp_path / name, *expand)
    assert result.exit_code == 0, result.stderr
    assert KIND[name] in (tmp_path / name).read_bytes()[:1000]


@pytest.mark.parametrize(
    ("name", "export"),
    [("g.dot", to_dot), ("g.graphml", to_graphml), ("g.mmd", to_mermaid), ("g.json", to_json)],
)
def test_text_is_exported(tmp_path, name, export):
    recording = record(tmp_path, mutated.full())
    assert call("graph", recording, "-o", tmp_path / name).exit_code == 0
    assert (tmp_path / name).read_text() == export(read(recording)[0].graph)


def test_the_watch_is_chosen(tmp_path):
    path = record(tmp_path, samples.clean(), mutated.full())
    assert "choose one with --watch" in call("graph", path, "-o", tmp_path / "g.dot").stderr
    assert "no watch 3, only 2" in call("graph", path, "-o", tmp_path / "g.dot", "--watch", 3).stderr
    assert "has no graph" in call("graph", path, "-o", tmp_path / "g.dot", "--watch", 1).stderr
    assert not (tmp_path / "g.dot").exists()
    assert call("graph", path, "-o", tmp_path / "g.dot", "--watch", 2).exit_code == 0


def test_what_cannot_be_done_is_an_error(tmp_path):
    path = record(tmp_path, mutated.full())
    result = call("graph", path, "-o", tmp_path / "g.doc")
    assert result.exit_code == 2 and "must end in one of .svg, .png" in result.stderr
    result = call("graph", path, "-o", tmp_path / "no" / "g.dot")
    assert result.exit_code == 2 and "cannot write" in result.stderr
