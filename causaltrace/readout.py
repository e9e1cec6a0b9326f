"""Which operations read a label's value out of a distribution, and at which positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.ledger import Ledger
from causaltrace.rules import loss
from causaltrace.rules.call import OpCall
from causaltrace.schema import Op
from causaltrace.shadow import Shadow

Read = Callable[[Tensor], Shadow | None]


def selector(op: Op, bound: dict[str, Any], read: Read) -> Tensor | None:
    """The tensor of verbatim labels that this op picks classes with, if it is a readout.

    ``nll_loss`` always; ``gather`` from rows; ``logp[i, y]`` with one tensor index per dim. A look-up in a
    constant 1-D table is not a readout: no distribution is being read.
    """
    x = bound.get("self")
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        return None
    if op.name.startswith("nll_loss"):
        index: Any = bound.get("target")
    elif op.name == "gather":
        index = bound.get("index")
    else:
        indices = list(bound.get("indices") or ())
        if len(indices) != x.ndim or any(t is None or t.dtype == torch.bool for t in indices):
            return None
        index = indices[-1]
    if x.ndim == 1 and op.name in ("gather", "index") and read(x) is None:
        return None
    if not isinstance(index, Tensor):
        return None
    shadow = read(index)
    return index if shadow is not None and shadow.label is not None else None


def targets(op: Op, bound: dict[str, Any], index: Tensor, out: Tensor, read: Read, ledger: Ledger) -> Cells:
    """Readout numbers for the elements that the op reads out; -1 where it reads none."""
    shadow = read(index)
    assert shadow is not None and shadow.label is not None
    label = shadow.label
    if op.name.startswith("nll_loss"):
        charged = index != bound.get("ignore_index", -100)
        label = ledger.algebra.keep(label, charged) or ledger.algebra.move(label, lambda d: torch.full_like(d, -1))
        return ledger.new_readouts(label)
    if label.dims != tuple(out.shape):
        shape = tuple(out.shape)
        label = ledger.algebra.move(label, lambda data: data.expand(*shape, 1))
    return ledger.new_readouts(label)


def rows(call: OpCall) -> Cells | None:
    """S(row) of every position of a reduced loss, as if it had not been reduced."""
    return loss.rows(call)
