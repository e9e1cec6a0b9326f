"""Fused optimizer kernels: element-wise updates of parameters and states, list by list."""

from __future__ import annotations

from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result

#: Arguments that one parameter's update reads; the written ones come first, in the order of the schema.
LISTS = ("self", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "momentum_buffer_list", "state_sums")


def fused(op: OpCall) -> Result:
    """Every written tensor of parameter i depends on everything that belongs to parameter i."""
    lattice = op.lattice
    lists: list[list[Tensor]] = [list(op.args[n]) for n in LISTS if op.args.get(n)]
    shared = [op.of(op.args.get(n)) for n in ("lr", "grad_scale", "found_inf")]
    joined: list[Cells | None] = []
    for i in range(len(lists[0])):
        ndim = lists[0][i].ndim
        common = [None if s is None else lattice.reshaped(s, (1,) * ndim) for s in shared]
        joined.append(lattice.join(*[op.of(tensors[i]) for tensors in lists if i < len(tensors)], *common))
    out: list[Cells | None] = []
    for tensors in lists:
        out += joined[: len(tensors)]
    return out


def unscale(op: OpCall) -> Result:
    """_amp_foreach_non_finite_check_and_unscale_: gradients scaled in place; found_inf depends on all."""
    lattice = op.lattice
    grads = list(op.args["self"])
    cells = [op.of(g) for g in grads]
    scale = lattice.everything(op.cells("inv_scale"))
    out = [
        lattice.join(c, None if scale is None else lattice.reshaped(scale, (1,) * g.ndim))
        for c, g in zip(cells, grads, strict=True)
    ]
    found = op.args["found_inf"]
    whole = lattice.join(*[lattice.everything(c) for c in cells], lattice.everything(op.of(found)))
    return [*out, None if whole is None else lattice.reshaped(whole, (1,) * found.ndim)]
