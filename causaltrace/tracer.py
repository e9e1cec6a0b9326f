"""The dispatch mode: an op comes in, its rule is found, the shadows of its results go out."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from causaltrace import rules
from causaltrace._compat import in_backward, is_fake
from causaltrace.lattice.cells import Algebra, Cells
from causaltrace.ledger import Ledger, Pending
from causaltrace.places import site as place
from causaltrace.readout import selector, targets
from causaltrace.rules.call import OpCall, live
from causaltrace.schema import Op, describe, tensors
from causaltrace.shadow import Memory, Shadow
from causaltrace.site import Site

#: Arguments that choose elements rather than being moved.
SELECTORS = frozenset({"index", "indices", "mask", "condition"})


class OpaqueOpError(RuntimeError):
    """Raised under ``strict=True`` by the first operation that has no rule."""


class Recorder(Protocol):
    """What the tracer tells about scores, escapes and opaque ops; ``policy.Judge`` implements it."""

    def scored(self, shadow: Shadow, site: Site) -> None: ...
    def candidate(self, pending: Pending, site: Site) -> None: ...
    def escaped(self, what: str, shadow: Shadow, site: Site) -> None: ...
    def opaque(self, op: str, cells: Cells | None, site: Site) -> None: ...


class Finder(Protocol):
    """Looks at what no label is known of; ``boundary.finder`` implements it."""

    searching: bool

    def look(self, op: Op, inputs: list[Tensor]) -> None: ...
    def made(self, outs: list[Tensor]) -> None: ...


class Tracer(TorchDispatchMode):
    """Follows supports through every operation. One per watch; the lock serves autograd's device threads."""

    supports_higher_order_operators = True

    def __init__(self, recorder: Recorder, strict: bool, device: torch.device) -> None:
        super().__init__()
        self.algebra = Algebra(self.site)
        self.memory = Memory(self.algebra)
        self.ledger = Ledger(self.algebra, self.memory, device)
        self.recorder, self.strict = recorder, strict
        self.updating = 0  #: depth of optimizer steps
        self.quiet = 0  #: depth of calls whose reads of values go no further
        self.finder: Finder | None = None
        self._ops: dict[Any, Op] = {}
        self._op_name = ""
        self._lock = threading.RLock()

    # -- where we are ---------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        return "backward" if in_backward() else "update" if self.updating else "forward"

    def site(self, phase: str | None = None, op: str | None = None) -> Site:
        return place(op or self._op_name, phase or self.phase)

    # -- one operation --------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = self._ops.get(func)
        if op is None:
            if not isinstance(func, torch._ops.OpOverload):
                return self._higher_order(func, args, kwargs)
            op = self._ops[func] = describe(func)
        if op.view and not op.composite:
            out = func(*args, **kwargs)
            if op.name == "lift_fresh":
                self.host_data(out, [])
            return out
        known = self.memory.known
        inputs = tensors(args)
        if kwargs:
            inputs += tensors(list(kwargs.values()))
        finder = self.finder
        if finder is not None and not op.composite and (finder.searching or op.name == "embedding"):
            finder.look(op, inputs)
        if not any(known(t) for t in inputs) or any(is_fake(t) for t in inputs):
            out = func(*args, **kwargs)
            if finder is not None and finder.searching:
                finder.made(tensors(out))
            return out
        if op.composite:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        with self._lock:
            self._op_name = op.full
            bound = op.bind(args, kwargs)
            if op.written:
                return self._in_place(op, func, args, kwargs, bound)
            out = func(*args, **kwargs)
            self._op_name = op.full
            outs = tensors(out)
            after = self._step(op, bound, out, outs)
            self._write(outs, after)
            return out

    def _write(self, outs: list[Tensor], after: After) -> None:
        for t, shadow in zip(outs, after.shadows, strict=False):
            self.memory.write(t, shadow if shadow else None)
        if self.finder is not None and self.finder.searching:
            self.finder.made(outs)
        after.report(self)

    def _in_place(self, op: Op, func: Any, args: Any, kwargs: Any, bound: dict[str, Any]) -> Any:
        """Rules of in-place ops run first, while the old values can still be looked at."""
        written = [t for name in op.written for t in tensors(bound.get(name))]
        early = op.written[0] == "self"
        if early:
            after = self._each(op, bound, written) if op.foreach else self._step(op, bound, None, written)
        out = func(*args, **kwargs)
        self._op_name = op.full
        if not early:
            fresh = [] if "out" in op.written else [t for t in tensors(out) if all(t is not w for w in written)]
            written = fresh + written
            after = self._step(op, bound, out if not fresh else (*fresh, *written[len(fresh):]), written)
        if self.updating:  # an update is a step of the path even where it changes no support
            stamp = self.algebra.stamp
            after.shadows = [s._replace(support=stamp(s.support)) if s.support else s for s in after.shadows]
        self._write(written, after)
        return out

    def _each(self, op: Op, bound: dict[str, Any], written: list[Tensor]) -> After:
        """A foreach op, list element by list element."""
        out = After()
        for i in range(len(written)):
            one = {k: v[i] if isinstance(v, (list, tuple)) and len(v) == len(written) else v for k, v in bound.items()}
            if "tensors" in one or any(k.startswith("tensors") for k in one):
                one = {k.replace("tensors1", "end"): v for k, v in one.items()}
            if "scalar" in one:
                one.setdefault("other", one.pop("scalar"))
            if "scalars" in one:
                one.setdefault("other", one.pop("scalars"))
            step = self._step(op, one, None, [written[i]])
            out.shadows += step.shadows[:1]
            out.leaving += step.leaving
            out.candidates += step.candidates
        return out

    def _step(self, op: Op, bound: dict[str, Any], out: Any, outs: list[Tensor]) -> After:
        """Supports of the results, and what happened to readouts on the way."""
        if op.foreach and out is not None and isinstance(out, (list, tuple)):
            after = After()
            for i, t in enumerate(outs):
                one = {k: v[i] if isinstance(v, (list, tuple)) and len(v) == len(outs) else v for k, v in bound.items()}
                if "scalar" in one or "scalars" in one:
                    one.setdefault("other", one.get("scalar", one.get("scalars")))
                after.shadows += self._step_one(op, one, t, [t]).shadows
            return after
        return self._step_one(op, bound, out if out is not None else outs[0] if len(outs) == 1 else outs, outs)

    def _step_one(self, op: Op, bound: dict[str, Any], out: Any, outs: list[Tensor]) -> After:
        backward = in_backward()
        shadows: dict[int, Shadow] = {}
        moved: set[int] = set()
        chosen: set[int] = set()
        inputs: list[Tensor] = []
        for name, value in bound.items():
            for t in tensors(value):
                inputs.append(t)
                if id(t) not in shadows:
                    shadow = self.memory.read(t)
                    if shadow is not None:
                        shadows[id(t)] = shadow
                (chosen if name in SELECTORS else moved).add(id(t))
        moved -= chosen
        ledger, algebra, kind = self.ledger, self.algebra, op.rule.kind
        special = any(s.label or s.target or s.pending or s.onehot for s in shadows.values())
        index = selector(op, bound, self.memory.read) if special and kind == rules.READ else None
        raw_ids = moved if kind in (rules.MOVE, rules.READ) else set()
        if index is not None:
            raw_ids = raw_ids | {id(index)}

        def cells_on(plane: str) -> Any:
            def cells(t: Tensor) -> Cells | None:
                shadow = shadows.get(id(t))
                if shadow is None:
                    return None
                if plane in ("support", "possible"):
                    if special and id(t) not in raw_ids:
                        return ledger.depends(shadow, plane)
                    if plane == "possible" and shadow.possible is not None:
                        return shadow.possible
                    return shadow.support
                return getattr(shadow, plane) if id(t) in moved else None

            return cells

        reduced = index is not None and op.name.startswith("nll_loss") and bound.get("reduction", 1) != 0

        def run(plane: str) -> list[Cells | None]:
            raw = cells_on(plane)
            if reduced:  # the reduced value depends on the labels too
                raw_ids.discard(id(index))
            call = OpCall(op.name, bound, raw, algebra, plane, backward, out, index is not None and not reduced)
            result = op.rule.fn(call)
            return result if isinstance(result, list) else [result]

        if op.rule.kind == rules.OPAQUE:
            support: list[Cells | None] = [None] * len(outs)
            possible = run("possible")
            if possible and not self.quiet:
                if self.strict:
                    raise OpaqueOpError(
                        f"{op.full} has no rule and strict=True (at {self.site()}). Register or write one "
                        "(CONTRIBUTING.md), use ops that have one, or drop strict"
                    )
                self.recorder.opaque(op.full, next((c for c in possible if c is not None), None), self.site())
        else:
            support = run("support")
            possible = (
                run("possible") if any(s.possible is not None for s in shadows.values()) else [None] * len(support)
            )
        if backward:
            support = [algebra.indirect(c) for c in support]
            possible = [algebra.indirect(c) for c in possible]
        after = After([Shadow(s, p) for s, p in zip(support, possible, strict=True)])
        if special:
            self._readouts(op, bound, shadows, moved, inputs, outs, index, reduced, cells_on, backward, after)
        return after

    # -- readouts -------------------------------------------------------------------------------------

    def _readouts(
        self, op: Op, bound: dict[str, Any], shadows: dict[int, Shadow], moved: set[int], inputs: list[Tensor],
        outs: list[Tensor], index: Tensor | None, reduced: bool, cells_on: Any, backward: bool, after: After,
    ) -> None:
        """Labels, readouts and objectives through one op."""
        kind = op.rule.kind
        objective = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
        carriers = [(t, shadows[id(t)]) for t in inputs if id(t) in shadows and shadows[id(t)].target is not None]
        pending = tuple(dict.fromkeys(p for s in shadows.values() for p in s.pending))
        first = after.shadows[0] if after.shadows else Shadow()
        if kind in (rules.MOVE, rules.READ):
            extra: dict[str, Cells | None] = {}
            for plane in ("label", "target", "post", "onehot"):
                if any(getattr(s, plane) is not None for s in shadows.values()):
                    call = OpCall(op.name, bound, cells_on(plane), self.algebra, plane, backward, None, False)
                    call.out = outs[0] if outs else None
                    result = op.rule.fn(call)
                    extra[plane] = result[0] if isinstance(result, list) else result
            if backward:
                extra.pop("target", None)
            if outs and outs[0].dtype.is_floating_point:
                extra.pop("label", None)
            first = first._replace(**extra)
            if not backward:
                first = first._replace(pending=pending)
        if index is not None and outs and not backward:
            numbers = targets(op, bound, index, outs[0], self.memory.read, self.ledger)
            if reduced:
                self._reduced_loss(op, bound, cells_on, index, numbers, objective, after)
                first = first._replace(pending=after.pending)
            else:
                first = first._replace(target=numbers, label=None)
        elif carriers and kind not in (rules.MOVE, rules.READ) and not backward:
            kept = self._point(op, bound, carriers, shadows, inputs, outs) if kind == rules.POINT else None
            if kept is not None:
                first = kept
            elif objective:
                site = self.site("readout")
                made = tuple(Pending(s, site) for _, s in carriers)
                first = first._replace(pending=pending + made)
            else:
                after.leaving += [s for _, s in carriers]
        if pending and not backward and kind not in (rules.MOVE, rules.READ):
            if objective:
                first = first._replace(pending=tuple(dict.fromkeys(first.pending + pending)))
            else:
                after.candidates += [p for p in pending if isinstance(p, Pending)]
        if op.rule.escapes and not self.quiet:
            for t in inputs:
                if (s := shadows.get(id(t))) is not None:
                    after.escapes.append((op.name, s))
        if after.shadows:
            after.shadows[0] = first

    def _reduced_loss(
        self, op: Op, bound: dict[str, Any], cells_on: Any, index: Tensor, numbers: Cells, objective: bool, after: After
    ) -> None:
        """A loss that is summed inside the op: judge its readouts before they are summed."""
        planes = []
        for plane in ("support", "possible"):
            call = OpCall(op.name, bound, cells_on(plane), self.algebra, plane)
            shadow = self.memory.read(index)
            assert shadow is not None
            own = shadow.possible if plane == "possible" and shadow.possible is not None else shadow.support
            planes.append(self.algebra.join(rules.loss.rows(call), own))
        shadow = Shadow(planes[0], planes[1] if planes[1] is not planes[0] else None, target=numbers)
        if objective:
            after.pending = (Pending(shadow, self.site("readout")),)
        else:
            after.leaving.append(shadow)

    def _point(
        self, op: Op, bound: dict[str, Any], carriers: list[tuple[Tensor, Shadow]], shadows: dict[int, Shadow],
        inputs: list[Tensor], outs: list[Tensor],
    ) -> Shadow | None:
        """An element-wise op on readouts gives readouts, as long as each element scores one position."""
        if len(outs) != 1 or not outs[0].dtype.is_floating_point:
            return None
        out, (first, shadow) = outs[0], carriers[0]
        if any(t.shape != out.shape for t, _ in carriers):
            return None
        algebra, ledger = self.algebra, self.ledger
        assert shadow.target is not None
        target = shadow.target
        for _, other in carriers[1:]:
            assert other.target is not None
            if other.target is not target:
                a, b = ledger.positions(target).data, ledger.positions(other.target).data
                if a.shape != b.shape or not torch.equal(a, b):
                    return None
                target = algebra.join(target, other.target) or target
        mine = {id(t) for t, _ in carriers}
        rest = [t for t in inputs if id(t) not in mine]
        post = algebra.join(*[s.post for _, s in carriers], *[ledger.depends(shadows.get(id(t))) for t in rest])
        support = algebra.join(*[s.support for _, s in carriers])
        possible = None
        if any(s.possible is not None for s in shadows.values()):
            possible = algebra.join(*[s.possible or s.support for _, s in carriers])
            possible = algebra.join(possible, *[ledger.depends(shadows.get(id(t)), "possible") for t in rest])
        if op.name == "mul":  # a weight of exactly 0 takes the position out of the score
            weight = next(iter(rest), bound.get("other"))
            if isinstance(weight, Tensor):
                kept = live(weight, tuple(range(weight.ndim)))
                target = algebra.keep(target, kept.expand(out.shape)) or None
            elif weight == 0:
                target = None
            if target is None:
                return Shadow(support, possible, post=post)
        del first
        return Shadow(support, possible, target=target, post=post)

    # -- the host -------------------------------------------------------------------------------------

    def escape(self, what: str, t: Tensor) -> None:
        """The values or the memory of ``t`` go to something that is not torch."""
        shadow = self.memory.read(t)
        if shadow is not None and not self.quiet:
            with _disable_current_modes():
                self._op_name = what
                self.recorder.escaped(what, shadow, self.site("host"))

    def host_data(self, t: Tensor, sources: list[Tensor]) -> None:
        """``t`` was made from Python or numpy data, which may hold anything that left torch before, and from
        the values of ``sources``."""
        with _disable_current_modes():
            mark = self.ledger.watermark
            known = [s for s in map(self.memory.read, sources) if s is not None]
            if mark is None and not known:
                return
            algebra, ones = self.algebra, (1,) * t.ndim
            support = algebra.everything(algebra.join(*map(self._whole, known)), t.ndim)
            mark = None if mark is None else algebra.reshaped(mark, ones)
            self.memory.write(t, Shadow(support, algebra.join(support, mark)))

    def _whole(self, shadow: Shadow) -> Cells | None:
        return self.algebra.everything(self.ledger.depends(shadow))

    # -- everything else ------------------------------------------------------------------------------

    def _higher_order(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Operators that call functions (cond, flex_attention): all that goes in may come out."""
        out = func(*args, **kwargs)
        flat, _ = torch.utils._pytree.tree_flatten((args, kwargs))
        cells = self.algebra.join(
            *[self.algebra.everything(self.ledger.depends(self.memory.read(t), "possible")) for t in flat if isinstance(t, Tensor)]
        )
        if cells is not None:
            self._op_name = str(func)
            self.recorder.opaque(str(func), cells, self.site())
            for t in torch.utils._pytree.tree_leaves(out):
                if isinstance(t, Tensor):
                    self.memory.write(t, Shadow(possible=self.algebra.reshaped(cells, (1,) * t.ndim)))
        return out


class After:
    """What one op leaves to be done once its results are written."""

    __slots__ = ("candidates", "escapes", "leaving", "pending", "shadows")

    def __init__(self, shadows: list[Shadow] | None = None) -> None:
        self.shadows: list[Shadow] = shadows or []
        self.leaving: list[Shadow] = []
        self.candidates: list[Pending] = []
        self.escapes: list[tuple[str, Shadow]] = []
        self.pending: tuple[Pending, ...] = ()

    def report(self, tracer: Tracer) -> None:
        if not (self.leaving or self.candidates or self.escapes):
            return
        site = tracer.site("score")
        for shadow in self.leaving:
            tracer.recorder.scored(shadow, site)
        for pending in self.candidates:
            tracer.recorder.candidate(pending, site)
        for what, shadow in self.escapes:
            tracer.recorder.escaped(what, shadow, tracer.site("host"))
