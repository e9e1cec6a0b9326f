"""Normalisations: statistics couple the normalised elements, scale and shift join in."""

from __future__ import annotations

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


def rms_norm(op: OpCall) -> Result:
    """The composite as one op (inference mode): out = union over a row, | S(weight)."""
    x = op.tensor("input")
    n = len(op.args["normalized_shape"])
    row = _rows(op, op.cells("input"), list(range(x.ndim - n, x.ndim)))
    return op.lattice.join(row, op.lattice.everything(op.cells("weight"), x.ndim))


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
    dx = absorb(
        op, grad, row, lattice.everything(op.cells("weight"), x.ndim)
    )  # the row's mean mixes all weights
    dweight = lattice.reduce(absorb(op, grad, own, saved), outer, keepdim=False)
    dbias = lattice.reduce(own, outer, keepdim=False)
    return [dx, dweight, dbias][: len(op.out)]


def _channels(op: OpCall, vector: Cells | None, ndim: int) -> Cells | None:
    """A support per channel ``[C]`` for a tensor ``[N, C, ...]``."""
    return None if vector is None else op.lattice.reshaped(vector, (1, *vector.dims, *(1,) * (ndim - 2)))


def _others(ndim: int) -> list[int]:
    return [d for d in range(ndim) if d != 1]


def batch_norm(op: OpCall) -> Result:
    """Train mode: statistics over the batch and all positions, per channel; eval mode: running ones, which
    the train mode updates.

    Results: (out, mean, rstd, ...), then the running mean and variance where they are written.
    """
    lattice = op.lattice
    x = op.tensor("input")
    training = bool(op.get("training", op.get("train", op.name not in EVAL)))
    others = _others(x.ndim)
    c = op.cells("input")
    old = lattice.join(op.cells("running_mean"), op.cells("running_var"))
    per_channel = lattice.reduce(c, others, keepdim=False) if training else old
    weights = lattice.join(op.cells("weight"), op.cells("bias"))
    out = lattice.join(c, _channels(op, lattice.join(per_channel, weights), x.ndim))
    states = [id(op.args[n]) for n in ("running_mean", "running_var") if op.args.get(n) is not None]
    results: list[Cells | None] = []
    for i, extra in enumerate(op.out if isinstance(op.out, (tuple, list)) else [op.out]):
        if i == 0:
            results.append(out)
        elif id(extra) in states:
            results.append(lattice.join(op.of(extra), per_channel) if training else op.of(extra))
        elif isinstance(extra, Tensor) and extra.ndim == 1 and extra.numel() == x.shape[1]:
            results.append(per_channel)
        else:
            results.append(lattice.everything(per_channel, extra.ndim) if isinstance(extra, Tensor) else None)
    return results


#: Batch norms that have no ``training`` argument and use the running statistics.
EVAL = ("_native_batch_norm_legit_no_training", "_batch_norm_no_update")


def batch_norm_backward(op: OpCall) -> Result:
    """(dx, dweight, dbias). Train mode couples a channel's elements; in eval mode dx = grad * constants."""
    lattice = op.lattice
    name = "grad_out" if "grad_out" in op.args else "grad_output"
    grad = op.tensor(name)
    n, others = grad.ndim, _others(grad.ndim)
    own, c = op.cells(name), op.cells("input")
    training = bool(op.get("train", op.get("update", op.get("training", True))))
    saved = ("save_mean", "save_invstd", "save_var") if training else ("running_mean", "running_var")
    stats = _channels(op, lattice.join(*[op.cells(s) for s in saved]), n)
    scale = _channels(op, op.cells("running_var"), n)  # all that dx reads of them in eval mode
    weight = _channels(op, op.cells("weight"), n)
    moved = absorb(op, grad, own, lattice.join(c, stats))
    channel = lattice.reduce(moved, others)
    if training:
        dx = absorb(op, grad.ne(0).any(0, keepdim=True).to(grad.dtype), lattice.reduce(own, others),
                    lattice.join(c, lattice.reduce(c, others), stats, weight))  # fmt: skip
        dx = lattice.join(dx, channel)
    else:
        dx = absorb(op, grad, own, lattice.join(scale, weight))
    dweight = lattice.reduce(moved, others, keepdim=False)
    return [dx, dweight, lattice.reduce(own, others, keepdim=False)]


