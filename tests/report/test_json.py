from __future__ import annotations

import json
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from causaltrace.report.json import from_dict, from_json, reports_to_json, to_dict, to_json
from causaltrace.report.model import (
    Edge,
    Finding,
    Hop,
    Judged,
    Moment,
    Notice,
    OpUse,
    Provenance,
    Report,
    Run,
)
from causaltrace.site import Site
from tests.report import samples

words = st.text(string.printable + "→é", max_size=12)
positions = st.integers(0, 2**40)
sites = st.builds(Site, words, words, words, positions, words, words)
notices = st.builds(
    Notice, words, words, words, st.none() | sites, positions, st.none() | positions, st.booleans()
)
orders = st.lists(st.sampled_from(["stream", "scored"]), unique=True).map(tuple)
hops = st.builds(Hop, sites, words)
findings = st.builds(
    Finding, words, positions, positions, orders, sites, st.lists(hops, max_size=3).map(tuple), words, words
)
spans = st.none() | st.tuples(positions, positions)
moments = st.builds(Moment, words, sites, *[positions] * 6)
runs = st.builds(
    Run, words, words, words, st.dictionaries(words, words, max_size=3).map(lambda d: tuple(d.items()))
)


@st.composite
def graphs(draw):
    nodes = draw(st.lists(sites, unique=True, min_size=1, max_size=4))
    ends = st.integers(0, len(nodes) - 1)
    edges = st.builds(Edge, ends, ends, positions, spans, spans, st.booleans())
    return Provenance(nodes, draw(st.lists(edges, max_size=4)))


reports = st.builds(
    Report,
    status=st.sampled_from(["clean", "violation", "unverified"]),
    orders=st.dictionaries(words, words, max_size=2),
    conditions=st.dictionaries(words, words, max_size=4),
    violations=st.lists(findings, max_size=4),
    positions=st.lists(positions, max_size=5),
    opaque=st.lists(notices, max_size=2),
    escapes=st.lists(notices, max_size=2),
    notes=st.lists(notices, max_size=2),
    labels=positions,
    error=st.none() | words,
    ops=st.lists(st.builds(OpUse, words, positions, words, words), max_size=2),
    streams=st.lists(st.tuples(words, positions), max_size=2),
    lags=st.lists(st.none() | st.integers(-(2**30), 2**30), max_size=5),
    reach=st.none() | st.lists(st.lists(positions, max_size=4), max_size=3),
    timeline=st.lists(moments, max_size=3),
    graph=graphs(),
    run=runs,
    judged=st.builds(Judged, st.none() | st.floats(allow_nan=False, allow_infinity=False), positions),
)


@given(reports)
def test_reads_back_what_it_wrote(report):
    assert from_json(to_json(report)) == report


def test_document_is_complete_and_flat():
    report = samples.violation(1000)
    data = json.loads(report.to_json())
    assert data["schema"] == "causaltrace-report/2"
    assert data["status"] == "violation"
    assert data["scored"] == 255
    assert len(data["violations"]) == len(report.violations)
    assert len(data["sites"]) == len({f.site for f in report.violations} | {h.site for h in samples.PATH})
    finding = next(f for f in data["violations"] if f["path"])
    assert finding["at"] == f"{samples.HERE}:10"
    assert data["sites"][finding["site"]]["op"] == "sum"
    assert data["sites"][finding["path"][0][0]]["phase"] == "input"
    assert data["sites"][finding["path"][3][0]]["function"] == "fit"


def test_an_older_document_is_read():
    new = ("streams", "lags", "reach", "timeline", "graph", "run", "judged")
    data = {k: v for k, v in to_dict(samples.violation()).items() if k not in new}
    assert from_dict({**data, "schema": "causaltrace-report/1"}) == samples.violation()


def test_numpy_numbers_are_written_as_numbers():
    report = samples.violation(0)
    report.positions = np.arange(3)
    report.violations = [Finding("CT001", np.int64(1), np.int64(2), ("stream",), samples.SCORE)]
    data = json.loads(to_json(report))
    assert data["positions"] == [0, 1, 2]
    assert data["violations"][0]["source"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "causaltrace-report/3"}, "expected schema"),
        ({"violations": [{}]}, "malformed"),
        ({"sites": []}, "malformed"),
        ({"positions": None}, "malformed"),
    ],
)
def test_other_documents_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_dict({**to_dict(samples.violation()), **change})


def test_non_object_is_refused():
    with pytest.raises(ValueError, match="JSON object"):
        from_json("[]")


def test_several_reports_have_a_schema_of_their_own():
    assert json.loads(reports_to_json([samples.clean()]))["schema"] == "causaltrace-report/2"
    data = json.loads(reports_to_json([samples.clean(), samples.violation()]))
    assert data["schema"] == "causaltrace-reports/1"
    assert [from_dict(d).status for d in data["reports"]] == ["clean", "violation"]
