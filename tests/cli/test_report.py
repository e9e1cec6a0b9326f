from __future__ import annotations

import json
import sys
import types
from xml.etree import ElementTree as ET

import pytest

from causaltrace.cli.outputs import Outputs
from causaltrace.report import recording
from causaltrace.report.model import Finding
from causaltrace.site import Site
from tests.cli.recordings import call, record
from tests.report import samples


@pytest.mark.parametrize(("verdict", "code"), [("clean", 0), ("violation", 1), ("unverified", 3)])
def test_shows_the_report_and_exits_with_its_verdict(tmp_path, verdict, code):
    result = call("report", record(tmp_path, getattr(samples, verdict)()))
    assert result.exit_code == code
    assert f"causaltrace: {verdict.upper()}" in result.stdout


def test_several_watches_are_numbered_and_the_worst_counts(tmp_path):
    result = call("report", record(tmp_path, samples.clean(), samples.unverified()))
    assert result.exit_code == 3
    assert "watch 2 of 2\ncausaltrace: UNVERIFIED" in result.stdout


def test_all_outputs(tmp_path, monkeypatch):
    page = types.SimpleNamespace(to_html=lambda reports: f"<p>{len(reports)} reports</p>")
    monkeypatch.setitem(sys.modules, "causaltrace.report.html", page)
    options = [w for o in ("html", "markdown", "sarif", "junit", "json") for w in (f"--{o}", tmp_path / o)]
    result = call("report", record(tmp_path, samples.violation()), *options, "--github")
    assert result.exit_code == 1, result.stderr
    assert "<p>1 reports</p>" in (tmp_path / "html").read_text()
    assert (tmp_path / "markdown").read_text(encoding="utf-8").startswith("**causaltrace: violation.**")
    assert json.loads((tmp_path / "sarif").read_text())["version"] == "2.1.0"
    assert ET.parse(tmp_path / "junit").getroot().tag == "testsuites"
    assert json.loads((tmp_path / "json").read_text())["status"] == "violation"
    assert sum(line.startswith("::error ") for line in result.stdout.splitlines()) == 4


def test_a_file_name_that_is_no_text(tmp_path):
    report = samples.violation(0)
    report.violations = [Finding("CT001", 1, 2, samples.BOTH, Site("score", "sum", "/evals/e\udcff.py", 3))]
    names = ("markdown", "sarif", "junit", "json")
    outputs = Outputs(
        **{name: tmp_path / name for name in names}, github=True, recording=tmp_path / "r.ctrace"
    )
    assert outputs.write([report])
    assert call("report", tmp_path / "r.ctrace", "--sarif", tmp_path / "again").exit_code == 1
    place = json.loads((tmp_path / "sarif").read_text())["runs"][0]["results"][0]["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "file:///evals/e%FF.py"


def test_an_output_that_cannot_be_written_is_an_error_and_the_others_are_written(tmp_path):
    options = ("--sarif", tmp_path / "no" / "x", "--json", tmp_path / "r.json")
    result = call("report", record(tmp_path, samples.clean()), *options)
    assert result.exit_code == 2
    assert f"causaltrace: cannot write {tmp_path / 'no' / 'x'}: No such file" in result.stderr
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "clean"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        (b"import os", "not a recording"),
        (recording.pack([samples.clean()])[:80], "cut off"),
    ],
)
@pytest.mark.parametrize("command", [("report",), ("explain",), ("graph", "-o", "g.dot")], ids=lambda c: c[0])
def test_what_is_no_recording_is_an_error_that_says_so(tmp_path, command, content, said):
    path = tmp_path / "x.ctrace"
    if content is not None:
        path.write_bytes(content)
    result = call(*command, path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"causaltrace: cannot read {path}: ") and said in result.stderr
    assert "Traceback" not in result.stderr