def _grouped(op: OpCall, c: Cells | None, groups: int) -> Cells | None:
    """Union over the positions and the channels of a group; the channels stay."""
    if c is None:
        return None
    lattice = op.lattice
    c = lattice.reduce(c, range(2, len(c.dims)))
    assert c is not None
    channels = c.dims[1]
    if channels in (1, groups):
        return c
    if groups == 1:
        return lattice.reduce(c, [1])
    split = lattice.reshaped(c, (c.dims[0], groups, channels // groups, *c.dims[2:]))
    joined = lattice.reduce(split, [2])
    assert joined is not None
    dims = c.dims
    return lattice.move(joined, lambda data: data.expand(*split.dims, -1).reshape(*dims, data.shape[-1]))


def _per_group(op: OpCall, c: Cells | None, groups: int) -> Cells | None:
    """``_grouped`` as a support of the statistics ``[N, groups]``."""
    grouped = _grouped(op, c, groups)
    if grouped is None or grouped.dims[1] in (1, groups):
        return None if grouped is None else op.lattice.reshaped(grouped, grouped.dims[:2])
    step = grouped.dims[1] // groups
    return op.lattice.reshaped(
        op.lattice.move(grouped, lambda data: data[:, ::step]), (grouped.dims[0], groups)
    )


def group_norm(op: OpCall) -> Result:
    """(out, mean, rstd): statistics per sample and group of channels, over all positions."""
    lattice = op.lattice
    x, groups = op.tensor("input"), op.args["group"]
    c = op.cells("input")
    weights = lattice.join(op.cells("weight"), op.cells("bias"))
    out = lattice.join(_grouped(op, c, groups), _channels(op, weights, x.ndim))
    stats = _per_group(op, c, groups)
    return [out, stats, stats]


def _spread(op: OpCall, stats: Cells | None, x: Tensor) -> Cells | None:
    """Statistics ``[N, groups]`` over the channels and positions that they are of."""
    if stats is None:
        return None
    batch, groups = stats.dims
    if groups not in (1, x.shape[1]):
        stats = op.lattice.move(stats, lambda data: data.repeat_interleave(x.shape[1] // groups, 1))
        groups = x.shape[1]
    return op.lattice.reshaped(stats, (batch, groups, *(1,) * (x.ndim - 2)))


def group_norm_backward(op: OpCall) -> Result:
    """(dx, dweight, dbias); a group of zero gradient stays zero."""
    lattice = op.lattice
    grad, x, groups = op.tensor("grad_out"), op.tensor("input"), op.args["group"]
    own, c = op.cells("grad_out"), op.cells("input")
    stats = _spread(op, lattice.join(op.cells("mean"), op.cells("rstd")), x)
    weight = _grouped(op, _channels(op, op.cells("weight"), x.ndim), groups)
    if not x.numel():
        return [None, None, None]
    some = grad.ne(0).reshape(x.shape[0], groups, -1).any(-1).repeat_interleave(x.shape[1] // groups, 1)
    some = some.reshape(*some.shape, *(1,) * (x.ndim - 2)).to(grad.dtype)
    dx = absorb(op, some, _grouped(op, own, groups), lattice.join(_grouped(op, c, groups), stats, weight))
    moved = absorb(op, grad, own, lattice.join(c, stats))
    dweight, dbias = (lattice.reduce(k, _others(x.ndim), keepdim=False) for k in (moved, own))
    return [dx, dweight, dbias]


def weight_norm(op: OpCall) -> Result:
    """_weight_norm_interface: (g * v / norm(v), norm(v)), norms over all dims but ``dim``."""
    lattice = op.lattice
    v, dim = op.tensor("v"), op.get("dim", 0)
    norm = lattice.reduce(op.cells("v"), [d for d in range(v.ndim) if d != dim % v.ndim])
    return [lattice.join(norm, op.cells("g")), norm]


def weight_norm_backward(op: OpCall) -> Result:
    """(dv, dg): union over all dims but ``dim``."""
    lattice = op.lattice
    v, dim = op.tensor("saved_v"), op.get("dim", 0)
    others = [d for d in range(v.ndim) if d != dim % v.ndim]
    row = lattice.reduce(lattice.join(op.cells("grad_w"), op.cells("saved_v")), others)
    return [lattice.join(row, op.cells("saved_g"), op.cells("saved_norms"))] * 2


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
    row = absorb(op, grad, _rows(op, own, inner), saved)
    dx = absorb(op, grad, row, lattice.everything(op.cells("weight"), x.ndim))
    return [dx, lattice.reduce(absorb(op, grad, own, saved), outer, keepdim=False)]
