from __future__ import annotations

import json
import linecache

import pytest
from hypothesis import HealthCheck, given, settings
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as Log

from causaltrace.report.json import from_dict
from causaltrace.report.model import KINDS, Finding, Hop, Notice, Report
from causaltrace.report.sarif import to_sarif
from causaltrace.site import Site
from tests.report import mutated, samples
from tests.report.samples import BOTH, SCORE, site


def log(*reports: Report) -> dict:
    """The SARIF of these reports, checked against the models that are generated from the 2.1.0 schema."""
    data = json.loads(to_sarif(reports))
    Log.model_validate(data)
    return data


@pytest.mark.parametrize("make", [samples.clean, samples.violation, samples.unverified, mutated.full])
def test_is_sarif(make):
    (run,) = log(make())["runs"]
    assert run["tool"]["driver"]["name"] == "causaltrace"
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(KINDS)
    for result in run["results"]:
        if result["ruleId"] == "note":
            continue
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


@pytest.mark.parametrize("text", mutated.TEXTS, ids=ascii)
def test_is_sarif_whatever_the_text(text):
    log(mutated.everywhere(text))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated.documents())
def test_is_sarif_whatever_can_be_read(document):
    try:
        report = from_dict(document if isinstance(document, dict) else {})
    except ValueError:
        return
    log(report)


def test_one_result_for_each_kind_and_site():
    (run,) = log(samples.violation())["runs"]
    errors = [r for r in run["results"] if r["level"] == "error"]
    assert [r["ruleId"] for r in errors] == ["CT003", "CT002", "CT006", "CT001"]
    worst = errors[0]
    assert worst["properties"]["targets"] == [[1, 240]]
    assert worst["properties"]["orders"] == ["stream", "scored"]
    assert (worst["properties"]["target"], worst["properties"]["source"]) == (37, 255)
    place = worst["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "tests/report/samples.py", "uriBaseId": "%SRCROOT%"}
    assert place["region"]["startLine"] == SCORE.line
    assert [r["level"] for r in run["results"][4:]] == ["note"]


def test_the_flow_leads_from_the_label_to_the_score():
    (run,) = log(samples.violation())["runs"]
    steps = run["results"][0]["codeFlows"][0]["threadFlows"][0]["locations"]
    lines = [s["location"]["physicalLocation"]["region"]["startLine"] for s in steps]
    assert lines == [hop.site.line for hop in samples.PATH]
    assert steps[0]["location"]["message"]["text"] == "input: slice [99]"
    assert steps[-1]["location"]["message"]["text"] == "score: sum [37]"
    assert (
        steps[0]["location"]["physicalLocation"]["region"]["snippet"]["text"] == samples.PATH[0].site.source
    )


def test_what_blocks_is_a_warning_and_what_has_no_place_a_notification():
    report = samples.unverified()
    report.notes = [Notice("CT093", "no score was found", "score something", blocking=True)]
    (run,) = log(report)["runs"]
    assert [(r["ruleId"], r["level"]) for r in run["results"]] == [("CT090", "warning"), ("CT091", "note")]
    (told,) = run["invocations"][0]["toolExecutionNotifications"]
    assert told["level"] == "warning" and told["descriptor"] == {"id": "CT093"}
    assert run["invocations"][0]["exitCode"] == 3 and run["invocations"][0]["executionSuccessful"]


def test_a_partial_run_was_not_successful():
    report = samples.clean()
    report.error = "ValueError: no shard"
    (invocation,) = log(report)["runs"][0]["invocations"]
    assert (invocation["executionSuccessful"], invocation["exitCode"]) == (False, 2)


def test_a_score_without_a_line_is_shown_where_its_path_has_one():
    end = Hop(Site("score", "returned", "<end of the watch>", 0))
    report = samples.violation(0)
    report.violations = [Finding("CT001", 1, 2, BOTH, end.site, (*samples.PATH[:3], end))]
    (result,) = log(report)["runs"][0]["results"][:1]
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == samples.PATH[2].site.line


def test_fingerprints_differ_and_survive_a_move(tmp_path, monkeypatch):
    def prints(top: str) -> list[str]:
        file = tmp_path / "e.py"
        file.write_text(top + "one()\ntwo()\n")
        first = top.count("\n") + 1
        sites = [Site("score", "sum", str(file), first + i, "evaluate") for i in (0, 1)]
        report = samples.violation(0)
        report.violations = [Finding(kind, 1, 2, BOTH, s) for s in sites for kind in ("CT001", "CT002")]
        report.violations += [Finding("CT001", 1, 2, ("stream",), sites[0])]
        report.violations += [Finding("CT001", 1, 2, BOTH, sites[0], stream="other")]
        report.notes = []
        linecache.clearcache()
        results = log(report)["runs"][0]["results"]
        return [r["partialFingerprints"]["causaltrace/v1"] for r in results]

    monkeypatch.chdir(tmp_path)
    before = prints("")
    assert len(set(before)) == len(before) == 6
    assert prints("# moved\n# down\n") == before


def test_ten_thousand_findings_fit():
    path = tuple(Hop(site("forward", f"op{i}", i + 1)) for i in range(3_000))
    report = samples.violation(0)
    report.violations = [Finding("CT003", t, t + 1, BOTH, SCORE, path) for t in range(0, 20_000, 2)]
    report.notes = []
    data = log(report)
    (result,) = data["runs"][0]["results"]
    assert len(result["properties"]["targets"]) == 10_000
    assert len(result["codeFlows"][0]["threadFlows"][0]["locations"]) == 1_000
    assert len(json.dumps(data)) < 10 << 20


def test_more_places_than_code_scanning_takes():
    report = samples.violation(0)
    report.violations = [Finding("CT001", 1, 2, BOTH, site("score", "sum", i)) for i in range(1, 25_003)]
    report.notes = []
    data = json.loads(to_sarif([report]))["runs"][0]
    assert len(data["results"]) == 25_000
    (told,) = data["invocations"][0]["toolExecutionNotifications"]
    assert told["message"]["text"].startswith("2 results left out")


def test_several_watches_are_runs_of_their_own():
    runs = log(samples.clean(), samples.violation())["runs"]
    assert [run["automationDetails"]["id"] for run in runs] == ["causaltrace/1/", "causaltrace/2/"]


def test_is_written_to_a_path(tmp_path):
    text = samples.violation().to_sarif(tmp_path / "x.sarif")
    assert (tmp_path / "x.sarif").read_text(encoding="utf-8") == text
