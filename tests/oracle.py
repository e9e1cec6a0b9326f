"""Ground truth for rules: what an output element really depends on, found by changing inputs.

``check(fn, *inputs)`` gives every element of the inputs a label position, runs ``fn`` under a tracer, and
compares the positions that it reports with what changes when inputs change. Three things must hold, for many
numberings (all elements their own label; labels shared along compressed dims; inputs without labels):

* *cover*: changing one element changes only outputs that report at least its position;
* *sufficiency*: changing all elements above a position p at once changes no output that reports at most p;
* *exact*, where claimed: the reported position is that of the latest element that changes the output.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from causaltrace.boundary.host import Host
from causaltrace.boundary.outside import Outside
from causaltrace.context import Recorder
from causaltrace.lattice.cells import Cells
from causaltrace.ledger import Ledger, Pending
from causaltrace.perturb import differs
from causaltrace.shadow import Memory, Shadow
from causaltrace.site import Site
from causaltrace.tracer import Tracer

Fn = Callable[..., Any]


class Index(NamedTuple):
    """An integer input, with the values that it may take."""

    tensor: Tensor
    values: Sequence[int]


class Notes(Recorder):
    """What the tracer told. What Python has been given may be in all that is made of Python's data."""

    ledger: Ledger

    def __init__(self) -> None:
        self.opaque_ops: list[str] = []
        self.escapes: list[str] = []

    def scored(self, shadow: Shadow, site: Site) -> None: ...
    def picked(self, shadow: Shadow, site: Site) -> None: ...
    def candidate(self, pending: Pending, site: Site) -> None: ...

    def escaped(self, what: str, shadow: Shadow, site: Site) -> None:
        self.escapes.append(what)
        self.ledger.raise_watermark(self.ledger.depends(shadow, "possible"))

    def opaque(self, op: str, cells: Cells | None, site: Site) -> None:
        self.opaque_ops.append(op)


class CheckedMemory(Memory):
    """Shadow memory that accepts only supports that broadcast to the tensor that they are for."""

    def write(self, t: Tensor, shadow: Shadow | None) -> None:
        for cells in () if shadow is None else [c for c in shadow[:6] if c is not None]:
            shape = tuple(t.shape)[t.ndim - len(cells.dims) :] if len(cells.dims) <= t.ndim else None
            fits = shape is not None and all(n in (1, m) for n, m in zip(cells.dims, shape, strict=True))
            assert fits, f"support of dims {cells.dims} for a tensor of shape {tuple(t.shape)}"
        super().write(t, shadow)


def tracer() -> Tracer:
    notes = Notes()
    out = Tracer(notes, False, torch.device("cpu"))
    out.memory = CheckedMemory(out.algebra)
    out.ledger.memory = out.memory
    out.memory.value = out.ledger.value
    notes.ledger = out.ledger
    return out


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in leaves(v)]
    return []


def flat(value: Any) -> Tensor:
    """All results as one vector; -0.0 is 0.0."""
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in leaves(value)]
    return torch.cat([t.detach().double().reshape(-1) for t in parts])


# -- numberings -------------------------------------------------------------------------------------------


def numbering(shapes: Sequence[torch.Size], kind: int, rng: random.Random) -> list[Tensor | None]:
    """Positions for every input ``[*dims]`` with dims full or 1, or None for no labels."""
    dims = [list(s) for s in shapes]
    kept = [True] * len(shapes)
    if kind >= 3:
        for i, shape in enumerate(shapes):
            if kind >= 4:
                dims[i] = [1 if rng.random() < 0.5 else n for n in shape]
            kept[i] = rng.random() < 0.75
        if not any(kept):
            kept[rng.randrange(len(kept))] = True
    counts = [torch.Size(d).numel() for d in dims]
    order = list(range(sum(counts)))
    if kind == 1:
        order.reverse()
    elif kind != 2:
        rng.shuffle(order)
    out: list[Tensor | None] = []
    for i, (shape, n) in enumerate(zip(dims, counts, strict=True)):
        twin = next((o for o in out if o is not None and list(o.shape) == shape), None)
        if kind >= 6 and twin is not None:
            out.append(twin)  # the very same labels as another input
        elif kept[i]:
            out.append(torch.tensor([order.pop() for _ in range(n)], dtype=torch.int32).view(shape))
        else:
            out.append(None)
    return out


