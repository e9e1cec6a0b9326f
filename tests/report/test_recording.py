from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import linecache
import os
import pickle
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from causaltrace.report import recording
from causaltrace.report.github import to_github
from causaltrace.report.json import to_dict
from causaltrace.report.junit import to_junit
from causaltrace.report.markdown import reports_to_markdown
from causaltrace.report.model import Finding, Report
from causaltrace.report.operations import render as render_operations
from causaltrace.report.recording import RecordingError, pack, read
from causaltrace.report.sarif import to_sarif
from causaltrace.report.text import path_text, render
from causaltrace.site import Site
from tests.report import mutated, samples

fuzzed = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def recorded(path: Path, *reports: Report) -> Path:
    path.write_bytes(pack(reports))
    return path


def zipped(path: Path, data: object) -> Path:
    path.write_bytes(gzip.compress(data if isinstance(data, bytes) else json.dumps(data).encode(), 1))
    return path


def refused(path: Path) -> str:
    with pytest.raises(RecordingError) as caught:
        read(path)
    return str(caught.value)


def test_reads_back_what_was_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the files of the samples lie outside, so their names stay
    reports = [mutated.full(), samples.clean(), samples.unverified()]
    assert read(recorded(tmp_path / "x.ctrace", *reports)) == reports


def test_files_of_the_repository_are_named_relative_to_it(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    sites = [
        Site("score", "sum", str(tmp_path / "evals" / "e.py"), 3),
        Site("score", "sum", "/elsewhere/e.py", 4),
    ]
    report = dataclasses.replace(samples.clean(), violations=[Finding("CT001", 1, 2, (), s) for s in sites])
    path = recorded(tmp_path / "x.ctrace", report)
    assert [f.site.file for f in read(path)[0].violations] == ["evals/e.py", "/elsewhere/e.py"]
    assert str(tmp_path).encode() not in gzip.decompress(path.read_bytes())


def test_source_lines_are_those_of_the_recorder(tmp_path, monkeypatch):
    script = tmp_path / "e.py"
    script.write_text("first\nloss.backward()\n")
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    sites = [Site("score", "sum", str(script), 2), Site("score", "sum", str(tmp_path / "gone.py"), 7)]
    report = dataclasses.replace(samples.clean(), violations=[Finding("CT001", 1, 2, (), s) for s in sites])
    path = recorded(tmp_path / "x.ctrace", report)
    script.write_text("another\nfile of that name\n")
    (tmp_path / "gone.py").write_text("here\n" * 9)
    linecache.clearcache()
    assert [f.site.source for f in read(path)[0].violations] == ["loss.backward()", ""]


def test_sites_are_equal_by_place():
    here, there = Site("score", "sum", "e.py", 2), Site("score", "sum", "e.py", 2, stored="x")
    assert here == there and hash(here) == hash(there) and there.source == "x"


def test_older_reports_in_a_recording_are_read(tmp_path):
    new = ("streams", "lags", "reach", "timeline", "graph", "run")
    old = {k: v for k, v in to_dict(samples.violation()).items() if k not in new}
    data = {"schema": "causaltrace-recording/1", "reports": [{**old, "schema": "causaltrace-report/1"}]}
    assert read(zipped(tmp_path / "x", data)) == [samples.violation()]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"schema": "causaltrace-recording/2", "reports": []},
            "has format 2 and this causaltrace reads up to 1",
        ),
        ({"schema": "causaltrace-recording/1", "reports": []}, "holds no reports"),
        ({"schema": "causaltrace-recording/1"}, "holds no reports"),
        ({"schema": "causaltrace-recording/1", "reports": [1]}, "expected schema"),
        ({"schema": "causaltrace-recording/1", "reports": [{"schema": "causaltrace-report/9"}]}, "report/9"),
        ({"schema": ["causaltrace-recording/1"]}, "not a recording"),
        ([], "not a recording"),
        (b"", "does not hold JSON"),
        (b"\xff\xfe", "does not hold JSON"),
        (b'{"schema": NaN', "does not hold JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"1" * 5_000, "does not hold JSON"),
    ],
)
def test_other_content_is_refused_with_the_reason(tmp_path, data, message):
    assert message in refused(zipped(tmp_path / "x", data))


def test_files_that_are_no_recording(tmp_path):
    whole = recorded(tmp_path / "whole", samples.violation()).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    assert "cut off" in refused(tmp_path / "cut")
    (tmp_path / "text").write_text("import os")
    assert "not a recording" in refused(tmp_path / "text")
    assert "No such file" in refused(tmp_path / "none")
    assert "directory" in refused(tmp_path)
    (tmp_path / "empty").touch()
    refused(tmp_path / "empty")


def test_a_file_that_blows_up_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MAX_BYTES", 1 << 20)
    packer = zlib.compressobj(9, wbits=31)
    path = tmp_path / "bomb"
    with path.open("wb") as file:
        for _ in range(200):
            file.write(packer.compress(b" " * (1 << 20)))
        file.write(packer.flush())
    assert path.stat().st_size < 1 << 20
    assert "more than 1 MiB when unpacked" in refused(path)
    monkeypatch.setattr(recording, "MAX_VALUES", 1_000)
    assert "more than 1,000 values" in refused(zipped(path, b"[" + b"[]," * 1_000 + b"0]"))


def test_what_could_not_be_read_is_not_recorded(monkeypatch):
    monkeypatch.setattr(recording, "MAX_VALUES", 100)
    with pytest.raises(RecordingError, match="more than 100 values"):
        pack([samples.violation()])


def test_nothing_of_the_file_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "executed"),)

    assert "does not hold JSON" in refused(zipped(tmp_path / "x", pickle.dumps(Evil())))
    assert not (tmp_path / "executed").exists()


@fuzzed
@given(st.data())
def test_damaged_bytes_are_read_or_refused(tmp_path, data):
    content = bytearray(pack([mutated.full()]))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with contextlib.suppress(RecordingError):
        assert read(path)


def shown(report: Report, folder: Path) -> str:
    """Everything that is made of a report, on one page."""
    with (folder / "screen").open("w", encoding="utf-8") as file:
        render(report, Console(file=file, width=80))
        render_operations(report, Console(file=file, width=80))
    paths = [path_text(finding) for finding in report.violations]
    pages = [make([report]) for make in (reports_to_markdown, to_sarif, to_junit, to_github)]
    assert pack([report])
    return "".join([(folder / "screen").read_text(encoding="utf-8"), *paths, *pages])


@fuzzed
@given(mutated.documents())
def test_damaged_reports_are_refused_or_can_be_shown(tmp_path, document):
    path = zipped(tmp_path / "x", {"schema": "causaltrace-recording/1", "reports": [document]})
    with contextlib.suppress(RecordingError):
        (report,) = read(path)
        shown(report, tmp_path)


@pytest.mark.parametrize("text", mutated.TEXTS, ids=ascii)
def test_hostile_text_can_be_shown_and_steers_nothing(tmp_path, text):
    path = recorded(tmp_path / "x", mutated.everywhere(text))
    page = shown(read(path)[0], tmp_path)
    assert not set(page) & {"\x1b", "\x9b", "\x00"}
