"""Losses at a label: the readouts. S(out) = S(row); the label itself is the target, not a cause."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, absorb, known
from causaltrace.rules.scatter import land

#: Elements of a gradient that are told apart class by class. In larger ones a position's classes share one
#: support: the log-softmax below joins them anyway.
CLASS_LIMIT = 1 << 12
MEAN = 1


def class_dim(op: OpCall) -> int:
    return 1 if op.tensor("self").ndim > 1 else 0


def rows(op: OpCall) -> Cells | None:
    """S(row) of every position: union over the class dim, less positions that are ignored."""
    if "linear_weight" in op.args:
        return _linear_rows(op)
    row = op.lattice.reduce(op.cells("self"), [class_dim(op)], keepdim=False)
    return op.lattice.keep(row, charged_at(_label(op), op.get("ignore_index", -100)))


def charged_at(label: Tensor, ignored: int) -> Tensor:
    """Which positions count. Labels that are not known are taken for class ids, which are never negative."""
    if known(label):
        return label != ignored
    if ignored >= 0:
        raise ValueError("whether a label that is not known is the ignored class")
    return torch.ones((), dtype=torch.bool).expand(label.shape)


def _label(op: OpCall) -> Tensor:
    """The target; a single row may have it as a vector, of which the first element counts."""
    target = op.tensor("target")
    return target.flatten()[:1].reshape(()) if target.ndim and op.tensor("self").ndim == 1 else target


def _label_cells(op: OpCall, c: Cells | None) -> Cells | None:
    return op.lattice.everything(c) if op.tensor("self").ndim == 1 else c


def _picked(op: OpCall, c: Cells | None, label: Tensor, dim: int) -> Cells | None:
    """S(the element that the label names along ``dim``), without this dim."""
    if c is None or c.dims[dim] == 1 or not known(label):
        return op.lattice.reduce(c, [dim], keepdim=False)
    at = label.clamp(0, c.dims[dim] - 1).unsqueeze(dim).unsqueeze(-1)
    return op.lattice.move(c, lambda data: data.take_along_dim(at, dim).squeeze(dim), held=at.numel() * 8)


def _class_weight(op: OpCall, c: Cells | None, label: Tensor) -> Cells | None:
    """S(weight of the class that the label names) of every position, from S(class weights)."""
    if c is None or c.uniform or not known(label):
        return op.lattice.everything(c, label.ndim)
    at = label.clamp(0, c.dims[0] - 1)
    return op.lattice.move(c, lambda data: data[at], held=at.numel() * 8)


def nll_loss(op: OpCall) -> Result:
    """(out, total_weight). Each position reads the element and the weight that its label names, if it is
    not ignored. ``op.selects``: the label is verbatim, so out is a readout: any element of the row could
    have been read, and only what else the index depends on joins in."""
    lattice, label = op.lattice, _label(op)
    index = _label_cells(op, op.cells("target"))
    if op.selects:
        return [lattice.join(rows(op), index, lattice.everything(op.cells("weight"), label.ndim)), None]
    charged = charged_at(label, op.get("ignore_index", -100))
    weight = lattice.keep(_class_weight(op, op.cells("weight"), label), charged)
    per = lattice.join(
        lattice.keep(_picked(op, op.cells("self"), label, class_dim(op)), charged), weight, index
    )
    reduction = op.get("reduction", MEAN)
    if reduction == 0:
        return [per, None]
    # who is ignored may be computed from labels
    counted = op.full(op.tensor("target")) if _weighs(op) else op.bare(op.tensor("target"))
    total = lattice.join(lattice.everything(counted), lattice.everything(weight))
    return [lattice.join(lattice.everything(per), total if reduction == MEAN else None), total]


def _weighs(op: OpCall) -> bool:
    """Can the total weight change with verbatim labels? Class ids are never negative, so a negative
    ignore_index cannot be one."""
    return isinstance(op.get("weight"), Tensor) or op.get("ignore_index", -100) >= 0


def nll_loss_backward(op: OpCall) -> Result:
    """grad_in[i, :] is 0 but at the label's column: S(grad_out[i]) | S(label_i) | S(its weight), and S(total
    weight) of a mean; the other columns are S(label_i). A zero gradient stays zero, unless it is divided by
    a total of 0. An ignored row is 0 because of its label alone."""
    lattice = op.lattice
    x, grad, label, dim = op.tensor("self"), op.tensor("grad_output"), _label(op), class_dim(op)
    own, named = op.cells("grad_output"), _label_cells(op, op.cells("target"))
    rest, total = lattice.join(_class_weight(op, op.cells("weight"), label), named), None
    if op.get("reduction", MEAN) == MEAN:
        total = lattice.everything(op.cells("total_weight"), x.ndim)
        grad = grad.masked_fill(op.tensor("total_weight") == 0, torch.nan)
    if grad.ndim:
        grad = grad.unsqueeze(dim)
        own = None if own is None else lattice.unsqueeze(own, dim)
    own = None if own is None else lattice.aligned(own, x.ndim)
    rest, named = (None if c is None else lattice.unsqueeze(c, dim) for c in (rest, named))
    read = absorb(op, grad, own, lattice.join(rest, total))
    label = label.unsqueeze(dim)
    ignored = op.get("ignore_index", -100)
    charged = charged_at(label, ignored)
    if x.numel() > CLASS_LIMIT or not known(label):
        return lattice.join(lattice.keep(read, charged), lattice.keep(named, ~charged))
    classes = torch.arange(x.shape[dim], device=x.device).reshape(-1, *(1,) * (x.ndim - 1 - dim))
    at, dead = charged & (label == classes), charged & (grad == 0)
    beside = lattice.join(lattice.keep(named, ~dead), lattice.keep(own, dead))
    # the column of the ignored class is 0 whatever the label
    return lattice.join(lattice.keep(read, at), lattice.keep(beside, ~at & (classes != ignored)))


def mse_like(op: OpCall) -> Result:
    """mse, l1, smooth_l1, huber, bce ...: element-wise, then reduced."""
    lattice = op.lattice
    out = lattice.join(*[op.of(t) for t in op.inputs()])
    return out if op.get("reduction", 1) == 0 else lattice.everything(out)


# -- losses of a whole row, ``[N, C]``: without a batch N is 1 ---------------------------------------------


def _one_class(op: OpCall) -> bool:
    """These compare classes: with one there is nothing to compare."""
    x = op.tensor("self")
    return x.ndim == 0 or x.shape[-1] == 1


def _several(op: OpCall) -> bool:
    """Has a row several targets, ``[N, C]``?"""
    return op.name.startswith("multilabel")


def _row(op: OpCall, name: str) -> Cells | None:
    """``[N, 1]``: one value a row of ``[N, C]`` or, where a row has one, of ``[N]``."""
    lattice, c = op.lattice, op.cells(name)
    if c is None or op.tensor("self").ndim < 2:
        return lattice.everything(c, 2)
    one_each = name == "target" and not _several(op)
    return lattice.unsqueeze(lattice.aligned(c, 1), 1) if one_each else lattice.reduce(c, [1])


def _beside(op: OpCall) -> Cells | None:
    """S(target) | S(is_target) | S(weight of its class), row by row."""
    lattice = op.lattice
    weight = _class_weight(op, op.cells("weight"), op.tensor("target").reshape(-1))
    column = None if weight is None else lattice.unsqueeze(weight, 1)
    return lattice.join(_row(op, "target"), _row(op, "is_target") if "is_target" in op.args else None, column)


def margin(op: OpCall) -> Result:
    """multi_margin_loss; (multilabel_margin_loss, is_target): S(row) | S(target) | S(weight of its class),
    then reduced."""
    lattice = op.lattice
    several = isinstance(op.out, (list, tuple))
    loss = op.out[0] if several else op.out
    out = None if _one_class(op) else lattice.join(_row(op, "self"), _beside(op))
    if out is not None:
        out = lattice.reshaped(out, out.dims[:1]) if loss.ndim else lattice.everything(out)
    if not several:
        return out
    named = _row(op, "target")
    return [out, None if named is None else lattice.reshaped(named, named.dims[2 - op.out[1].ndim :])]


def margin_backward(op: OpCall) -> Result:
    """S(gradient of the row), and where that is not 0 what its loss read; with one target a row less: of the
    row, a class that is not the target reads itself and the target."""
    lattice, x, c = op.lattice, op.tensor("self"), op.cells("self")
    if _one_class(op):
        return None
    own, read = op.cells("grad_output"), lattice.join(_row(op, "self"), _beside(op))
    own = None if own is None else lattice.unsqueeze(lattice.aligned(own, 1), 1)
    if c is not None and c.dims[-1] != 1 and not _several(op):
        label, c = op.tensor("target").reshape(-1), lattice.aligned(c, 2)
        target = _picked(op, c, label, 1)
        at = label.unsqueeze(1) == torch.arange(x.shape[-1], device=x.device)
        target = None if target is None else lattice.unsqueeze(target, 1)
        read = lattice.join(lattice.keep(read, at), c, target, _beside(op))
    out = absorb(op, op.tensor("grad_output").reshape(-1, 1), own, read)
    return out if out is None or x.ndim == 2 else lattice.squeeze(out, [0])


# -- connectionist temporal classification ----------------------------------------------------------------


def _lengths(op: OpCall, name: str) -> Tensor:
    value, device = op.args[name], op.tensor("log_probs").device
    return value.to(device) if isinstance(value, Tensor) else torch.tensor(list(value), device=device)


def _sequences(op: OpCall) -> Cells | None:
    """``[batch]``: S(log probabilities up to the input's length) | S(targets up to the target's length) |
    S(lengths)."""
    lattice, x, target = op.lattice, op.tensor("log_probs"), op.tensor("targets")
    steps, count = _lengths(op, "input_lengths"), _lengths(op, "target_lengths")
    places = torch.arange(x.shape[0], device=x.device)
    inside = places.unsqueeze(1) < steps.reshape(1, -1)
    read = lattice.reduce(op.cells("log_probs"), [2], keepdim=False)
    read = lattice.reduce(lattice.keep(read, inside), [0], keepdim=False)
    lengths = [op.cells("input_lengths"), op.cells("target_lengths")]
    named = op.cells("targets")
    if named is not None and target.ndim == 2:
        inside = torch.arange(target.shape[1], device=x.device) < count.reshape(-1, 1)
        named = lattice.reduce(lattice.keep(named, inside), [1], keepdim=False)
    elif named is not None:  # one after the other
        lengths[1] = lattice.everything(lengths[1], 1)
        places = torch.arange(target.numel(), device=x.device)
        owner = torch.searchsorted(count.cumsum(0), places, right=True)
        inside = owner < len(count)
        named = lattice.keep(named, inside)
        named = land(op, None, named, (len(count),), owner.clamp(max=len(count) - 1), owner.shape, False)
    return lattice.join(read, named, *lengths)


def ctc(op: OpCall) -> Result:
    """(loss, log_alpha): each sequence's own."""
    lattice = op.lattice
    per = _sequences(op)
    return [per, None if per is None else lattice.reshaped(per, (*per.dims, 1, 1))]


