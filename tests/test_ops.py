"""How each operation of a watch was handled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace import rules
from causaltrace.custom import elementwise
from causaltrace.report.model import OpUse
from tests.small import Toy, applied, stream


@torch.library.custom_op("ct_ops::known", mutates_args=())
def known(x: Tensor) -> Tensor:
    return x * 1


@torch.library.custom_op("ct_ops::unknown", mutates_args=())
def unknown(x: Tensor) -> Tensor:
    return x * 1


def test_every_operation_is_listed_with_how_it_was_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "TABLE", dict(rules.TABLE))
    causaltrace.register_rule(known)(elementwise)
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.inference_mode():
        x = unknown(known(model(tokens[:-1])))
        x.add_(1).sin_()
        torch._foreach_mul_([x], 2.0)
        x = torch.add(x, 1, out=torch.empty_like(x))
        F.cross_entropy(F.linear(x, torch.eye(x.shape[-1])), tokens[1:], reduction="sum").item()
        unknown(torch.zeros(3))
    ops = {use.op: use for use in trace.report.ops}
    assert ops["ct_ops.unknown.default"] == OpUse("ct_ops.unknown.default", 2, "conservative")
    registered = ops["ct_ops.known.default"]
    assert (registered.calls, registered.handled) == (1, "registered") and __file__ in registered.detail
    expected = {
        "aten.add_.Tensor": ("derived", "add, in place"),
        "aten.sin_.default": ("derived", "element-wise, by its tag"),
        "aten._foreach_mul_.Scalar": ("derived", "mul, tensor by tensor"),
        "aten.add.out": ("derived", "add, written to out="),
        "aten.slice.Tensor": ("derived", "a view of its input"),
        "aten.cross_entropy_loss.default": ("decomposed", ""),
        "aten.nll_loss_forward.default": ("rule", ""),
    }
    assert {op: (ops[op].handled, ops[op].detail) for op in expected} == expected
    assert [use.handled for use in trace.report.ops[:2]] == ["conservative", "registered"]
    assert trace.report.opaque[0].count == 1  # no label reached the other call


def test_higher_order_operators_are_listed() -> None:
    with causaltrace.watch(stream()) as trace:
        applied(lambda x: x + 1, (torch.zeros(2),))
    assert trace.report.ops[0] == OpUse("higher_order.ct_applied", 1, "conservative")