def laid_out(t: Tensor, rng: random.Random) -> Tensor:
    """A copy in some memory layout: contiguous, a permutation, or a window of something larger."""
    kind = rng.randrange(3)
    if kind == 1 and t.ndim > 1:
        perm = list(range(t.ndim))
        rng.shuffle(perm)
        back = [perm.index(d) for d in range(t.ndim)]
        return t.permute(perm).clone(memory_format=torch.contiguous_format).permute(back)
    if kind == 2 and t.ndim:
        out = t.new_zeros([n + 2 for n in t.shape])[tuple(slice(1, n + 1) for n in t.shape)]
        return out.copy_(t)
    return t.clone(memory_format=torch.contiguous_format)


def reported(
    fn: Fn, inputs: Sequence[Tensor], positions: Sequence[Tensor | None], rng: random.Random | None = None,
    opaque: bool = False,
) -> Tensor:  # fmt: skip
    """The tool's answer: the latest position of every output element (-1: none), flattened."""
    trace = tracer()
    known: dict[int, Cells] = {}
    args = []
    for t, where in zip(inputs, positions, strict=True):
        copy = t.clone() if rng is None else laid_out(t, rng)
        args.append(copy)
        if where is not None:
            lanes = (where * 2 + 1).unsqueeze(-1).expand(*where.shape, 2).contiguous()
            cells = known.setdefault(id(where), Cells(lanes))
            trace.memory.write(copy, Shadow(support=cells))
    trace.ledger.grow(max((int(p.max()) + 1 for p in positions if p is not None and p.numel()), default=0))
    with torch.compiler.set_stance("force_eager"), Host(trace, Outside(trace)), trace:
        out = fn(*args)
    notes = trace.recorder
    assert isinstance(notes, Notes)
    if not opaque:
        assert not notes.opaque_ops, f"no rule for {notes.opaque_ops}"
    parts = []
    for t in leaves(out):
        cells = trace.ledger.depends(trace.memory.read(t), "possible" if opaque else "support")
        if opaque:  # a branch in Python may have decided anything
            cells = trace.algebra.join(cells, trace.algebra.everything(trace.ledger.watermark, t.ndim))
        value = (
            torch.full((1,) * t.ndim, -1)
            if cells is None
            else trace.algebra.lattice.position(cells.data[..., 0])
        )
        value = value.expand(t.shape)
        parts.append((torch.stack((value, value), -1) if t.is_complex() else value).reshape(-1))
    return torch.cat(parts).long()


# -- truth ------------------------------------------------------------------------------------------------


class Truth:
    """``fn`` at the given inputs, and how its results change with them."""

    def __init__(self, fn: Fn, inputs: Sequence[Tensor | Index], large: float) -> None:
        self.fn = fn
        self.inputs = [i.tensor if isinstance(i, Index) else i for i in inputs]
        self.domains = [list(i.values) if isinstance(i, Index) else None for i in inputs]
        self.large = large
        self.base = self.at(self.inputs)

    def at(self, inputs: Sequence[Tensor]) -> Tensor:
        return flat(self.fn(*[t.clone() for t in inputs]))

    def values(self, which: int, old: float, rng: random.Random) -> list[float]:
        """Other values for one element."""
        t, domain = self.inputs[which], self.domains[which]
        if t.dtype == torch.bool:
            return [1 - old]
        if domain is not None:
            return [v for v in domain if v != old]
        other = float(t.reshape(-1)[rng.randrange(t.numel())])
        options = [rng.gauss(0, 1), -old, 0.0, self.large, other, old + 1, -abs(rng.gauss(0, 2))]
        return [v for v in options if v != old]

    def single(self, rng: random.Random) -> Tensor:
        """``[outputs, input elements]``: does some other value of this one element change this output?"""
        columns = []
        for i, t in enumerate(self.inputs):
            for e in range(t.numel()):
                hit = torch.zeros(self.base.numel(), dtype=torch.bool)
                for value in self.values(i, float(t.reshape(-1)[e]), rng):
                    changed = t.clone().contiguous()
                    changed.view(-1)[e] = value
                    hit |= differs(
                        self.at([changed if j == i else s for j, s in enumerate(self.inputs)]), self.base
                    )
                columns.append(hit)
        return torch.stack(columns, 1)

    def together(self, above: Sequence[Tensor], rng: random.Random) -> Tensor:
        """Outputs that change when many of the elements in these masks change at once."""
        share = rng.choice([0.4, 0.8, 1.0])
        inputs = []
        for i, (t, mask) in enumerate(zip(self.inputs, above, strict=True)):
            changed = t.clone().contiguous()
            for e in torch.nonzero(mask.reshape(-1))[:, 0].tolist():
                if rng.random() < share and (options := self.values(i, float(t.reshape(-1)[e]), rng)):
                    changed.view(-1)[e] = rng.choice(options)
            inputs.append(changed)
        return differs(self.at(inputs), self.base)


