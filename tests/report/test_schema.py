"""The published schema of the JSON report: docs/report.schema.json."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import causaltrace
from causaltrace.report.about import made_now
from causaltrace.report.json import from_dict, reports_to_json, to_dict
from tests.report import mutated, samples

FILE = Path(causaltrace.__file__).parents[1] / "docs" / "report.schema.json"
SCHEMA = json.loads(FILE.read_text(encoding="utf-8"))
VALID = jsonschema.Draft202012Validator(SCHEMA)
FULL = json.dumps(to_dict(mutated.full()))
FREE = {"scored", "at"}  # written for other readers, not read back


def check(text: str) -> None:
    error = jsonschema.exceptions.best_match(VALID.iter_errors(json.loads(text)))
    assert error is None, f"{error.json_path}: {error.message[:300]}"


def places(data: object, at: tuple = ()) -> list[tuple]:
    """Paths to everything inside a document; of a list, the first item only."""
    items: list[tuple] = []
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))[:1]
    return [(*at, key) for key, _ in items] + [p for key, v in items for p in places(v, (*at, key))]


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("make", [samples.clean, samples.violation, samples.unverified, mutated.full])
def test_samples(make):
    report = make()
    report.run = made_now("x", Path())
    for notice in report.notes:
        notice.kind = "CT095"
    check(report.to_json())


def test_several_reports():
    check(reports_to_json([samples.clean(), samples.unverified()]))


def test_examples(example_reports):
    for report in example_reports.values():
        check(report.to_json())
        assert from_dict(json.loads(report.to_json())) == report


@pytest.mark.parametrize("place", places(json.loads(FULL)), ids=lambda place: ".".join(map(str, place)))
def test_a_wrong_type_anywhere_is_refused_by_the_schema_and_by_the_reader(place):
    data = inner = json.loads(FULL)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = 1.5 if place[-1] != "nats" else "1.5"
    assert not VALID.is_valid(data)
    if place[-1] not in FREE:
        with pytest.raises(ValueError, match=r"malformed|expected schema"):
            from_dict(data)


@pytest.mark.parametrize("key", [key for key in json.loads(FULL) if key not in FREE])
def test_a_missing_key_is_refused_by_the_schema_and_by_the_reader(key):
    data = json.loads(FULL)
    del data[key]
    assert not VALID.is_valid(data)
    with pytest.raises(ValueError, match=rf"has no '{key}'|expected schema"):
        from_dict(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("status", "maybe"),
        ("orders", {"stream": "maybe"}),
        ("conditions", {"C1": "perhaps"}),
        ("labels", -1),
        ("judged", {"nats": 3.25, "known": -1}),
        ("ops", [["aten.mm", 1, "guessed", ""]]),
        ("streams", [["labels", 1, 2]]),
    ],
)
def test_wrong_values_are_refused(key, value):
    assert not VALID.is_valid({**json.loads(FULL), key: value})
