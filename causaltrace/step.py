"""One operation: its rule is run on every plane, and readouts are followed through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from causaltrace import arranged, charge, distribution, mass, rules
from causaltrace.after import After
from causaltrace.combined import bare, is_score, matches, mixed, point, spreads
from causaltrace.context import Context
from causaltrace.lattice.cells import Cells
from causaltrace.ledger import Pending
from causaltrace.places import checking
from causaltrace.readout import (
    ahead,
    decided,
    is_loss,
    matched,
    onehot,
    renamed,
    selector,
    sums,
    targets,
    unchanged,
)
from causaltrace.rules.call import OpCall, known
from causaltrace.rules.ordered import MAKERS
from causaltrace.schema import Op, tensors
from causaltrace.shadow import UNHEDGED, Shadow

#: Arguments that choose elements rather than being moved.
SELECTORS = frozenset({"index", "indices", "mask", "condition"})


#: What to do about an operation that no rule covers.
REMEDY = "write a rule for it (causaltrace.register_rule, docs/rules.md), or use operations that have one"


#: Operations of which the result is no charge, whatever is compared.
COMPARING = frozenset(
    ["eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "isposinf", "isneginf", "signbit"]
)
#: Operations that pick some of the values that they are given, or say which there are: of scores no sum.
PICKING = frozenset(
    ["sort", "topk", "kthvalue", "median", "nanmedian", "mode", "max", "min", "amax", "amin", "aminmax"]
    + ["cummax", "cummin", "histc", "histogram", "partition", "unique", "quantile", "percentile"]
)
#: Operations that write to places in a table.
PUTTING = frozenset(("index_put", "_index_put_impl", "_unsafe_index_put", "scatter"))


class OpaqueOpError(RuntimeError):
    """Raised under ``strict=True`` by the first operation that has no rule."""


class Step:
    """An operation with the shadows of its inputs. ``out`` is its result, or for an in-place op that has not
    run yet the tensors that it will write; ``outs`` are the tensors that get the supports."""

    __slots__ = (
        "backward",
        "bound",
        "gate",
        "index",
        "inputs",
        "kind",
        "moved",
        "op",
        "out",
        "outs",
        "reduced",
        "renamed",
        "shadows",
        "tracer",
    )

    def __init__(
        self,
        tracer: Context,
        op: Op,
        bound: dict[str, Any],
        out: Any,
        outs: list[Tensor],
        inputs: list[Tensor],
        known: dict[int, Shadow],
    ) -> None:
        """``inputs``: the tensors in ``bound``; ``known``: shadows by ``id`` of the tensors that have one."""
        self.tracer, self.op, self.bound, self.out, self.outs = tracer, op, bound, out, outs
        self.backward = tracer.backward
        self.inputs = inputs
        self.moved: set[int] = set()
        self.index: Tensor | None = None
        self.renamed = False
        self.gate: Tensor | None = None
        self.reduced = False
        self.kind = op.rule.kind
        self.shadows: dict[int, Shadow] = {}
        for t in inputs:
            shadow = known.get(id(t))
            if shadow is not None:
                self.shadows[id(t)] = shadow
            if t.is_nested:
                self.kind = rules.OPAQUE
        if op.name in PUTTING:
            self._put_back()
        for t in outs:
            if t.is_nested:
                self.kind = rules.OPAQUE

    def after(self) -> After:
        """Supports of the results, and what happened to readouts on the way."""
        if self.kind == rules.READ and not self.backward:
            before = dict(self.shadows)
            self.renamed = renamed(self.op, self.bound, self.shadows, self.tracer.algebra)
            if self.renamed:
                after = self._after()
                if ahead(after.shadows[0], self.tracer.ledger):
                    return after
                self.shadows, self.index, self.moved, self.renamed = before, None, set(), False
                self.kind, self.reduced = self.op.rule.kind, False
        return self._after()

    def _after(self) -> After:
        special = hedged = False
        ordered = self.op.name in MAKERS
        arranged.by_masks(self)
        for shadow in self.shadows.values():
            if shadow[1:] != UNHEDGED:
                special = special or not shadow.plain
                hedged = hedged or shadow[1] is not None
                ordered = ordered or shadow.order is not None
        if special:
            self._sort_inputs()
        possible: list[Cells | None] | None = None
        if self.kind == rules.OPAQUE:
            possible = self._opaque(special)
            support: list[Cells | None] = [None] * len(possible)
        else:
            support = self._run("support", special)
            if hedged:
                possible = self._run("possible", special)
        if self.backward:
            indirect = self.tracer.algebra.indirect
            support = [indirect(c) for c in support]
            possible = possible and [indirect(c) for c in possible]
        if possible is None:
            after = After([Shadow(s) for s in support])
        else:
            after = After([Shadow(s, p) for s, p in zip(support, possible, strict=True)])
        if special:
            self._readouts(after)
        if ordered and not self.backward and arranged.follow(self, after, hedged):
            if all(s.order is not None for s in after.shadows):
                after.sized = []
            else:
                self.tracer.counts.cancelled()
        if self.op.escapes and not self.tracer.quiet:
            gone = self._escaping()
            if after.sized is not None:
                site = self.tracer.site("host")
                after.sized += [(self.op.name, s, site) for s in gone]
                return after
            after.escapes = [(self.op.name, s) for s in gone]
            after.leaving = [s for s in after.leaving if all(s is not g for g in gone)]  # scored as they left
        return after

    def _escaping(self) -> list[Shadow]:
        """What Python learns from the op: values that it returns, or values that a shape is made of."""
        named = [t for name in self.op.escapes for t in tensors(self.bound.get(name))]
        if self.op.rule.fn is rules.index.distinct:  # one element is one
            named = [t for t in named if t.numel() > 1]
        if self.op.name == "_local_scalar_dense" and self.out is True and checking():  # else it raises
            return []
        if self.op.name == "rrelu_with_noise" and not self.bound.get("training"):  # draws nothing
            return []
        if "indices" in self.op.escapes:  # a mask decides how many elements there are, positions do not
            named = [t for t in named if t.dtype in (torch.bool, torch.uint8)]
        return [s for s in map(self.shadows.get, map(id, named)) if s is not None]

    def _put_back(self) -> None:
        """What was read out of a table and is written there again is no readout any more."""
        ledger, rows = self.tracer.ledger, self.bound["self"]
        for key, shadow in self.shadows.items():
            if shadow.target is not None and ledger.back(shadow, rows):
                self.shadows[key] = ledger.value(shadow)

    # -- planes ---------------------------------------------------------------------------------------

    def _sort_inputs(self) -> None:
        """Which inputs move as they are, and is a class read at a label?"""
        chosen: set[int] = set()
        blind = False
        for name, value in self.bound.items():
            for t in tensors(value):
                (chosen if name in SELECTORS else self.moved).add(id(t))
                blind = blind or name in SELECTORS and not known(t)
        self.moved -= chosen
        if self.kind == rules.READ:
            self.index = selector(self.op, self.bound, self._shadow, self.tracer.memory, self.tracer.ledger)
            if self.op.rule.reads:
                self.moved.clear()
                if self.index is None or self.index.shape != self.outs[0].shape:
                    self.index, self.kind = None, rules.LEAVE
            self.reduced = self.index is not None and sums(self.op, self.bound)
            if self.index is not None:  # what is read out of is a row, whatever its elements were
                for key, shadow in self.shadows.items():
                    if key in self.moved and shadow.target is not None:
                        self.shadows[key] = self.tracer.ledger.value(shadow)
        if blind and self.index is None and not self._one_branch():
            self.kind = rules.LEAVE  # nobody knows which element is where
        elif self._chooses() and any(
            self.shadows[t].target is not None for t in self.moved if t in self.shadows
        ):
            gate = self.bound.get("condition", self.bound.get("mask"))
            self.gate = gate if isinstance(gate, Tensor) else None

    def _shadow(self, t: Tensor) -> Shadow | None:
        return self.shadows.get(id(t))

    def _chooses(self) -> bool:
        """Does a condition choose between elements?"""
        return self.op.rule.fn in (rules.move.where, rules.move.masked_fill) and not self.backward

    def _one_branch(self) -> bool:
        """Does a condition that is not known choose between labels or readouts, and something else?"""
        if self.op.rule.fn not in (rules.move.where, rules.move.masked_fill):
            return False
        moved = [s for t in self.moved if (s := self.shadows.get(t)) is not None]
        return sum(not s.plain for s in moved) <= 1

    def cells(self, plane: str, given: dict[int, Shadow] | None = None) -> Callable[[Tensor], Cells | None]:
        """Support of an input on a plane, with the shadows ``given``. Where an op moves elements, labels and
        readouts move with them on planes of their own; everywhere else they are causes like any other."""
        moves = self.kind in (rules.MOVE, rules.READ)
        label = None if self.index is None or self.reduced else id(self.index)
        shadows, depends, moved = given or self.shadows, self.tracer.ledger.depends, self.moved
        gate = self.gate

        def cells(t: Tensor) -> Cells | None:
            shadow = shadows.get(id(t))
            if shadow is None:
                return None
            if plane not in ("support", "possible"):
                return getattr(shadow, plane) if id(t) in moved else None
            if t is gate:  # it changes the score, not the distribution
                return None
            if moves and id(t) in moved or id(t) == label:
                return bare(shadow, plane)
            return depends(shadow, plane)

        return cells

    def bare(self, plane: str) -> Callable[[Tensor], Cells | None]:
        """Support of an input without the labels and readouts that its elements are."""
        shadows = self.shadows
        if plane == "possible":

            def possible(t: Tensor) -> Cells | None:
                shadow = shadows.get(id(t))
                return None if shadow is None else shadow[1] or shadow[0]

            return possible

        def support(t: Tensor) -> Cells | None:
            shadow = shadows.get(id(t))
            return None if shadow is None else shadow[0]

        return support

    def full(self, plane: str) -> Callable[[Tensor], Cells | None]:
        """Support of an input, with the labels and readouts that its elements are."""
        shadows, depends = self.shadows, self.tracer.ledger.depends
        counts = plane in ("support", "possible")
        return lambda t: depends(shadows.get(id(t)), plane) if counts else None

    def call(self, plane: str, special: bool = True) -> OpCall:
        bare = self.bare(plane)
        cells = self.cells(plane) if special else bare
        selects = self.index is not None and not self.reduced
        algebra = self.tracer.algebra
        full = self.full(plane)
        return OpCall(
            self.op.name, self.bound, cells, algebra, plane, self.backward, self.out, selects, bare, full,
            self.tracer.blind,
        )  # fmt: skip

    def _run(self, plane: str, special: bool) -> list[Cells | None]:
        rule = rules.UNKNOWN.fn if self.kind == rules.OPAQUE else self.op.rule.fn
        result = rule(self.call(plane, special))
        if not isinstance(result, list):
            return [result]
        if self.kind == rules.OPAQUE or self.op.rule.source:  # these give one for each tensor
            return result
        out = self.out
        if isinstance(out, (list, tuple)):  # gradients that were not asked for are None
            return [c for i, c in enumerate(result) if i >= len(out) or out[i] is not None]
        return result

    def _opaque(self, special: bool) -> list[Cells | None]:
        possible = self._run("possible", special)
        cells, keeps = next((c for c in possible if c is not None), None), self.op.keeps
        if keeps and cells is None:  # it returns nothing
            algebra, depends = self.tracer.algebra, self.tracer.ledger.depends
            given = [algebra.everything(depends(s, "possible")) for s in self.shadows.values()]
            cells = algebra.join(*given)
        if cells is not None and not self.tracer.quiet:
            opaque(self.tracer, self.op.full, cells)
            if keeps and not self.tracer.blind:  # what it keeps may come back at any time
                self.tracer.ledger.raise_watermark(cells)
        return possible

    # -- readouts -------------------------------------------------------------------------------------

    def _readouts(self, after: After) -> None:
        """Labels, readouts and objectives through the op."""
        kind, tracer = self.kind, self.tracer
        moves = kind in (rules.MOVE, rules.READ)
        objective = tracer.objective(self.inputs)
        carriers = self._carriers()
        pending = tuple(dict.fromkeys(p for s in self.shadows.values() for p in s.pending))
        first = after.shadows[0] if after.shadows else Shadow()
        if moves:
            first = self._moved(first)._replace(pending=() if tracer.silent else pending)
        if tracer.silent:
            pass
        elif self.index is not None and self.outs:
            numbers = targets(self.op, self.bound, self.index, self.outs[0], self._shadow, tracer.ledger)
            masses = self._read_out()
            if self.reduced:
                values = None if tracer.blind else charge.summed(self.op, self.bound, self.index)
                loss = self._reduced_loss(numbers)._replace(mass=masses, values=values)
                if objective:
                    first = first._replace(pending=(Pending(loss, tracer.site("readout")),))
                else:
                    after.leaving.append(loss)
            else:
                first = first._replace(target=numbers, mass=masses, label=None, objective=objective)
                if isinstance(rows := self.bound.get("self"), Tensor):
                    tracer.ledger.picked(rows, numbers)
                first = self._ignored(first)
        elif (picked := onehot(self.op, self.bound, self.outs, self.shadows, tracer.ledger)) is not None:
            first = picked._replace(objective=objective)
        elif (guarded := unchanged(self.op, self.bound, self.outs, self.shadows, tracer.ledger)) is not None:
            first = guarded
        elif (same := decided(self.op, self.bound, self.shadows)) is not None:
            first = same
        elif carriers and moves:
            first = self._gated(first)._replace(objective=objective)
        elif carriers and not (kind == rules.FREE or self.op.name in COMPARING):
            kept, picks = None, not PICKING.isdisjoint(self.op.full.split("."))
            if not self._counted(carriers):
                kept = point(self, carriers) if kind == rules.POINT else mixed(self, carriers)
            if kept is not None:
                first = kept._replace(objective=objective)
            elif objective:
                site = tracer.site("readout")
                summed = [s._replace(mass=None) if picks else s for _, s in carriers]
                first = first._replace(pending=pending + tuple(Pending(s, site) for s in summed))
            elif picks:
                after.picked += [s for _, s in carriers]
            elif not spreads(self, carriers):
                after.leaving += [s for _, s in carriers]
                first = first._replace(tally=True)
        elif (
            match := matched(self.op, self.bound, self.outs, self.shadows, tracer.ledger, kind == rules.POINT)
        ) is not None:
            first = match
        if pending and not tracer.silent and not moves:
            if objective:
                first = first._replace(pending=tuple(dict.fromkeys(first.pending + pending)))
            else:
                after.candidates += [p for p in pending if isinstance(p, Pending)]
        if after.shadows:
            after.shadows[0] = first

    def _ignored(self, first: Shadow) -> Shadow:
        """An element that is 0 because its label is the ignored class depends on that label."""
        ignore = self.bound.get("ignore_index", -100)
        assert self.index is not None
        label = self.shadows[id(self.index)].label
        if not is_loss(self.op) or ignore < 0 or label is None:
            return first
        algebra, ledger = self.tracer.algebra, self.tracer.ledger
        own = algebra.keep(ledger.read(label), self.index == ignore)
        possible = None if first.possible is None else algebra.join(first.possible, own)
        return first._replace(support=algebra.join(first.support, own), possible=possible)

    def _carriers(self) -> list[tuple[Tensor, Shadow]]:
        """The inputs that are readouts, with their values unless these are written over."""
        place, blind = self.tracer.memory.place, self.tracer.blind
        found: list[tuple[Tensor, Shadow]] = []
        for t in self.inputs:
            shadow = self.shadows.get(id(t))
            if shadow is not None and shadow.target is not None:
                lost = blind or any(place(t)() is place(out)() for out in self.outs)
                self.shadows[id(t)] = shadow = shadow._replace(values=None if lost else t)
                found.append((t, shadow))
        return found

    def _counted(self, carriers: list[tuple[Tensor, Shadow]]) -> bool:
        """Are losses of single positions added to a sum of scores, or to the 0 that one begins with?"""
        if self.op.name not in ("add", "sub") or self.tracer.blind:
            return False
        if any(s.tally for s in self.shadows.values()):
            return True
        mine = {id(t) for t, _ in carriers}
        rest = [t for t in self.inputs if id(t) not in mine]
        return (
            len(rest) == 1
            and not rest[0].ndim
            and id(rest[0]) not in self.shadows
            and all(not t.ndim and is_score(s) for t, s in carriers)
            and rest[0].device.type == "cpu"
            and not bool(rest[0])
        )

    def _moved(self, first: Shadow) -> Shadow:
        """Labels and readouts move with their elements."""
        planes: dict[str, Cells | None] = {}
        for plane in ("label", "target", "post", "onehot", "match", "mass"):
            if any(getattr(s, plane) is not None for s in self.shadows.values()):
                call = self.call(plane)
                call.selects = False
                result = self.op.rule.fn(call)
                planes[plane] = result[0] if isinstance(result, list) else result
        if self.tracer.silent:
            planes.pop("target", None)
            planes.pop("mass", None)
        if self.outs and not self.outs[0].dtype.is_floating_point:  # rounded
            planes.pop("mass", None)
        label = planes.get("label")
        if label is not None and self.outs and self.outs[0].dtype.is_floating_point:
            planes["label"] = None  # a number, and no label any more
            if self.index is None:  # its value depends on the label; a readout is charged at it
                algebra, read = self.tracer.algebra, self.tracer.ledger.read(label)
                possible = None if first.possible is None else algebra.join(first.possible, read)
                first = first._replace(support=algebra.join(first.support, read), possible=possible)
        return first._replace(**planes)  # type: ignore[arg-type]

    def _read_out(self) -> Cells | None:
        """The mass of what is read out."""
        if self.tracer.blind or self.index is None or self.renamed:
            return None
        lanes = distribution.at_labels(self.op, self.bound, self.index, self.tracer.memory)
        return mass.pack(lanes, self.index.ndim if self.reduced else self.outs[0].ndim)

    def _gated(self, first: Shadow) -> Shadow:
        """What decides which readout, or whether one, is taken does so after the readout."""
        shadow = None if self.gate is None else self.shadows.get(id(self.gate))
        if shadow is None:
            return first
        algebra, depends = self.tracer.algebra, self.tracer.ledger.depends
        if matches(self, shadow, first.target):
            first, shadow = first._replace(mass=None), shadow._replace(match=None)
        possible = first.possible
        if any(s.possible is not None for s in self.shadows.values()):
            possible = algebra.join(possible or first.support, depends(shadow, "possible"))
        return first._replace(post=algebra.join(first.post, depends(shadow)), possible=possible)

    def _reduced_loss(self, numbers: Cells) -> Shadow:
        """A loss that is summed inside the op: its readouts before they are summed."""
        algebra = self.tracer.algebra
        assert self.index is not None
        own = self.shadows[id(self.index)]
        support, possible = (
            algebra.join(rules.loss.rows(self.call(plane)), bare(own, plane))
            for plane in ("support", "possible")
        )
        return Shadow(support, None if possible is support else possible, target=numbers)


def opaque(tracer: Context, op: str, cells: Cells) -> None:
    """Labels met an operation that no rule covers."""
    site = tracer.site()
    if tracer.strict:
        raise OpaqueOpError(f"{op} has no rule and strict=True (at {site}): {REMEDY}, or drop strict")
    tracer.recorder.opaque(op, cells, site)