def ctc_backward(op: OpCall) -> Result:
    """S(gradient of the sequence), and where that is not 0 all that its loss read; steps beyond the input's
    length get no gradient."""
    lattice, x, grad = op.lattice, op.tensor("log_probs"), op.tensor("grad")
    alpha = op.cells("log_alpha")
    rest = lattice.join(
        _sequences(op),
        op.cells("neg_log_likelihood"),
        None if alpha is None else lattice.reduce(alpha, [1, 2], keepdim=False),
    )
    out = absorb(op, grad, op.cells("grad"), rest)
    out = None if out is None else lattice.unsqueeze(lattice.unsqueeze(lattice.aligned(out, 1), 1), 0)
    inside = torch.arange(x.shape[0], device=x.device).unsqueeze(1) < _lengths(op, "input_lengths")
    own = op.cells("input_lengths")
    beyond = None if own is None else lattice.unsqueeze(lattice.unsqueeze(own, 1), 0)
    return lattice.join(lattice.keep(out, inside.unsqueeze(-1)), beyond)


# -- a linear layer and cross-entropy in one, ``[N, F]`` inputs, ``[N]`` targets ----------------------------


def _linear_rows(op: OpCall, of: Callable[[Tensor], Cells | None] | None = None) -> Cells | None:
    """``rows``: S(row of the input) | S(weights), less positions that are ignored."""
    lattice, of = op.lattice, of or op.of
    weights = [op.get(name) for name in ("linear_weight", "linear_bias")]
    row = lattice.reduce(of(op.tensor("input")), [1], keepdim=False)
    row = lattice.join(row, *[lattice.everything(of(w), 1) for w in weights if w is not None])
    return lattice.keep(row, charged_at(op.tensor("target"), op.get("ignore_index", -100)))


