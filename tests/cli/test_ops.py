"""``causaltrace ops``: by itself with a stand-in for the engine, and with the real one in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import causaltrace
from causaltrace.cli import app

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(causaltrace.__file__).parents[1])}
EVAL = """
import torch
import causaltrace

@torch.library.custom_op("ct_cli::gate", mutates_args=())
def gate(x: torch.Tensor) -> torch.Tensor:
    return x * 2

torch.manual_seed(0)
tokens = torch.randint(0, 11, (33,))
emb, head = torch.nn.Embedding(11, 8), torch.nn.Linear(8, 11)
causaltrace.label(tokens)
with torch.no_grad():
    logits = head(gate(emb(tokens[:-1])))
    print(torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum").item())
"""
RULE = (
    "import causaltrace.custom\ncausaltrace.register_rule('ct_cli::gate')(causaltrace.custom.elementwise)\n"
)


@pytest.mark.parametrize(("rule", "code", "handled"), [("", 3, "conservative"), (RULE, 0, "registered")])
def test_operations_of_a_script(tmp_path: Path, rule: str, code: int, handled: str) -> None:
    script, out = tmp_path / "my_eval.py", tmp_path / "report.json"
    script.write_text(EVAL.replace("torch.manual_seed", rule + "torch.manual_seed"))
    command = [sys.executable, "-m", "causaltrace", "ops", "--json", str(out), str(script)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert result.returncode == code, result.stdout + result.stderr
    assert f"    1  ct_cli.gate          {handled}" in result.stdout
    site = "my_eval.py:14" in result.stdout and "remedy: write a rule for it" in result.stdout
    assert site == (handled == "conservative"), result.stdout
    ops = {op: row for op, *row in json.loads(out.read_text())["ops"]}
    assert ops["ct_cli.gate.default"][:2] == [1, handled]
    assert ops["aten.nll_loss_forward.default"] == [1, "rule", ""]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("verdict", "code"), [("clean", 0), ("violation", 1), ("unverified", 3)])
def test_exit_codes_are_those_of_run(tmp_path: Path, verdict: str, code: int) -> None:
    script = tmp_path / "my_eval.py"
    script.write_text(f"import causaltrace\nwith causaltrace.watch({verdict!r}): pass\n")
    result = CliRunner().invoke(app, ["ops", str(script)])
    assert result.exit_code == code and f"causaltrace: {verdict.upper()}" in result.stdout


@pytest.mark.usefixtures("engine")
def test_errors_are_those_of_run(tmp_path: Path) -> None:
    script = tmp_path / "my_eval.py"
    script.write_text("1 / 0\n")
    result = CliRunner().invoke(app, ["ops", str(script)])
    assert result.exit_code == 2 and "ZeroDivisionError" in result.stderr
    script.write_text("pass\n")
    result = CliRunner().invoke(app, ["ops", str(script)])
    assert result.exit_code == 2 and "opened no watch" in result.stderr
