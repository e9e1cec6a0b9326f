"""What a static audit says of a function: which input elements each result may depend on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace.context import Recorder
from causaltrace.depends import Followed, Reach
from causaltrace.lattice.cells import Cells
from causaltrace.lattice.exact import Exact
from causaltrace.schema import tensors
from causaltrace.shadow import Shadow
from causaltrace.static.tracer import Static


def blind(fn: Callable[..., Any], inputs: tuple[Tensor, ...], window: range) -> Followed:
    """As ``depends.follow``, of inputs that have no values."""
    reach = Reach()
    lattice = Exact(window)
    tracer = Static(cast(Recorder, reach), False, torch.device("cpu"), lattice)
    ledger = reach.ledger = tracer.ledger
    given = [tracer.blank(t) for t in inputs]
    first = 0
    for t in given:
        positions = torch.arange(first, first + t.numel()).view(*t.shape, 1)
        first += t.numel()
        ledger.grow(first)
        tracer.memory.write(t, Shadow(Cells(lattice.read(positions, ledger.is_scored))))
    with torch.compiler.set_stance("force_eager"), contextlib.ExitStack() as stack:
        stack.enter_context(tracer)
        out = fn(*given)
    members, latest = [], []
    with _disable_current_modes(), torch.no_grad():
        for t in tensors(out):
            cells = ledger.depends(tracer.memory.read(tracer.faked(t)), "possible")
            cells = tracer.algebra.join(cells, tracer.algebra.everything(ledger.watermark, t.ndim))
            if cells is None:
                members.append(torch.zeros(*t.shape, len(window), dtype=torch.bool))
                latest.append(torch.full(tuple(t.shape), -1))
                continue
            members.append(lattice.members(cells.data).expand(*t.shape, len(window)))
            latest.append(lattice.position(cells.data[..., 0]).expand(tuple(t.shape)))
    return Followed(members, latest, reach.opaque_ops)
