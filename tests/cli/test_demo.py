from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

import causaltrace
from causaltrace.cli import app


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A source checkout in ``tmp_path`` whose package is ours; returns a writer of its demo."""
    monkeypatch.setattr(causaltrace, "__file__", str(tmp_path / "causaltrace" / "__init__.py"))

    def write(text: str) -> None:
        (tmp_path / "examples").mkdir()
        (tmp_path / "examples" / "__init__.py").touch()
        (tmp_path / "examples" / "demo.py").write_text(text)

    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "examples"}
    yield write
    sys.modules.pop("examples", None)
    sys.modules.update(ours)


def test_demo_gets_its_arguments_and_its_exit_code_counts(checkout):
    checkout("import sys; print(sys.argv[1:]); sys.exit(3)")
    result = CliRunner().invoke(app, ["demo", "--json", "x", "--help"])
    assert "['--json', 'x', '--help']" in result.stdout
    assert result.exit_code == 3


def test_demo_that_fails_is_an_error(checkout):
    checkout("raise ValueError('no text')")
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2
    assert "ValueError: no text" in result.stderr


def test_installation_without_examples(checkout):
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2
    assert "source checkout" in result.stderr
