from __future__ import annotations

import pytest

from tests.cli.recordings import call, record
from tests.report import samples


def test_without_a_name_all_are_listed_and_the_worst_is_explained(tmp_path):
    result = call("explain", record(tmp_path, samples.violation()))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["CT003:37", "CT002:7", "CT006:50", "CT001:20"]
    assert "240 findings at tests/report/samples.py:10" in lines[0]
    assert "CT003: label x_255 → score of 37 (218 positions ahead)" in lines
    assert '  File "tests/report/samples.py", line 8, in fit' in lines
    assert sum(line.startswith("Path, ") for line in lines) == 1


@pytest.mark.parametrize(
    ("name", "explained"),
    [
        ("CT003", ["CT003: label x_255 → score of 37"]),
        ("ct003:41", ["CT003: label x_255 → score of 41"]),
        ("7", ["CT002: label x_7 → score of 7", "CT003: label x_255 → score of 7"]),
    ],
)
def test_a_finding_by_kind_and_position(tmp_path, name, explained):
    result = call("explain", record(tmp_path, samples.violation()), name)
    assert result.exit_code == 0
    found = [line for line in result.stdout.splitlines() if line.startswith("CT")]
    assert sorted(line.split(" (")[0] for line in found) == explained


@pytest.mark.parametrize("name", ["CT001:7", "999", "CT005", "nonsense!", "9" * 30])
def test_a_finding_that_is_not_there(tmp_path, name):
    result = call("explain", record(tmp_path, samples.violation()), name)
    assert result.exit_code == 2
    assert f"no finding {name}" in result.stderr


def test_nothing_to_explain(tmp_path):
    result = call("explain", record(tmp_path, samples.clean()))
    assert (result.exit_code, result.stdout) == (0, "causaltrace: 1 watch without findings\n")


def test_several_watches(tmp_path):
    result = call("explain", record(tmp_path, samples.clean(), samples.violation()))
    assert result.stdout.startswith("watch 2  CT003:37  ")
