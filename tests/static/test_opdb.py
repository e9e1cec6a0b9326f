"""PyTorch's test database without values: an audit reports all that a watch of the same call does."""

from __future__ import annotations

import pytest
import torch

import causaltrace
from causaltrace.depends import follow
from tests.opdb.samples import Sample, all_ops, samples
from tests.static.blind import blind

SHARDS = 8
#: Input elements that are told apart.
WINDOW = 128


def missed(sample: Sample) -> bool | None:
    """Does a watch report what an audit does not? None: there is no answer without values."""
    window = range(min(WINDOW, sum(t.numel() for t in sample.inputs)))
    try:
        seen = follow(sample.fn, sample.inputs, window).members
    except (RuntimeError, TypeError, AssertionError):
        return None  # a call that is an error, or gives no tensor
    try:
        reported = blind(sample.fn, sample.inputs, window).members
    except (causaltrace.AuditError, NotImplementedError):
        return None
    except RuntimeError as error:
        if "not allocated" not in str(error):
            raise
        return None
    return any(bool((a & ~b).any()) for a, b in zip(seen, reported, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_dependency_is_missed(shard: int) -> None:
    judged = 0
    for i, (name, op) in enumerate(all_ops().items()):
        if i % SHARDS == shard:
            for sample in samples(name, op, limit=2):
                found = missed(sample)
                assert not found, sample.text
                judged += found is not None
    assert judged > 150


def test_values_that_are_not_known_cut_nothing() -> None:
    weights = torch.zeros(3, 3)

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    window = range(18)
    seen = follow(fn, (torch.ones(3, 3), weights), window).members[0]
    assert blind(fn, (torch.ones(3, 3), weights), window).members[0][..., :9].any()
    assert not seen[..., :9].any()
