"""Recurrent layers that run as one op (LSTM on CPU): a running union over time, batch by batch.

S(out[t]) = union of S(x[s]) over s <= t (``reverse``: s >= t) | S(first state) | S(weights). Other recurrent
layers, and those over packed sequences, run as elementary operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, live
from causaltrace.rules.reduce import whole

#: The dims of an input: time, batch, feature.
TIME, FEATURE = 0, 2


def _state(op: OpCall, name: str) -> Cells | None:
    """A state ``[batch, feature]`` as ``[time, batch, feature]``."""
    c = op.cells(name)
    return None if c is None else op.lattice.aligned(op.lattice.reduce(c, [len(c.dims) - 1]) or c, 3)


def _weights(op: OpCall, names: str) -> Cells | None:
    return op.lattice.join(*[op.lattice.everything(op.cells(name), 3) for name in names.split()])


def _as_state(op: OpCall, c: Cells | None, ndim: int) -> Cells | None:
    """The union over time, as a state."""
    c = op.lattice.reduce(c, [TIME])
    return None if c is None else op.lattice.aligned(op.lattice.squeeze(c, [TIME]), ndim)


def layer(op: OpCall) -> Result:
    """mkldnn_rnn_layer: (out, last hidden state, last cell state, workspace)."""
    if op.tensor("input").ndim != 3 or op.get("batch_sizes"):  # packed
        return whole(op)
    lattice = op.lattice
    steps = lattice.reduce(op.cells("input"), [FEATURE])
    steps = lattice.running(steps, TIME, bool(op.args["reverse"]))
    weights = _weights(op, "weight0 weight1 weight2 weight3")
    out = lattice.join(steps, _state(op, "hx_"), _state(op, "cx_"), weights)
    _, hidden, cell, workspace = op.out
    return [
        out,
        _as_state(op, out, hidden.ndim),
        _as_state(op, out, cell.ndim),
        lattice.everything(out, workspace.ndim) if isinstance(workspace, Tensor) else None,  # None: no grad
    ]


def _reached(op: OpCall) -> Tensor:
    """``[time, batch, 1]``: does a gradient that is not 0 arrive at, or flow back to, this step?"""
    x, grad = op.tensor("input"), op.args.get("grad_output")
    mask = torch.zeros(*x.shape[:2], 1, dtype=torch.bool, device=x.device)
    if isinstance(grad, Tensor):
        mask = live(grad, (0, 1)).expand(mask.shape)
        later = mask if op.args["reverse"] else mask.flip(TIME)  # towards the first step of the layer
        later = later.cumsum(TIME) > 0
        mask = later if op.args["reverse"] else later.flip(TIME)
    for name in ("grad_hy", "grad_cy"):
        grad = op.args.get(name)
        if isinstance(grad, Tensor):
            mask = mask | live(grad, (grad.ndim - 2,)).reshape(1, -1, 1)
    return mask


def layer_backward(op: OpCall) -> Result:
    """(input, four weights, first hidden state, first cell state).

    A gradient flows back in time, through gates that depend on all steps before them:
    S(grad x[t]) = union of S(grad out[s]) over s >= t | S(grad last states), and, if any of these is not 0,
    | S(x[s]), S(out[s]) of all steps that a gradient reaches | S(states) | S(weights). The workspace holds
    nothing that these do not.
    """
    if op.tensor("input").ndim != 3 or op.get("batch_sizes"):
        return whole(op)
    lattice, mask = op.lattice, _reached(op)
    final = mask[:1] if op.args["reverse"] else mask[-1:]
    own = lattice.running(lattice.reduce(op.cells("grad_output"), [FEATURE]), TIME, not op.args["reverse"])
    own = lattice.join(own, _state(op, "grad_hy"), _state(op, "grad_cy"))
    steps = lattice.reduce(lattice.join(op.cells("input"), op.cells("output")), [FEATURE])
    last = lattice.join(_state(op, "hy_"), _state(op, "cy_"))
    read = lattice.join(
        lattice.reduce(lattice.keep(steps, mask), [TIME]),
        lattice.keep(last, final),
        _state(op, "hx_"),
        _state(op, "cx_tmp"),
        _weights(op, "weight1 weight2 weight3 weight4"),
    )
    grads = lattice.join(own, lattice.keep(read, mask))
    made: list[Cells | None] = [grads]
    made += [lattice.everything(grads, t.ndim) if isinstance(t, Tensor) else None for t in op.out[1:5]]
    made += [_as_state(op, grads, t.ndim) if isinstance(t, Tensor) else None for t in op.out[5:]]
    return made
