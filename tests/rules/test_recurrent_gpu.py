"""Kernels that only GPUs have: their rules, called by hand, against layers of the same shape on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causaltrace.lattice.cells import Algebra, Cells
from causaltrace.lattice.horizon import Horizon
from causaltrace.rules import recurrent
from causaltrace.rules.call import OpCall
from causaltrace.site import Site
from tests.oracle import leaves
from tests.rules.test_pointwise import rand

Compute = Callable[..., list[Tensor]]


def judge(
    rule: Callable[[OpCall], Any], args: dict[str, Any], inputs: list[Tensor], compute: Compute, out: Any
) -> list[tuple[Tensor, Tensor]]:
    """(reported, true) latest element for every output that ``compute`` gives; the inputs are numbered."""
    cells: dict[int, Cells] = {}
    first = 0
    for t in inputs:
        where = torch.arange(first, first + t.numel(), dtype=torch.int32).view(*t.shape, 1)
        cells[id(t)] = Cells((where * 2 + 1).expand(*t.shape, 2).contiguous())
        first += t.numel()
    algebra = Algebra(lambda: Site("forward", "rnn", __file__, 0), Horizon())
    result = rule(OpCall("rnn", args, lambda t: cells.get(id(t)), algebra, out=out))
    made = leaves(list(out))
    assert len(result) == len(made)
    for t, c in zip(made, result, strict=True):
        assert (
            c is None
            or len(c.dims) == t.ndim
            and all(n in (1, m) for n, m in zip(c.dims, t.shape, strict=True))
        )
    base = compute(*inputs)
    true = [torch.full(t.shape, -1) for t in base]
    number = 0
    for i, t in enumerate(inputs):
        for e in range(t.numel()):
            for delta in (0.7, -1.3):
                changed = [s.clone() for s in inputs]
                changed[i].view(-1)[e] += delta
                for seen, a, b in zip(true, base, compute(*changed), strict=True):
                    seen[a != b] = number
            number += 1
    got = []
    for t, c in zip(base, result, strict=False):
        lane = torch.full(t.shape, -1) if c is None else (c.data[..., 0] >> 1).expand(t.shape)
        assert bool((lane >= -1).all())
        got.append(lane)
    return list(zip(got, true, strict=True))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers(kind: type[nn.RNNBase], layers: int, both: bool, batch_first: bool) -> None:
    torch.manual_seed(1)
    model = kind(1, 2, num_layers=layers, bidirectional=both, batch_first=batch_first).double()
    model.requires_grad_(False)
    weights = [p.detach() for p in model.parameters()]
    count = layers * (1 + both)
    x = rand(2, 3, 1).double() if batch_first else rand(3, 2, 1).double()
    states = [rand(count, 2, 2, seed=s).double() for s in range(1, 3 if kind is nn.LSTM else 2)]

    def compute(*given: Tensor) -> list[Tensor]:
        *state, x = given
        out, last = model(x, tuple(state) if len(state) > 1 else state[0])
        return [out, *(last if len(state) > 1 else [last])]

    out, *last = compute(*states, x)
    made = [out, last[0], last[1] if len(last) > 1 else x.new_zeros(0), torch.zeros(7), torch.zeros(9)]
    args = {
        "input": x, "weight": weights, "weight_buf": None, "hx": states[0],
        "cx": states[1] if len(states) > 1 else None, "num_layers": layers, "batch_first": batch_first,
        "bidirectional": both, "batch_sizes": [], "dropout_state": None,
    }  # fmt: skip
    for i, (got, true) in enumerate(judge(recurrent.gpu_layers, args, [*states, x], compute, made)):
        assert bool((got >= true).all())
        if i == 0 and (layers == 1 or not both):
            assert torch.equal(got.amax(-1), true.amax(-1))  # single features need not read all of a state


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_of_layers(kind: type[nn.RNNBase], batch_first: bool) -> None:
    torch.manual_seed(1)
    model = kind(1, 2, batch_first=batch_first).double()
    x = rand(2, 3, 1).double() if batch_first else rand(3, 2, 1).double()
    states = [rand(1, 2, 2, seed=s).double() for s in range(1, 3 if kind is nn.LSTM else 2)]

    def compute(*given: Tensor) -> list[Tensor]:
        *state, x, grad, grad_last = given
        leaf = [t.clone().requires_grad_() for t in (x, *state)]
        out, last = model(leaf[0], tuple(leaf[1:]) if len(state) > 1 else leaf[1])
        last = last[0] if len(state) > 1 else last
        made = torch.autograd.grad((out, last), [*leaf, *model.parameters()], (grad, grad_last))
        return [
            *made[: 1 + len(state)],
            *([] if len(state) > 1 else [x.new_zeros(0)]),
            *made[1 + len(state) :],
        ]

    out = model(x)[0].detach().contiguous()
    grad, grad_last = torch.randn_like(out), rand(1, 2, 2, seed=5).double()
    given = [*states, x, grad, grad_last]
    first, *rest = compute(*given)
    args = {
        "input": x, "weight": list(model.parameters()), "hx": states[0],
        "cx": states[1] if len(states) > 1 else None, "output": out, "grad_output": grad,
        "grad_hy": grad_last, "grad_cy": None, "batch_first": batch_first, "batch_sizes": [],
        "dropout_state": None,
    }  # fmt: skip
    made = (first, rest[0], rest[1], rest[2:])
    for got, true in judge(recurrent.gpu_layers_backward, args, given, compute, made):
        assert bool((got >= true).all())


def test_cells() -> None:
    gates, hidden, cell, bias = (
        rand(*shape, seed=s).double() for s, shape in enumerate([(2, 8), (2, 8), (2, 2), (8,)])
    )

    def compute(gates: Tensor, hidden: Tensor, cell: Tensor, bias: Tensor) -> list[Tensor]:
        i, f, g, o = (gates + hidden + bias).chunk(4, 1)
        new = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return [o.sigmoid() * new.tanh(), new, gates + hidden + bias]

    given = [bias, gates, hidden, cell]
    args = {"input_gates": gates, "hidden_gates": hidden, "cx": cell, "input_bias": bias}
    out = compute(gates, hidden, cell, bias)
    found = judge(recurrent.gpu_cell, args, given, lambda b, g, h, c: compute(g, h, c, b), (*out[:2], out[2]))
    assert all(bool((got >= true).all()) for got, true in found)
    assert torch.equal(found[0][0].amax(1), found[0][1].amax(1))


def test_sums_over_the_rows_of_a_cell() -> None:
    """Gradients of biases, ``[8]``, among gradients with rows."""
    grad, saved = rand(2, 2).double(), rand(2, 8, seed=1).double()

    def compute(grad: Tensor, saved: Tensor) -> list[Tensor]:
        gates = grad.repeat(1, 4) * saved
        return [gates, grad * saved[:, :2], gates.sum(0)]

    args = {"grad_hy": grad, "grad_cy": None, "workspace": saved, "has_bias": True}
    out = compute(grad, saved)
    for got, true in judge(recurrent.gpu_cell, args, [grad, saved], compute, out):
        assert bool((got >= true).all())