def check(
    fn: Fn, *inputs: Tensor | Index, exact: bool = False, large: float = 10.0, seed: int = 0,
    kinds: int | Sequence[int] = 8,
    opaque: bool = False, layouts: bool = True,
) -> None:  # fmt: skip
    """Assert cover and sufficiency of what is reported for ``fn(*inputs)``; ``exact``: equality, too.

    Args:
        fn: a deterministic function of tensors with tensor results (nested lists allowed).
        inputs: float and bool tensors, or ``Index``; every element is a label.
        large: the largest value tried (choose it so that nothing overflows).
        kinds: how many numberings, or which: 0-3 give each element its own label, from 4 on labels are
            shared along random dims, from 6 on between inputs too.
        opaque: accept operations without a rule, judged on the ``possible`` plane.
        layouts: give the inputs other memory layouts as well.
    """
    rng = random.Random(seed)
    truth = Truth(fn, inputs, large)
    single = truth.single(rng)
    for kind in range(kinds) if isinstance(kinds, int) else kinds:
        positions = numbering([t.shape for t in truth.inputs], kind, rng)
        got = reported(fn, truth.inputs, positions, rng if layouts and kind % 2 else None, opaque)
        labels = [
            torch.full(t.shape, -1) if p is None else p.long().expand(t.shape)
            for t, p in zip(truth.inputs, positions, strict=True)
        ]
        column = torch.cat([p.reshape(-1) for p in labels])
        wanted = torch.where(single, column, -1).amax(1)
        missed = torch.nonzero(got < wanted)[:, 0].tolist()
        assert not missed, (
            f"numbering {kind}: outputs {missed} report {got[missed]}, depend on {wanted[missed]}"
        )
        if exact and kind < 4:
            more = torch.nonzero(got > wanted)[:, 0].tolist()
            assert not more, (
                f"numbering {kind}: outputs {more} report {got[more]}, depend on {wanted[more]} only"
            )
        for p in sorted({rng.choice(got.tolist()) for _ in range(4)}):
            for _ in range(3):
                changed = truth.together([label > p for label in labels], rng)
                lost = torch.nonzero(changed & (got <= p))[:, 0].tolist()
                assert not lost, (
                    f"numbering {kind}: outputs {lost} change with labels above {p}, report {got[lost]}"
                )


def grads(fn: Fn, wrt: Sequence[int] = (0,), seeded: bool = True) -> Fn:
    """``fn`` and its gradients with respect to some inputs. ``seeded``: the last input is the gradient of
    the result; otherwise the result is a scalar."""

    def both(*inputs: Tensor) -> list[Tensor]:
        given = inputs[:-1] if seeded else inputs
        leaf = [t.detach().requires_grad_() if i in wrt else t for i, t in enumerate(given)]
        out = fn(*leaf)
        made = torch.autograd.grad(out, [leaf[i] for i in wrt], inputs[-1] if seeded else None)
        return [out.detach(), *made]

    return both
