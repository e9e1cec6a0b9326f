"""``check_rule`` finds rules that miss a flow, and says how much larger than the truth the others are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace import rules
from causaltrace.custom import Call, Support, everything
from causaltrace.testing import RuleCheck, check_rule


def test_built_in_rules_and_any_function() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    assert check_rule(torch.ops.aten.cumsum, x, 1) == RuleCheck(24, 24)
    assert check_rule(lambda a, b: F.layer_norm(a, (3,), b), x, torch.randn(3)).exact
    assert check_rule(F.embedding, torch.tensor([0, 2, 1]), torch.randn(3, 2)).exact
    assert check_rule(torch.where, torch.tensor([True, False]), torch.randn(2), torch.randn(2)).exact
    assert check_rule(F.dropout, torch.randn(8), p=0.5).exact
    larger = check_rule(lambda a: a - a + 1, x.detach())
    assert (larger.true, larger.ratio, larger.exact) == (0, float("inf"), False)


@pytest.fixture
def mean_of_others() -> str:
    """``out[i]`` is the mean of all but element i."""
    try:
        torch.library.define("ct_testing::others", "(Tensor x) -> Tensor")
        torch.library.impl("ct_testing::others", "CPU", lambda x: (x.sum() - x).round(decimals=4) + 0)
    except RuntimeError:
        pass  # defined by another test
    return "ct_testing::others"


def test_missed_flows_are_listed(mean_of_others: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "TABLE", dict(rules.TABLE))
    with pytest.raises(AssertionError, match=r"no rule covers ct_testing\.others\.default: register one"):
        check_rule(mean_of_others, torch.randn(4))

    @causaltrace.register_rule(mean_of_others)
    def rule(op: Call) -> Support:
        return op.support("x")

    with pytest.raises(AssertionError) as error:
        check_rule(mean_of_others, torch.randn(4))
    first, *lines = str(error.value).splitlines()
    assert first == "the rules of ct_testing::others miss 12 flows:"
    assert lines[0] == "  output 0 [1] changes with argument 0 [0]"
    assert lines[-1] == "  ... and 4 more" and len(lines) == 9


def test_a_rule_that_is_too_large_passes_with_its_ratio(
    mean_of_others: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "TABLE", dict(rules.TABLE))
    causaltrace.register_rule(mean_of_others)(everything)
    found = check_rule(mean_of_others, torch.randn(4))
    assert not found.exact and 1 < found.ratio < 1.5


def test_flows_that_need_two_elements_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No single change shows in the median of three alike; two do."""
    torch.library.define("ct_testing::middle", "(Tensor x) -> Tensor")
    torch.library.impl("ct_testing::middle", "CPU", lambda x: x.median().clone())
    monkeypatch.setattr(rules, "TABLE", dict(rules.TABLE))
    causaltrace.register_rule("ct_testing::middle")(lambda op: op.nothing())
    with pytest.raises(AssertionError, match=r"output 0 \[\] changes with several elements"):
        check_rule("ct_testing::middle", torch.ones(3))


def test_values_and_refusals() -> None:
    def picked(x: Tensor, i: Tensor) -> Tensor:
        if int(i) not in (0, 77):
            raise ValueError(i)
        return x[i % 5]

    x, i = torch.randn(5), torch.tensor(0)
    assert check_rule(picked, x, i).unchanged == 1
    assert check_rule(picked, x, i, values={1: [77]}).unchanged == 0
    with pytest.raises(ValueError, match="no input element could be changed"):
        check_rule(lambda i: picked(x, i), i)
    with pytest.raises(ValueError, match="no elements"):
        check_rule(lambda x: x[:0], x)


def test_functions_without_a_ground_truth() -> None:
    calls: list[int] = []

    def counting(x: Tensor) -> Tensor:
        calls.append(1)
        return x + len(calls)

    with pytest.raises(ValueError, match="other results when it is run again"):
        check_rule(counting, torch.randn(2))


def test_random_numbers_are_left_as_they_were() -> None:
    before = torch.get_rng_state()
    check_rule(F.dropout, torch.randn(4), p=0.5)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    torch.randn(4)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_watch_does_not_load_it() -> None:
    code = (
        "import sys, causaltrace.cli; print([m for m in sys.modules if m.endswith(('testing', 'perturb'))])"
    )
    root = str(Path(causaltrace.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert "causaltrace" not in result.stdout