def _linear_read(op: OpCall, of: Callable[[Tensor], Cells | None]) -> Cells | None:
    """What a position's loss and gradients read: S(row) | S(weights) | S(its class's weight) | S(label)."""
    label, weight = op.tensor("target"), op.get("weight")
    weight = None if weight is None else _class_weight(op, of(weight), label)
    weight = op.lattice.keep(weight, charged_at(label, op.get("ignore_index", -100)))
    return op.lattice.join(_linear_rows(op, of), weight, of(label))


def chunked(op: OpCall) -> Result:
    """Each position's loss; for a verbatim label as ``nll_loss``."""
    if not op.selects:
        return _linear_read(op, op.of)
    return op.lattice.join(rows(op), op.cells("target"), op.lattice.everything(op.cells("weight"), 1))


def chunked_sum(op: OpCall) -> Result:
    """(loss, gradients of input, weights, bias): S(all positions), but for the gradient of the input, whose
    rows are S(their position) | S(total weight) of a mean. An ignored row is 0 because of its label alone
    (unless all are ignored: then it is 0 / 0). Gradients hold labels."""
    lattice = op.lattice
    loss, grad_input, *others = op.out
    per, made = (_linear_read(op, of) for of in (op.of, op.full))
    rows, total = made, None
    if op.get("reduction") == "mean":
        total = _total_weight(op)
        divided = (op.tensor("target") != op.get("ignore_index", -100)) | loss.isnan()
        rows = lattice.join(made, lattice.keep(total, divided))
    rows = None if rows is None or not grad_input.numel() else lattice.unsqueeze(rows, 1)
    summed = lattice.everything(lattice.join(made, total))
    sums = [lattice.everything(summed, t.ndim) for t in others]
    return [lattice.everything(lattice.join(per, total)), rows, *sums]


def _total_weight(op: OpCall) -> Cells | None:
    """The total that the losses of a mean are divided by, as one value."""
    lattice, label, weight = op.lattice, op.tensor("target"), op.get("weight")
    of = op.full if _weighs(op) else op.bare
    out = None if weight is None else _class_weight(op, of(weight), label)
    out = lattice.keep(out, charged_at(label, op.get("ignore_index", -100)))
    return lattice.everything(lattice.join(out, of(label)), 1)
