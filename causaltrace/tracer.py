"""The dispatch mode: an op comes in, its rule is found, the shadows of its results go out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from causaltrace._compat import current_node, decompose, is_fake, storage_of
from causaltrace.after import After
from causaltrace.arranged import empty
from causaltrace.context import Recorder
from causaltrace.counts import Counts, Held, storage
from causaltrace.distribution import note
from causaltrace.foreach import element, flat
from causaltrace.graph.record import Record
from causaltrace.graph.walk import keep_route
from causaltrace.lattice.base import Lattice
from causaltrace.lattice.cells import Algebra, Cells
from causaltrace.lattice.horizon import Horizon
from causaltrace.ledger import Ledger
from causaltrace.parts import Depth, Finder, Outside
from causaltrace.places import in_gradient_transform
from causaltrace.places import site as place
from causaltrace.schema import SILENT, Op, describe, only_checks, tensors
from causaltrace.shadow import UNHEDGED, Entry, Memory, Shadow
from causaltrace.site import Site
from causaltrace.step import Step
from causaltrace.unfollowed import ALIASES, KEEPING, body, higher_order, sparse

_NUMBERS = (int, float, bool)


class Tracer(TorchDispatchMode):
    """Follows supports through every operation. One per watch; the lock serves autograd's device threads."""

    supports_higher_order_operators = True
    blind = False  #: are there values to look at?
    alone = True  #: is this the process that opened the watch, and no copy of it?
    quiet = Depth()  #: of calls, on this thread, whose reads of values go no further

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing compiles inside a watch (force_eager), and the guard costs 10 us an operation

    def __init__(
        self,
        recorder: Recorder,
        strict: bool,
        device: torch.device,
        lattice: Lattice | None = None,
        record: Record | None = None,
    ) -> None:
        super().__init__()
        self.algebra = Algebra(self.site, lattice or Horizon(), (record or Record()).made, self._forgetting)
        self.memory = Memory(self.algebra)
        self.ledger = Ledger(self.algebra, self.memory, device, self.blind)
        self.recorder, self.strict = recorder, strict
        self.counts = Counts(self._counted)
        self.updating = 0  #: depth of optimizer steps
        self.over = False  #: has the watch ended?
        self.held: Callable[[], None] | None = None  #: tells of the last value that Python got
        self.finder: Finder | None = None
        self.outside: Outside | None = None
        self.lifted: Callable[[Tensor], None] | None = None  #: told of what torch made of Python's numbers
        self._ops: dict[Any, Op] = {}
        self._op_name = ""
        self.backward = False  #: is the autograd engine running?
        self._step_sites: dict[str, Site] = {}
        self._lock = threading.RLock()

    @property
    def ops(self) -> list[Op]:
        """Every operation that ran."""
        return list(self._ops.values())

    def _forgetting(self, x: Cells) -> None:
        """The history of a support that is in use ends."""
        if not self.ledger.behind(x):
            keep_route(x)

    # -- where we are ---------------------------------------------------------------------------------

    @property
    def silent(self) -> bool:
        """Is what runs the gradient of readouts, and none itself?"""
        return self.backward

    def objective(self, inputs: list[Tensor]) -> bool:
        """Will what is made of ``inputs`` have a gradient?"""
        grows = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
        return grows or in_gradient_transform()

    @property
    def phase(self) -> str:
        return "backward" if current_node() else "update" if self.updating else "forward"

    def site(self, phase: str | None = None) -> Site:
        """Where the current operation is run. All of an optimizer step is one line of the user's."""
        phase = phase or self.phase
        if phase != "update":
            return place(self._op_name, phase)
        if self._op_name not in self._step_sites:
            self._step_sites[self._op_name] = place(self._op_name, phase)
        return self._step_sites[self._op_name]

    def represented(
        self, bound: dict[str, Any], orders: Collection[int]
    ) -> tuple[dict[str, Any], dict[int, int]]:
        """Arguments with values in the place of the ``orders`` (ids of tensors) that are not known, which a
        static audit has; and whose place each takes, by ids."""
        return bound, {}

    def step_begins(self, *_: Any) -> None:
        if not self.updating:
            self.algebra.steps += 1
        self.updating += 1
        self._step_sites.clear()

    def step_ends(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.updating -= 1
        self.algebra.forget()
        if not self.updating:
            self._op_name = f"{type(optimizer).__name__}.step"
            with _disable_current_modes():
                self.recorder.updated(self._held(optimizer), place(self._op_name, "update"))

    def _held(self, optimizer: torch.optim.Optimizer) -> list[Cells]:
        """The supports that the parameters of an optimizer have."""
        params = [t for group in optimizer.param_groups for t in group["params"]]
        supports = [s.support for s in map(self.memory.read, params) if s is not None]
        return list({id(cells): cells for cells in supports if cells is not None}.values())

    # -- one operation --------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.held is not None:
            self.release()
        op = self._ops.get(id(func))  # overloads live as long as torch does
        if op is None:
            if not isinstance(func, torch._ops.OpOverload):
                return higher_order(self, func, args, kwargs)
            op = self._ops[id(func)] = describe(func)
        op.calls += 1
        if self.counts:
            return self.counts.through(
                op, lambda: self._dispatched(op, func, types, args, kwargs), args, kwargs
            )
        return self._dispatched(op, func, types, args, kwargs)

    def _dispatched(
        self, op: Op, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if op.view and not op.composite:
            if op.fills:
                return self._refilled(op, func, args, kwargs)
            if args and getattr(args[0], "layout", torch.strided) in KEEPING and op.name not in ALIASES:
                return sparse(self, op, func, args, kwargs, tensors(args))
            return func(*args, **kwargs)
        if op.blank:
            out = func(*args, **kwargs)
            if self.outside is not None:
                self.outside.unwritten(out)
            return out
        inputs = tensors(args)
        if kwargs:
            inputs += tensors(tuple(kwargs.values()))
        if types:  # a wrapper's own handler runs the operations on what it holds, and these are followed
            return func(*args, **kwargs) if any(map(is_fake, inputs)) else NotImplemented
        finder = self.finder
        if finder is not None and (finder.searching or op.name == "embedding"):
            finder.look(op, op.bind(args, kwargs), inputs)
        entries = self.memory.entries
        touched = []
        try:
            for t in inputs:
                entry = entries.get(id(storage_of(t)))
                if entry is None and self.memory.starts:
                    entry = self.memory.entry(t)
                if entry is not None:
                    touched.append((t, entry))
        except NotImplementedError:  # a sparse tensor has no storage
            return sparse(self, op, func, args, kwargs, inputs)
        if touched and any(t.is_meta for t in inputs):  # no result has values, but in a list of others
            touched = [(t, entry) for t, entry in touched if not t.is_meta] if op.foreach else []
        if not touched:
            out = body(self, func, args, kwargs) if op.foreign else op.call(*args, **kwargs)
            if finder is not None and finder.searching:
                finder.made(tensors(out))
            return out
        if op.composite and not any(t.is_nested for t in inputs):
            with self:
                out = self.decomposed(func, args, kwargs)
            if out is not NotImplemented:
                return out
        func = op.call
        with self._lock:
            self._op_name = op.full
            if (current_node() is not None) != self.backward:  # a new pass begins
                self.backward = not self.backward
                self.algebra.forget()
            seen, state = self.memory.seen, False
            shadows: dict[int, Shadow] = {}
            unwritten: list[Entry] = []
            for t, entry in touched:
                shadow = seen(entry, t)
                if shadow is not None:
                    shadows[id(t)] = shadow
                    state = state or shadow[0] is not None and shadow[0].written
                    if entry.blank and shadow[1] is not None:
                        unwritten.append(entry)
            if state and not (self.updating or self.backward):
                self._read_again(shadows)
            if op.shares and not self.backward and (op.joins or len(touched) == len(inputs)):
                cells = self._shared(op, inputs, args, kwargs, shadows)
                if cells is not None:
                    out = self._away(op, func, args, kwargs)
                    before = shadows.get(id(inputs[0])) if op.written else None
                    if op.written:
                        touched[0][1].rows = None
                    if before is None or before.support is not cells:
                        self.memory.write(out, Shadow(self._stamped(cells) if op.written else cells))
                    return out
            bound = op.bind(args, kwargs)
            if op.written:
                out = self._in_place(op, func, kwargs, args, bound, shadows)
            else:
                out = self._away(op, func, args, kwargs)
                self._op_name = op.full
                outs = [out] if isinstance(out, Tensor) else tensors(out)
                self._write(outs, self._step(op, bound, out, outs, inputs, shadows))
                if op.distributes and not self.blind:
                    note(op, bound, out, self.memory)
            if unwritten and self.outside is not None:
                self.outside.read(op.full, unwritten, tensors(out))
            return out

    def _shared(
        self,
        op: Op,
        inputs: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shadows: dict[int, Shadow],
    ) -> Cells | None:
        """The support of an element-wise op whose operands, of one size, all have the same one, or each one
        value for all its elements: no value can change it but a scalar 0. None: the rule decides."""
        numbers = (*args, *kwargs.values()) if len(inputs) != len(args) + len(kwargs) else ()
        if any(type(a) in _NUMBERS and a == 0 for a in numbers):
            return None
        if any(t.is_nested for t in inputs):  # no sizes
            return None
        first = inputs[0]
        shape = first.shape
        cells: Cells | None = None
        for t in inputs:
            shadow = shadows.get(id(t))
            if shadow is None and op.joins and t.shape == shape:
                continue
            if shadow is None or shadow[0] is None or shadow[1:] != UNHEDGED:
                return None
            mine = shadow[0]
            if cells is None or mine is cells and len(t.shape) == len(shape):
                cells = mine
            elif mine.uniform and cells.uniform and t.shape == shape and t.is_floating_point():
                cells = self.algebra.join(cells, mine)
            else:
                return None
        return cells

    def _read_again(self, shadows: dict[int, Shadow]) -> None:
        """State that an optimizer wrote is read: a step of the path, where it brings a label that the other
        operands do not have."""
        algebra = self.algebra
        others = [s[0] for s in shadows.values() if s[0] is not None and not s[0].written]
        for key, shadow in shadows.items():
            cells = shadow[0]
            if cells is not None and cells.written and not any(algebra.within(cells, o) for o in others):
                shadows[key] = shadow._replace(support=algebra.stamp(cells))

    def _stamped(self, cells: Cells) -> Cells:
        """An update is a step of the path even where it changes no support."""
        if not self.updating:
            return cells
        stamped = self.algebra.stamp(cells)
        assert stamped is not None
        stamped.written = True
        return stamped

    def _write(self, outs: list[Tensor], after: After) -> None:
        if after.sized is not None:
            sized, after.sized = after.sized, None
            self.counts.hold(map(storage_of, outs), sized)
        for t, shadow in zip(outs, after.shadows, strict=False):
            if t.layout is not torch.strided:
                self.vanished(f"{self._op_name} (a sparse result)", shadow)
                continue
            if shadow.order is not None and not t.numel():
                self.memory.nothing(t, empty(shadow.order, t.ndim, self.algebra))
            self.memory.write(t, shadow if shadow else None)
        if self.finder is not None and self.finder.searching:
            self.finder.made(outs)
        after.report(self)

    def _in_place(
        self, op: Op, func: Any, kwargs: Any, args: Any, bound: dict[str, Any], shadows: dict[int, Shadow]
    ) -> Any:
        """Rules of in-place ops run first, while the old values can still be looked at."""
        written = [t for name in op.written for t in tensors(bound.get(name))]
        if op.outs:  # what they held is lost
            bound = {name: value for name, value in bound.items() if name not in op.outs}
        inputs = tensors(tuple(bound.values()))
        if op.name == "index_put" and self.memory.filled(bound):
            shadows.pop(id(bound["self"]), None)
        if op.early:
            after = self._step(op, bound, None, written, inputs, shadows)
        out = self._away(op, func, args, kwargs)
        self._op_name = op.full
        if not op.early:
            fresh = [] if op.outs else [t for t in tensors(out) if all(t is not w for w in written)]
            written = fresh + written
            after = self._step(op, bound, written if fresh else out, written, inputs, shadows)
        if self.updating:
            stamp = self._stamped
            after.shadows = [s._replace(support=stamp(s.support)) if s.support else s for s in after.shadows]
        self._write(written, after)
        return out

    def _step(
        self,
        op: Op,
        bound: dict[str, Any],
        out: Any,
        outs: list[Tensor],
        inputs: list[Tensor],
        shadows: dict[int, Shadow],
    ) -> After:
        """Supports of the results, and what happened to readouts on the way; foreach ops one by one."""
        if not op.foreach:
            result = out if out is not None else outs[0] if len(outs) == 1 else outs
            return Step(self, op, bound, result, outs, inputs, shadows).after()
        after = After()
        alike: dict[tuple[object, ...], Shadow] = {}
        for i, t in enumerate(outs):
            one = element(bound, len(outs), i)
            inputs = tensors(tuple(one.values()))
            key = None if self.backward else flat(one, t.shape, shadows)
            if key is not None and key in alike:
                after.shadows.append(alike[key])
                continue
            step = Step(self, op, one, t, [t], inputs, shadows).after()
            if key is not None:
                alike[key] = step.shadows[0]
            after.shadows += step.shadows[:1]
            after.leaving += step.leaving
            after.candidates += step.candidates
        return after

    def _refilled(self, op: Op, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A tensor with memory that no operation has filled, or that is of another dtype."""
        name, outside = op.name, self.outside
        if name == "view":
            self.seek(args[0])
        if name == "resize" and outside is not None:
            before = storage_of(args[0]).nbytes()
            out = func(*args, **kwargs)
            if storage_of(out).nbytes() > before:
                outside.unwritten(out)
            return out
        out = func(*args, **kwargs)
        if name == "lift_fresh" and self.lifted is not None and not self.memory.known(out):
            self.lifted(out)
        elif name == "set" and len(args) > 1 and outside is not None:
            outside.adopted(out)
        return out

    def _away(self, op: Op, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that may wait for threads that this watch follows."""
        backward = self.backward
        if op.foreign:
            self._lock.release()
        try:
            return func(*args, **kwargs)
        except Exception:
            self._failed(op.full, args, kwargs)
            raise
        finally:
            if op.foreign:
                self._lock.acquire()
                self._op_name, self.backward = op.full, backward

    def decomposed(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A composite, as the operations that it is made of."""
        full = str(func)
        if full in SILENT:
            self.escape(full.split(".")[1], args[SILENT[full]])
        hushed = only_checks(full, args, kwargs)
        try:
            self.quiet += hushed
            try:
                return decompose(func, args, kwargs)
            finally:
                self.quiet -= hushed
        except Exception:
            if hushed:
                self._failed(full, args, kwargs)
            raise

    def _failed(self, full: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Whoever catches the error knows something about the values."""
        for t in tensors((*args, *kwargs.values())):
            self.escape(f"an error in {full}", t)

    # -- the host -------------------------------------------------------------------------------------

    def called(
        self, op: Op, bound: dict[str, Any], outs: list[Tensor], shadows: dict[int, Shadow], early: bool
    ) -> After:
        """A call that is none of torch's own is ``op``: what its results hold. ``early``: once they do."""
        self.release()
        with self._lock:
            self._ops.setdefault((op.full, op.name), op)
            self._op_name = op.full
            out = None if early else outs[0] if len(outs) == 1 else outs
            return self._step(op, bound, out, outs, tensors(tuple(bound.values())), shadows)

    def escape(self, what: str, t: Tensor) -> None:
        """The values or the memory of ``t`` go to something that is not torch."""
        self.seek(t)
        shadow = self.memory.read(t)
        self.vanished(what, shadow and shadow._replace(values=t))

    def seek(self, t: Tensor) -> None:
        """``t`` goes where no operation sees it: does it hold labels that nobody has named?"""
        if self.finder is not None:
            self.finder.left(t)
        if self.counts:
            self.counts.asked(storage(t))

    def _counted(self, held: Iterable[Held]) -> None:
        """Somebody knows how many elements masks chose."""
        with self._lock, _disable_current_modes():
            for what, shadow, site in held:
                self.recorder.escaped(what, shadow, site)

    def release(self) -> None:
        """Tell of a value that Python got, once it is clear that it is not written back where it was."""
        tell, self.held = self.held, None
        if tell is not None:
            tell()

    def declassified(self, shadow: Shadow | None, reason: str) -> None:
        """A value with this shadow goes on without it."""
        with self._lock, _disable_current_modes():
            self._op_name = "declassify"
            self.recorder.declassify(shadow, reason, self.site("host"))

    def vanished(self, what: str, shadow: Shadow | None) -> None:
        """A value with this shadow goes to something that is not torch."""
        self.release()
        if shadow and not self.quiet:
            with self._lock, _disable_current_modes():
                self._op_name = what
                self.recorder.escaped(what, shadow, self.site("host"))

    def host_data(self, t: Tensor, sources: list[Tensor]) -> None:
        """``t`` was made from Python or numpy data, which may hold anything that left torch before, and from
        the values of ``sources``."""
        for source in sources:
            self.seek(source)
        if self.ledger.watermark is None and not sources:
            return
        with self._lock, _disable_current_modes():
            algebra, mark = self.algebra, self.algebra.everything(self.ledger.watermark, t.ndim)
            known = [self.ledger.depends(self.memory.read(source)) for source in sources]
            support = algebra.everything(algebra.join(*map(algebra.everything, known)), t.ndim)
            if mark is None and support is None:
                return
            self.memory.write(t, Shadow(support, algebra.join(support, mark)))
