"""Normalisations: statistics couple the normalised elements, scale and shift join in."""

from __future__ import annotations

import math

from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, absorb


def _rows(op: OpCall, c: Cells | None, dims: list[int]) -> Cells | None:
    return op.lattice.reduce(c, dims)


def _affine(op: OpCall, *names: str) -> Cells | None:
    """Scale and shift, aligned with the trailing dims of the input."""
    return op.lattice.join(*[op.cells(n) for n in names])


def layer_norm(op: OpCall) -> Result:
    """(out, mean, rstd): a row's statistics depend on the row; out adds weight and bias."""
    x = op.tensor("input")
    n = len(op.args["normalized_shape"])
    row = _rows(op, op.cells("input"), list(range(x.ndim - n, x.ndim)))
    out = op.lattice.join(row, _affine(op, "weight", "bias"))
    return [out, *[row] * (len(op.out) - 1)]


def layer_norm_backward(op: OpCall) -> Result:
    """(dx, dweight, dbias); rows of zero gradient stay zero."""
    lattice = op.lattice
    name = "input"
    grad, x = op.tensor("grad_out"), op.tensor(name)
    n = len(op.args["normalized_shape"])
    inner = list(range(x.ndim - n, x.ndim))
    outer = list(range(x.ndim - n))
    own = op.cells("grad_out")
    saved = _rows(op, lattice.join(op.cells(name), op.cells("mean"), op.cells("rstd")), inner)
    row = absorb(op, grad, _rows(op, own, inner), saved)
    dx = absorb(op, grad, row, op.cells("weight"))
    dweight = lattice.reduce(absorb(op, grad, own, saved), outer, keepdim=False)
    dbias = lattice.reduce(own, outer, keepdim=False)
    return [dx, dweight, dbias][: len(op.out)]


def batch_norm(op: OpCall) -> Result:
    """Train mode: statistics over the batch and all positions, per channel; eval mode: running ones.

    Results: (out, mean, rstd, ...), then the running mean and variance where they are written.
    """
    lattice = op.lattice
    x = op.tensor("input")
    training = bool(op.get("training", op.get("train", True)))
    others = [d for d in range(x.ndim) if d != 1]
    c = op.cells("input")

    def channels(name: str) -> Cells | None:
        vector = op.cells(name)
        return None if vector is None else lattice.reshaped(vector, (1, vector.dims[0], *(1,) * (x.ndim - 2)))

    stats = lattice.reduce(c, others)
    running = lattice.join(channels("running_mean"), channels("running_var"))
    used = stats if training else running
    out = lattice.join(c, used, channels("weight"), channels("bias"))
    per_channel = None if used is None else lattice.squeeze(used, others)
    state = lattice.join(op.cells("running_mean"), op.cells("running_var"), per_channel)
    results: list[Cells | None] = [out]
    count = len(op.out) if isinstance(op.out, (tuple, list)) else 1
    for extra in (op.out[1:] if count > 1 else ()):
        fits = isinstance(extra, Tensor) and extra.ndim == 1 and extra.numel() in (0, x.shape[1])
        results.append(per_channel if fits else _flat(op, extra, used))
    writes = 2 if training and "running_mean" in op.args and op.args["running_mean"] is not None else 0
    return results + [state] * writes if not op.name.endswith("no_stats") else results


def _flat(op: OpCall, t: object, c: Cells | None) -> Cells | None:
    out = op.lattice.everything(c)
    return op.lattice.reshaped(out, (1,) * t.ndim) if out is not None and isinstance(t, Tensor) else None


def group_norm(op: OpCall) -> Result:
    """(out, mean, rstd): statistics per sample and group of channels, over all positions."""
    lattice = op.lattice
    x = op.tensor("input")
    row = _rows(op, op.cells("input"), list(range(1, x.ndim)))

    def channels(name: str) -> Cells | None:
        vector = op.cells(name)
        return None if vector is None else lattice.reshaped(vector, (1, vector.dims[0], *(1,) * (x.ndim - 2)))

    out = lattice.join(row, channels("weight"), channels("bias"))
    stats = None if row is None else lattice.reshaped(row, (row.dims[0], 1))
    return [out, stats, stats]


def fused_rms_norm(op: OpCall) -> Result:
    """(out, rstd), as layer_norm without the mean."""
    return layer_norm(op)


def fused_rms_norm_backward(op: OpCall) -> Result:
    """(dx, dweight)."""
    lattice = op.lattice
    grad, x = op.tensor("grad_out"), op.tensor("input")
    n = len(op.args["normalized_shape"])
    inner, outer = list(range(x.ndim - n, x.ndim)), list(range(x.ndim - n))
    own = op.cells("grad_out")
    saved = _rows(op, lattice.join(op.cells("input"), op.cells("rstd")), inner)
    dx = absorb(op, grad, absorb(op, grad, _rows(op, own, inner), saved), op.cells("weight"))
    return [dx, lattice.reduce(absorb(op, grad, own, saved), outer, keepdim=False)]


def vector_norm(op: OpCall) -> Result:
    """linalg_vector_norm: union over the given dims."""
    x = op.tensor("self")
    return op.lattice.reduce(op.cells("self"), op.dims(), keepdim=bool(op.get("keepdim", False))) if math.prod(
        x.shape
    ) else None
