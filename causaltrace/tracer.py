"""The dispatch mode: an op comes in, its rule is found, the shadows of its results go out."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from causaltrace._compat import in_backward, is_fake, storage_of
from causaltrace.lattice.cells import Algebra, Cells
from causaltrace.ledger import Ledger
from causaltrace.places import site as place
from causaltrace.schema import Op, describe, tensors
from causaltrace.shadow import Memory, Shadow
from causaltrace.site import Site
from causaltrace.step import After, Recorder, Step

class Finder(Protocol):
    """Looks at what no label is known of; ``boundary.finder`` implements it."""

    searching: bool

    def look(self, op: Op, inputs: list[Tensor]) -> None: ...
    def made(self, outs: list[Tensor]) -> None: ...


class Tracer(TorchDispatchMode):
    """Follows supports through every operation. One per watch; the lock serves autograd's device threads."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing compiles inside a watch (force_eager), and the guard costs 10 us an operation

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
        self._step_sites: dict[str, Site] = {}
        self._lock = threading.RLock()

    # -- where we are ---------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        return "backward" if in_backward() else "update" if self.updating else "forward"

    def site(self, phase: str | None = None) -> Site:
        """Where the current operation is run. All of an optimizer step is one line of the user's."""
        phase = phase or self.phase
        if phase != "update":
            return place(self._op_name, phase)
        known = self._step_sites.get(self._op_name)
        if known is None:
            known = self._step_sites[self._op_name] = place(self._op_name, phase)
        return known

    def step_begins(self, *_: Any) -> None:
        self.updating += 1
        self._step_sites.clear()

    def step_ends(self, *_: Any) -> None:
        self.updating -= 1

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
        inputs = tensors(args)
        if kwargs:
            inputs += tensors(list(kwargs.values()))
        finder = self.finder
        if finder is not None and not op.composite and (finder.searching or op.name == "embedding"):
            finder.look(op, inputs)
        entries = self.memory.entries
        if not any([id(storage_of(t)) in entries for t in inputs]) or any([is_fake(t) for t in inputs]):
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
        bound = {name: value for name, value in bound.items() if name not in op.outs}  # what they held is lost
        if early:
            after = self._each(op, bound, written) if op.foreach else self._step(op, bound, None, written)
        out = func(*args, **kwargs)
        self._op_name = op.full
        if not early:
            fresh = [] if op.outs else [t for t in tensors(out) if all(t is not w for w in written)]
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
                after.shadows += Step(self, op, one, t, [t]).after().shadows
            return after
        return Step(self, op, bound, out if out is not None else outs[0] if len(outs) == 1 else outs, outs).after()

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
