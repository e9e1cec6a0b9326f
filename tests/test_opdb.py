"""A slice of PyTorch's test database: no rule misses a dependency. ``make test-full`` runs all of it."""

from __future__ import annotations

import pytest

from tests.opdb.__main__ import run
from tests.opdb.samples import EXCLUDED, LARGER, PLACING, TRUSTING, all_ops

SHARDS = 24


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_dependency_is_missed(shard: int) -> None:
    problems: list[str] = []
    judged = 0
    for i, name in enumerate(all_ops()):
        if i % SHARDS == shard:
            row = run(name, limit=1, only=None, elements=4, values=3)
            problems += row.problems
            judged += row.counts["samples"]
    assert not problems, "\n".join(problems)
    assert judged > len(all_ops()) / SHARDS / 2


def test_what_is_excluded_exists() -> None:
    assert {*EXCLUDED, *LARGER, *PLACING, *TRUSTING} <= set(all_ops())
