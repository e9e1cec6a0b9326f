from __future__ import annotations

import pytest

from causaltrace.cli.exits import exit_code
from tests.report import samples

C, V, U = samples.clean(), samples.violation(), samples.unverified()


@pytest.mark.parametrize(
    ("reports", "failed", "code"),
    [([C], False, 0), ([V], False, 1), ([U], False, 3), ([C, U, V], False, 1), ([U, C], False, 3)]
    + [([], False, 2), ([V], True, 2), ([], True, 2)],
)
def test_error_beats_violation_beats_unverified_beats_clean(reports, failed, code):
    assert exit_code(reports, failed) == code
