"""Recurrent layers that run as one op (LSTM on CPU, all of them on GPUs): a running union over time, batch by
batch.

S(out[t]) = union of S(x[s]) over s <= t (``reverse``: s >= t) | S(first state) | S(weights). Other recurrent
layers, and those over packed sequences, run as elementary operations, or as fused cells.
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


# -- GPUs: several layers and both directions in one op, or one step of a cell ----------------------------


def _batch_row(op: OpCall, c: Cells | None, dim: int) -> Cells | None:
    """One value for each batch row: everything in the other dims of ``[., ., .]``."""
    return op.lattice.reduce(c, [d for d in range(3) if d != dim])


def _gpu_rows(op: OpCall, names: str) -> tuple[Cells | None, Cells | None]:
    """What every step of a batch row depends on, as ``[1, batch, 1]``: S(states) | S(weights), and what
    else is in ``names``."""
    lattice, time = op.lattice, 1 if op.args["batch_first"] else 0
    weights = lattice.join(
        *[
            lattice.everything(op.of(t), 3)
            for t in (*op.args["weight"], op.get("weight_buf"), op.get("dropout_state"))
        ]
    )
    states = [_batch_row(op, op.cells(name), 1) for name in ("hx", "cx")]
    steps = [_batch_row(op, op.cells(name), 1 - time) for name in names.split()]
    steps = [
        lattice.move(c, lambda data: data.transpose(0, 1)) if c is not None and time else c for c in steps
    ]
    return lattice.join(*states, weights), lattice.join(*steps)


def gpu_layers(op: OpCall) -> Result:
    """_cudnn_rnn, miopen_rnn: (out, last hidden state, last cell state, reserve, weights)."""
    lattice, x, both = op.lattice, op.tensor("input"), bool(op.args["bidirectional"])
    if x.ndim != 3 or op.args["batch_sizes"]:  # packed
        return whole(op)
    time = 1 if op.args["batch_first"] else 0
    fixed, row = _gpu_rows(op, "input")
    steps = lattice.reduce(op.cells("input"), [FEATURE])
    if both and op.args["num_layers"] > 1:  # the second layer sees both ends
        steps = lattice.reduce(steps, [time])
    elif both and steps is not None:
        half = op.out[0].shape[-1] // 2
        ends = [lattice.running(steps, time, reverse) or steps for reverse in (False, True)]
        size = (-1, -1, half, -1)
        steps = lattice.make(lambda *data: torch.cat([d.expand(size) for d in data], 2), *ends)
    else:
        steps = lattice.running(steps, time)
    _, _, cell, *rest = op.out
    turned = fixed
    if time and fixed is not None:
        turned = lattice.move(fixed, lambda data: data.transpose(0, 1))
    every = lattice.join(fixed, row)
    made: list[Cells | None] = [lattice.join(steps, turned), every, every if cell.numel() else None]
    return made + [lattice.everything(every, t.ndim) for t in rest]


def gpu_layers_backward(op: OpCall) -> Result:
    """(input, first states, weights): everything in a batch row; weights: all of it."""
    lattice, x = op.lattice, op.tensor("input")
    if x.ndim != 3 or op.args["batch_sizes"]:
        return whole(op)
    fixed, row = _gpu_rows(op, "input output grad_output")
    grads = [_batch_row(op, op.cells(name), 1) for name in ("grad_hy", "grad_cy")]
    every = lattice.join(fixed, row, *grads)
    turned = every
    if op.args["batch_first"] and every is not None:
        turned = lattice.move(every, lambda data: data.transpose(0, 1))
    no_cell = isinstance(op.out[2], Tensor) and not op.out[2].numel()
    made: list[Cells | None] = [turned, every, None if no_cell else every]
    return made + [lattice.everything(every, t.ndim) for t in op.out[3]]


def gpu_cell(op: OpCall) -> Result:
    """One step of a fused cell, forward or backward: S(row) of all that has rows | S(biases); sums over rows
    hold all of them."""
    lattice = op.lattice
    batch = max(t.shape[0] for t in op.inputs() if t.ndim == 2)
    parts = [
        lattice.reduce(op.of(t), [1]) if t.ndim == 2 else lattice.everything(op.of(t), 2) for t in op.inputs()
    ]
    row = lattice.join(*parts)
    return [row if t.ndim == 2 and t.shape[0] == batch else lattice.everything(row, t.ndim) for t in op.out]
