"""Every example is judged as an exhaustive flip of its labels judges it: same status, same positions."""

from __future__ import annotations

import dataclasses
import functools

import pytest

import causaltrace
from causaltrace.report.model import Judged
from tests import flips
from tests.flips import CASES
from tests.not_yet import LARGER, marked

LEAKING = [name for name, case in CASES.items() if not case.legal]


@functools.cache
def watched(name: str, find_the_stream: bool = False) -> tuple[causaltrace.Report, float]:
    """Report and result of one watched run; without the tokens if the watch is to find them."""
    case = CASES[name]
    model = case.make_model()
    tokens = case.tokens.clone()
    with flips.single_threaded(), causaltrace.watch(None if find_the_stream else tokens) as trace:
        value = case.evaluate(model, tokens, case.config)
    return trace.report, float(value)


@pytest.mark.parametrize("name", CASES)
def test_status_is_clean_exactly_where_the_example_is_legal(name: str) -> None:
    report, _ = watched(name)
    expected = "clean" if CASES[name].legal else "violation"
    assert report.status == expected
    assert report.orders == {"stream": expected, "scored": expected}


@pytest.mark.parametrize("name", LEAKING)
def test_all_violating_positions_are_found(name: str) -> None:
    report, _ = watched(name)
    assert {f.target for f in report.violations} >= {t for _, t in flips.violating_pairs(CASES[name])}


@pytest.mark.parametrize("name", marked(CASES, LARGER))
def test_violating_positions_are_those_of_the_flips(name: str) -> None:
    report, _ = watched(name)
    assert {finding.target for finding in report.violations} == {
        target for _, target in flips.violating_pairs(CASES[name])
    }


@pytest.mark.parametrize("name", marked(LEAKING, LARGER))
def test_the_source_is_the_latest_label_that_the_flips_find(name: str) -> None:
    report, _ = watched(name)
    latest: dict[int, int] = {}
    for label, target in flips.violating_pairs(CASES[name]):
        latest[target] = max(label, latest.get(target, -1))
    found = {f.target: f.source for f in report.violations if f.kind != "CT006"}
    assert found == latest


@pytest.mark.parametrize("name", CASES)
def test_scored_positions_come_in_the_order_of_the_loop(name: str) -> None:
    """The multi-epoch eval sums a score in every epoch, of which the oracle looks at the reported one."""
    case = CASES[name]
    epochs = case.config.epochs if name == "ttt_multi_epoch" else 1
    report, _ = watched(name)
    assert list(report.positions) == case.scored * epochs
    assert report.scored == len(case.scored)


@pytest.mark.parametrize("name", LEAKING)
def test_paths_end_at_the_score_and_name_lines_of_the_example(name: str) -> None:
    report, _ = watched(name)
    for finding in report.violations:
        assert finding.path[-1].site == finding.site
        assert finding.site.file.endswith(f"{CASES[name].evaluate.__module__.rpartition('.')[2]}.py")
        if finding.kind == "CT003":
            assert "update" in [hop.site.phase for hop in finding.path]


def test_rescoring_is_a_finding_of_its_own() -> None:
    report, _ = watched("ttt_multi_epoch")
    twice = {finding.target for finding in report.violations if finding.kind == "CT006"}
    assert twice == set(CASES["ttt_multi_epoch"].scored)
    assert report.conditions["C4"] == "fail"


@pytest.mark.parametrize("name", CASES)
def test_the_stream_is_found_without_being_given(name: str) -> None:
    given, value = watched(name)
    found, again = watched(name, find_the_stream=True)
    assert again == value
    assert (found.status, found.orders, found.conditions) == (given.status, given.orders, given.conditions)
    assert [dataclasses.replace(f, path=()) for f in found.violations] == [
        dataclasses.replace(f, path=()) for f in given.violations
    ]
    assert list(found.positions) == list(given.positions)
    assert found.judged == given.judged


@pytest.mark.parametrize("name", CASES)
def test_the_number_that_is_judged_is_the_one_that_the_example_returns(name: str) -> None:
    """All of them return nats per token. Of the better of two experts nothing says that it is a charge."""
    report, value = watched(name)
    known = name != "oracle_min"
    assert report.judged == (Judged(pytest.approx(value, abs=1e-12), report.scored) if known else Judged())


@pytest.mark.parametrize("name", CASES)
def test_the_watch_does_not_change_the_result(name: str) -> None:
    case = CASES[name]
    with flips.single_threaded():
        plain = case.evaluate(case.make_model(), case.tokens.clone(), case.config)
    assert watched(name)[1] == plain
