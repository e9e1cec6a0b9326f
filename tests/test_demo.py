"""The demo at a size for tests: exit code, screen and JSON twin."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

import causaltrace
from causaltrace.cli import app
from causaltrace.report.model import Finding, Hop, Report
from causaltrace.site import Site
from examples import demo, slot_context
from examples.common import sliding_windows

TINY = (
    "--window 16 --stride 4 --windows 5 --pr-stride 8 --layers 1 --heads 2 --dim 8 --train-steps 2 "
    "--width 100"
)


class Output(NamedTuple):
    code: int
    screen: str
    data: dict[str, Any]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    path = tmp_path_factory.mktemp("demo") / "twin.json"
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        code = demo.main([*TINY.split(), "--json", str(path)])
    return Output(code, screen.getvalue(), json.loads(path.read_text(encoding="utf-8")))


def test_all_verdicts_are_as_expected(output: Output) -> None:
    assert output.code == 0
    assert output.data["as_expected"]
    assert output.data["schema"] == demo.SCHEMA


def test_every_example_is_judged_as_it_declares(output: Output) -> None:
    runs = demo.examples(16, 4, 5)
    rows = output.data["examples"]
    assert [row["eval"] for row in rows] == [run.name for run in runs]
    for row, run in zip(rows, runs, strict=True):
        shared = run.module is slot_context and run.config.batch > 1
        assert row["status"] == ("clean" if run.module.LEGAL and not shared else "violation")


def test_every_example_module_is_in_the_demo() -> None:
    judged = {Path(run.module.__file__ or "").stem for run in demo.examples(16, 4, 5)}
    there = {path.stem for path in Path(demo.__file__).parent.glob("*.py")}
    assert judged == there - {"__init__", "common", "demo", "demo_view"}


def test_only_clean_evals_may_claim_their_number(output: Output) -> None:
    rows = output.data["examples"]
    plain = rows[0]["claims_bits_per_byte"]
    for row in rows:
        clean = row["status"] == "clean"
        assert row["may_claim_bits_per_byte"] == (row["claims_bits_per_byte"] if clean else plain)
        assert row["may_claim"].startswith("the claimed number" if clean else "not a compression rate")
        violation = row["status"] == "violation"
        assert bool(row["violating_positions"]) == violation
        assert (row["witness"] is not None) == violation
        if violation:
            assert row["witness"]["path"][0]["place"]


def test_pairs_of_pr_1240_agree_with_the_flips(output: Output) -> None:
    without, standard, per_sample = output.data["pr_1240"]
    for row in (without, standard, per_sample):
        assert row["watched"]["pairs_covered"] == 17 * 16
        assert row["watched"]["forbidden_pairs_covered"] == 16 * 17 // 2
        assert row["flips"]["pairs_sampled"] == 8 * 7
        assert row["flips"]["forbidden_pairs_sampled"] == 8 * 7 // 2
        assert row["flips"]["runs"] == 9
        assert row["agreement"]["positions_compared"] == 7
        assert row["agreement"]["moved_pairs_ruled_out_by_report"] == 0
    assert without["watched"]["status"] == "clean"
    assert without["flips"]["largest_change_nats"] == 0
    assert without["agreement"]["positions_agreeing"] == 7
    for row in (standard, per_sample):
        assert row["watched"]["violating_positions"] == list(range(1, 17))
        assert row["flips"]["forbidden_pairs_moved"] > 0


def test_issue_1336_names_the_line_and_the_windows(output: Output) -> None:
    data = output.data["issue_1336"]
    assert data["one_window"]["status"] == "clean"
    assert data["shared"]["status"] == "violation"
    assert data["state"]["updated_at"]["source"] == "optimizer.step()"
    assert "delta" in data["state"]["read_at"]["source"]
    assert [leak["into_window"] for leak in data["leaks"]] == [1, 2, 3, 4]
    for leak in data["leaks"]:  # the last window's context ends where its own scores begin
        assert leak["label_is_context_of_windows"] == [5]
        assert leak["label_is_scored_by_window"] == 4
        assert leak["positions"] == 4
    _, *windows = sliding_windows(1 + 16 + 5 * 4, 16, 4)
    assert data["leaks"][0]["latest_label"] == windows[4].start + windows[4].fresh


def test_the_screen_fits_and_says_it(output: Output) -> None:
    lines = [line.rstrip() for line in output.screen.splitlines()]
    assert max(map(len, lines)) <= 100
    assert any("Window 5 leaks into 1-4" in line for line in lines)
    assert "twin.json" in "".join(lines)


def test_a_wrong_verdict_gives_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = demo.judge

    def lenient(run: demo.Run, *args: Any) -> demo.Judged:
        judged = honest(run, *args)
        if judged.report.status != "violation" or run.module is slot_context:
            return judged
        clean = {"stream": "clean", "scored": "clean"}
        return dataclasses.replace(
            judged, report=Report("clean", clean, {}, positions=judged.report.positions)
        )

    monkeypatch.setattr(demo, "judge", lenient)
    assert demo.main([*TINY.split(), "--json", str(tmp_path / "twin.json")]) == 1
    captured = capsys.readouterr()
    assert "clean !" in captured.out
    assert "not all verdicts" in captured.err


def test_json_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: Output
) -> None:
    monkeypatch.setattr(demo, "demo", lambda args, console: (output.data, []))
    assert demo.main(["--json", str(tmp_path / "missing" / "twin.json")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_flip_that_moves_what_the_report_rules_out_is_counted() -> None:
    """The comparison is not a formality: a report that names too early a label contradicts a flip."""
    site = Site("score", "sum", "eval.py", 1)
    finding = Finding("CT001", target=1, source=2, orders=("stream",), site=site, path=(Hop(site),))
    report = Report("violation", {}, {}, violations=[finding], positions=(1, 2, 3))
    judged = demo.Judged(demo.Run("eval", slot_context, None, False), 0.0, report, 0.0)
    flips = {
        "change": {(2, 1): 1.0, (3, 1): 1.0, (3, 2): 0.0, (1, 2): 1.0},
        "runs": 4,
        "seconds": 1.0,
        "seconds_for_every_label": 1.0,
    }
    agreement = demo.compare(judged, flips, labels=4)["agreement"]
    assert agreement == {
        "positions_compared": 2,
        "positions_agreeing": 2,
        "moved_pairs_in_accord": 1,
        "moved_pairs_ruled_out_by_report": 1,
    }


def test_an_installation_without_examples_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(causaltrace, "__file__", str(tmp_path / "causaltrace" / "__init__.py"))
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2
    assert "source checkout" in result.output


def test_the_command_runs_the_demo_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "examples.demo")
    result = CliRunner().invoke(app, ["demo", "--window", "none"])
    assert result.exit_code == 2
    assert "invalid int value" in result.output


def test_the_last_line_names_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([*TINY.split(), "--json", str(tmp_path / "demo.json")]) == 0
    page = (tmp_path / "demo.html").read_text()
    assert "context-only SLOT, batch 5" in page
    assert page.count('<article class="watch"') == len(demo.examples(16, 4, 5))
    assert "".join(capsys.readouterr().out.splitlines()[-3:]).endswith("demo.html")
