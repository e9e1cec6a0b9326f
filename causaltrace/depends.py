"""Which elements of the inputs may each element of the outputs depend on? The rules, without an eval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace.boundary.host import Host
from causaltrace.boundary.outside import Outside
from causaltrace.lattice.cells import Cells
from causaltrace.lattice.exact import Exact
from causaltrace.reach import Reach
from causaltrace.schema import tensors
from causaltrace.shadow import Shadow
from causaltrace.site import Site
from causaltrace.tracer import Tracer

#: Input elements that one run of the function follows.
ELEMENTS = 1024


def dependencies(fn: Callable[..., Any], *inputs: Tensor) -> list[list[Tensor]]:
    """For every output and input of ``fn`` a bool tensor ``[*out.shape, *in.shape]``: may this element of the
    output depend on that element of the input?

    The values of ``inputs`` count: an element that is multiplied by an exact 0 is not depended on. ``fn`` is
    run on copies, once for every 1,024 input elements, with the same random numbers each time; compiled
    functions run eagerly.

    Args:
        fn: takes the inputs, returns a tensor or a nested list or tuple of tensors. It may call backward.
        inputs: tensors of any dtype.

    Returns:
        ``result[i][j]`` for the ``i``-th tensor that ``fn`` returns and the ``j``-th input. Operations
        without a rule, and values that pass through Python, give dependence on all that went in.

    Raises:
        TypeError: an input is not a tensor, or ``fn`` returns none.
    """
    for i, t in enumerate(inputs):
        if not isinstance(t, Tensor):
            raise TypeError(f"input {i} is {type(t).__name__}, not a tensor: close over what is not followed")
    sizes = [t.numel() for t in inputs]
    total = sum(sizes)
    state = torch.get_rng_state()
    parts: list[list[Tensor]] = []
    for start in range(0, max(total, 1), ELEMENTS):
        torch.set_rng_state(state)
        parts.append(follow(fn, inputs, range(start, min(start + ELEMENTS, total))).members)
    whole = [torch.cat(members, dim=-1) for members in zip(*parts, strict=True)]
    return [
        [
            part.reshape((*out.shape[:-1], *t.shape))
            for part, t in zip(out.split(sizes, dim=-1), inputs, strict=True)
        ]
        for out in whole
    ]


class Followed(NamedTuple):
    """What reached each output ``[*shape]`` of one run: ``members [*shape, window]``, the elements of the
    window; ``latest [*shape]``, the last element of all, -1 if none. Elements are numbered through all
    inputs in their order. ``opaque``: operations without a rule."""

    members: list[Tensor]
    latest: list[Tensor]
    opaque: dict[str, Site]


def follow(fn: Callable[..., Any], inputs: tuple[Tensor, ...], window: range) -> Followed:
    """One run of ``fn`` on copies of the inputs, where only the elements of ``window`` are told apart."""
    reach = Reach()
    lattice = Exact(window)
    tracer = Tracer(reach, False, torch.device("cpu"), lattice)
    ledger = reach.ledger = tracer.ledger
    copies = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
    first = 0
    for t in copies:
        positions = torch.arange(first, first + t.numel(), device=t.device).view(*t.shape, 1)
        first += t.numel()
        ledger.grow(first)
        tracer.memory.write(t, Shadow(Cells(lattice.read(positions, ledger.is_scored))))
    with torch.compiler.set_stance("force_eager"), Host(tracer, Outside(tracer)), tracer:
        out = fn(*copies)
    outs = tensors(out)
    if not outs:
        raise TypeError(f"fn returned {type(out).__name__}, which holds no tensor")
    members, latest = [], []
    with _disable_current_modes(), torch.no_grad():
        for t in outs:
            cells = ledger.depends(tracer.memory.read(t), "possible")
            cells = tracer.algebra.join(cells, tracer.algebra.everything(ledger.watermark, t.ndim))
            if cells is None:
                members.append(torch.zeros(*t.shape, len(window), dtype=torch.bool))
                latest.append(torch.full(t.shape, -1))
                continue
            data = cells.data.cpu()
            members.append(lattice.members(data).expand(*t.shape, len(window)))
            latest.append(lattice.position(data[..., 0]).expand(t.shape))
    return Followed(members, latest, reach.opaque_ops)
