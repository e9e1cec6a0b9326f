"""The public names, and that they are loaded only when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import causaltrace


def test_every_public_name_is_there():
    assert sorted(name for names in causaltrace._HOMES.values() for name in names) == causaltrace.__all__
    for name in causaltrace.__all__:
        assert getattr(causaltrace, name).__name__ == name
    assert set(causaltrace.__all__) <= set(dir(causaltrace))
    assert not hasattr(causaltrace, "no_such_name")


@pytest.mark.parametrize(
    "code",
    [
        "import causaltrace",
        "import causaltrace.cli",
        "from causaltrace import Finding, Notice, Report",
        "import causaltrace.report.recording, causaltrace.report.sarif, causaltrace.report.text",
    ],
)
def test_reading_reports_needs_no_torch(code):
    check = f"{code}\nimport sys\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize(
    "first", ["import causaltrace.watcher", "from causaltrace.watcher import Watch", "pass"]
)
def test_watch_is_the_function_whatever_was_imported_first(first):
    check = f"{first}\nimport causaltrace\nassert callable(causaltrace.watch)"
    subprocess.run([sys.executable, "-c", check], check=True)
