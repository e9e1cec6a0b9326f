from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from typer.testing import CliRunner

from causaltrace.cli import app
from causaltrace.report import recording

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture
def script(tmp_path):
    """Write a script and return its path."""

    def write(text: str, name: str = "my_eval.py") -> str:
        path = tmp_path / name
        path.write_text("import sys, causaltrace\n" + textwrap.dedent(text))
        return str(path)

    return write


def run(*args: str):
    result = CliRunner().invoke(app, ["run", *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(("verdict", "code"), [("clean", 0), ("violation", 1), ("unverified", 3)])
def test_exit_code_is_the_verdict(script, verdict, code):
    result = run(script(f"with causaltrace.watch({verdict!r}): pass"))
    assert result.exit_code == code
    assert f"causaltrace: {verdict.upper()}" in result.stdout


def test_script_has_its_own_name_and_arguments(script):
    path = script("print(__name__, sys.argv)\nwith causaltrace.watch(): pass")
    argv, where = sys.argv, list(sys.path)
    result = run(path, "--json", "x", "-m", "--", "last")
    assert f"__main__ {[path, '--json', 'x', '-m', '--', 'last']}" in result.stdout
    assert result.exit_code == 0
    assert (sys.argv, sys.path) == (argv, where)


def test_script_imports_its_neighbours(script):
    script("verdict = 'unverified'", "neighbour_of_my_eval.py")
    path = script("import neighbour_of_my_eval as n\nwith causaltrace.watch(n.verdict): pass")
    assert run(path).exit_code == 3


def test_module(script, tmp_path, monkeypatch):
    script("print(__name__, sys.argv[1:])\nwith causaltrace.watch('violation'): pass", "an_eval_module.py")
    monkeypatch.chdir(tmp_path)
    result = run("-m", "an_eval_module", "--steps", "3")
    assert result.exit_code == 1
    assert "__main__ ['--steps', '3']" in result.stdout


def test_label_alone_opens_a_watch_once(script):
    result = run(script("causaltrace.label('good'); causaltrace.label('bad')"))
    assert result.exit_code == 1
    assert result.stdout.count("causaltrace: ") == 1


def test_label_alone_inside_inference_mode_is_refused(script):
    result = run(script("import torch\nwith torch.inference_mode(): causaltrace.label('bad')"))
    assert result.exit_code == 2
    assert "inside torch.inference_mode(); call it before" in result.stderr


def test_own_watch_after_a_stray_label_wins(script):
    result = run(script("causaltrace.label('bad')\nwith causaltrace.watch('unverified'): pass"))
    assert result.exit_code == 3
    assert result.stdout.count("causaltrace: ") == 1


def test_label_inside_and_after_own_watch(script):
    result = run(script("with causaltrace.watch(): causaltrace.label('good')"))
    assert result.exit_code == 0


def test_script_that_watches_nothing_is_a_usage_error(script):
    result = run(script("pass"))
    assert result.exit_code == 2
    assert "opened no watch and labelled nothing" in result.stderr


def test_several_watches_worst_verdict(script):
    path = script("for v in 'clean', 'violation', 'unverified':\n    with causaltrace.watch(v): pass")
    result = run(path)
    assert result.exit_code == 1
    assert "watch 2 of 3\ncausaltrace: VIOLATION" in result.stdout


def test_exception_shows_partial_report_and_traceback(script):
    path = script(
        """
        def evaluate():
            raise ValueError("no more shards")
        with causaltrace.watch('violation'):
            evaluate()
        """
    )
    result = run(path)
    assert result.exit_code == 2
    assert "Partial: the watched block raised ValueError: no more shards" in result.stdout
    first, second = result.stderr.splitlines()[:2]
    assert first.startswith("Traceback")
    assert path in second, "the traceback starts in the script"
    assert result.stderr.rstrip().endswith("ValueError: no more shards")


def test_exception_under_a_label_is_reported_too(script):
    result = run(script("causaltrace.label('good')\n1 / 0"))
    assert result.exit_code == 2
    assert "Partial: the watched block raised ZeroDivisionError" in result.stdout


def test_raising_the_verdict_is_the_verdict(script):
    result = run(script("with causaltrace.watch('violation') as t: pass\nt.raise_if_violation()"))
    assert result.exit_code == 1
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(0)", 0, ""),
        ("sys.exit(1)", 2, "the script exited with status 1\n"),
        ("sys.exit('bad shard')", 2, "bad shard\n"),
    ],
)
def test_sys_exit(script, call, code, said):
    result = run(script(f"with causaltrace.watch(): pass\n{call}"))
    assert (result.exit_code, result.stderr) == (code, said)


def test_script_that_does_not_start(script, tmp_path):
    assert run(str(tmp_path / "none.py")).exit_code == 2
    result = run("-m", "no_such_module_here")
    assert result.exit_code == 2
    assert "No module named no_such_module_here" in result.stderr
    assert "Traceback" not in result.stderr
    result = run(script("def"))
    assert result.exit_code == 2
    assert "SyntaxError" in result.stderr


def test_json_file(script, tmp_path):
    out = tmp_path / "report.json"
    assert run("--json", str(out), script("with causaltrace.watch('violation'): pass")).exit_code == 1
    assert json.loads(out.read_text())["status"] == "violation"


def test_json_file_that_cannot_be_written(script, tmp_path):
    result = run("--json", str(tmp_path / "no" / "r.json"), script("with causaltrace.watch(): pass"))
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
    assert "causaltrace: CLEAN" in result.stdout


def test_recording_is_read_by_report(script, tmp_path):
    out = tmp_path / "eval.ctrace"
    path = script("with causaltrace.watch('violation'): pass")
    assert run("-o", str(out), path, "--steps", "a b").exit_code == 1
    (report,) = recording.read(out)
    assert report.status == "violation"
    assert report.run.command == f"{path} --steps 'a b'"
    shown = run(path, "--steps", "a b").stdout
    assert "'a b'" in shown and "torch " in shown
    assert report.run.time and dict(report.run.versions)["torch"]


def test_outputs(script, tmp_path):
    result = run(
        "--sarif", str(tmp_path / "s"), "--junit", str(tmp_path / "j"), "--markdown", str(tmp_path / "m"),
        "--github", script("with causaltrace.watch('violation'): pass"),
    )  # fmt: skip
    assert result.exit_code == 1
    assert all((tmp_path / name).stat().st_size for name in "sjm")
    assert "::error file=tests/report/samples.py,line=10," in result.stdout


def test_nothing_is_written_of_nothing(script, tmp_path):
    assert run("-o", str(tmp_path / "x.ctrace"), script("pass")).exit_code == 2
    assert not (tmp_path / "x.ctrace").exists()


def test_no_script_is_a_usage_error():
    assert run().exit_code == 2
    assert run("--no-such-option", "x.py").exit_code == 2


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("sys.exit()", 0), ("1 / 0", 1)])
def test_a_copy_of_the_process_has_its_own_end(script, end, code):
    """``os.fork`` in the script: one of the two prints the report, and the other ends as the script says."""
    path = script(f"""
        import os
        if not os.fork():
            {end}
        print("code", os.waitstatus_to_exitcode(os.wait()[1]))
    """)
    command = [sys.executable, "-m", "causaltrace", "run", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"code {code}\n" and done.returncode == 2
    assert done.stderr.count("causaltrace: the script opened no watch") == 1
    assert ("ZeroDivisionError" in done.stderr) == (code == 1)
