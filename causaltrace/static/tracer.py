"""The tracer without data: operations run on fake tensors, rules see what is known of the values.

Every tensor of the audited program is fake and on the CPU, whatever it was; parameters have no values. Before
a rule runs, its arguments are replaced by stand-ins: known values as they are, floats that are not known as
NaN, and integers and bools that are not known by the fake itself. A rule that looks at one of those and has
no form for it fails, and then all that went in may have come out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace._compat import current_node, decompose, is_fake, storage_of, unfaked
from causaltrace.after import After
from causaltrace.order import INVERSE, PERMUTATION
from causaltrace.schema import SILENT, Op, describe, tensors
from causaltrace.shadow import Memory, Shadow
from causaltrace.site import Site
from causaltrace.static import branches
from causaltrace.static.arguments import blank, by_id, fresh, mapped, part_unknown, swapped
from causaltrace.static.errors import AuditError
from causaltrace.static.number import UnknownNumber
from causaltrace.static.passes import Node
from causaltrace.static.transfer import TABLE
from causaltrace.static.values import LIMIT, Seen, Values, narrow, speaks, unknown
from causaltrace.step import opaque
from causaltrace.tracer import Tracer

#: Operations that hand a value to Python.
READS = ("_local_scalar_dense", "equal", "item", "is_nonzero", "allclose")
CPU = torch.device("cpu")
#: What a look at a fake tensor raises.
BLIND = (AssertionError, KeyError, RuntimeError, TypeError)


class Static(Tracer):
    """Follows supports through a program that runs on fake tensors."""

    blind = True
    memory: Memory

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fake = FakeTensorMode()
        self._seen_as = Seen(self.algebra)
        self.memory = self.ledger.memory = self._seen_as
        self.values = Values()
        self.orders = Values()  #: of integers in an order that is not known: what they would be in one
        self.constants: dict[str, Site] = {}  #: that a verdict may rest on: where each is used first
        self.annotates = True  #: are the nodes of graphs told what they depend on?
        self.node: Node | None = None  #: of a graph, while it runs
        self.guards: list[branches.Apart | branches.Shared] = []  #: what is not to be written to
        self._arranged: list[Tensor] = []  #: keeps ids from being used again, for one operation
        self._storages: dict[int, tuple[Tensor, Any]] = {}  #: by storage of a real tensor: its fake
        self._weights: WeakValueDictionary[int, torch.UntypedStorage] = WeakValueDictionary()

    def site(self, phase: str | None = None) -> Site:
        if self.node is None:
            return super().site(phase)
        return replace(self.node.site, phase=phase or self.phase, op=self._op_name)

    @property
    def silent(self) -> bool:
        return self.backward and (self.node is None or self.node.silent)

    def objective(self, inputs: list[Tensor]) -> bool:
        return super().objective(inputs) or self.node is not None and self.node.objective

    @property
    def phase(self) -> str:
        return "backward" if self._passing else super().phase

    @property
    def _passing(self) -> bool:
        """Is this part of a backward pass?"""
        return current_node() is not None or self.node is not None and self.node.backward

    def latest(self, t: Tensor) -> Tensor:
        """The latest label that each element of ``t`` may depend on, dims full or 1; -1: none."""
        with _disable_current_modes():
            out = torch.full((1,) * t.ndim, -1, dtype=torch.int32)
            shadow = self.memory.read(self.faked(t))
            if shadow is None:
                return out
            for cells in (shadow.possible or shadow.support, shadow.post):
                out = out if cells is None else torch.maximum(out, cells.data[..., 0] >> 1)
            target = None if shadow.target is None else self.ledger.positions(shadow.target)
            for positions in (shadow.label, shadow.onehot, target):  # looking is not reading
                out = out if positions is None else torch.maximum(out, positions.data[..., 0].to(out.dtype))
            return out

    # -- tensors from outside -------------------------------------------------------------------------

    def weights(self, ts: Iterable[Tensor]) -> None:
        """These have no values, whatever they hold."""
        storages = [storage_of(t) for t in ts if t.layout is torch.strided]
        self._weights.update({id(s): s for s in storages})

    def blank(self, t: Tensor) -> Tensor:
        """A fake tensor of the shape and dtype of ``t``, which nothing else shares."""
        with self.fake:
            out = torch.empty(t.shape, dtype=t.dtype, device=CPU)
        return out.requires_grad_(t.requires_grad)

    def faked(self, t: Tensor) -> Tensor:
        """The fake tensor that stands for ``t``."""
        if is_fake(t) and getattr(t, "fake_mode", None) is self.fake:
            return t
        if t.layout is not torch.strided:
            raise AuditError(f"a {t.layout} tensor cannot be audited", self.site())
        with _disable_current_modes():
            return self._faked(t)

    def _faked(self, t: Tensor) -> Tensor:
        storage = storage_of(t)
        known = self._storages.get(id(storage))
        if known is None:
            size = storage.nbytes() // t.itemsize
            with torch.inference_mode(False), self.fake:
                base = torch.empty(size, dtype=t.dtype, device=CPU)
            known = self._storages[id(storage)] = base, storage
            weight = isinstance(t, torch.nn.Parameter) or t.requires_grad or id(storage) in self._weights
            if not (weight or t.is_meta or is_fake(t)) and size <= LIMIT:
                flat = torch.empty(0, dtype=t.dtype, device=t.device).set_(storage)[:size]
                self.values.write(base, flat.detach().to(CPU, copy=True), True)
        base = known[0]
        with torch.inference_mode(False), self.fake, torch.no_grad():
            view = base if base.dtype == t.dtype else base.view(t.dtype)
            out = view.as_strided(t.shape, t.stride(), t.storage_offset())
            return out.requires_grad_(t.requires_grad)

    # -- one operation --------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        op = self._ops.get(id(func))
        if op is None:
            if not isinstance(func, torch._ops.OpOverload):
                return self._higher_order(func, args, kwargs)
            op = self._ops[id(func)] = describe(func)
        op.calls += 1
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        self._op_name = op.full
        args = tuple(mapped(self.faked, a) for a in args)
        kwargs = {name: mapped(self.faked, a) for name, a in kwargs.items()}
        if func.namespace == "prim":
            return self._made(func, args, kwargs)
        if op.name in ("lift_fresh", "lift"):
            return args[0]
        if op.composite:
            if op.full in SILENT:
                self._read(args[SILENT[op.full]], op.name)
            with self:
                out = decompose(func, args, kwargs)
            if out is not NotImplemented:
                return out
        inputs = tensors(args) + tensors(tuple(kwargs.values()))
        if op.name in READS:
            values = [self._read(t, op.name) for t in inputs]
            with _disable_current_modes():
                return func(*swapped(args, inputs, values), **swapped(kwargs, inputs, values))
        if op.view:
            return self._made(func, args, kwargs)
        with self._lock, _disable_current_modes():
            return self._one(op, func, args, kwargs, inputs)

    def _one(
        self, op: Op, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]
    ) -> Any:
        if self._passing != self.backward:  # a new pass begins
            self.backward = not self.backward
            self.algebra.forget()
        known = self._seen(inputs)
        bound = op.bind(args, kwargs)
        written = [t for name in op.written for t in tensors(bound.get(name))]
        for guard in self.guards:
            guard.wrote(written, self.site)
        drawn = torch.Tag.nondeterministic_seeded in func.tags or op.name.startswith(("empty", "new_empty"))
        numbers = [v for v in (*args, *kwargs.values()) if isinstance(v, float) and v != v]
        folded = not drawn and not numbers and all(whole for _, whole, _ in known.values())
        shadows = {id(t): s for t in inputs if (s := self.memory.read(t)) is not None}
        state = any(s.support is not None and s.support.written for s in shadows.values())
        if state and not (self.updating or self.backward):
            self._read_again(shadows)
        stand = {key: t for key, (t, _, _) in known.items()}
        planes = {key: t for key, (_, _, t) in known.items()}
        early = bool(written) and op.early
        after: After | None = None
        if shadows and early:
            after = self._ruled(op, bound, None, written, inputs, shadows, stand)
        out, results = self._run(op, func, args, kwargs, inputs, stand, planes, written, folded)
        self._op_name = op.full
        made = [t for t in tensors(out) if all(t is not w for w in written)]
        for guard in self.guards:
            guard.made(made)
        outs = made + written
        if not outs:
            return out
        for t, (data, whole) in zip(outs, results, strict=True):
            if t.layout is torch.strided:
                self.values.write(t, data, whole)
        if not shadows:
            for t in written:
                self.memory.write(t, None)
            return out
        if after is None:
            result = outs if written and made else out
            after = self._ruled(op, bound, result, outs, inputs, shadows, stand)
        if self.updating and written:
            stamp = self._stamped
            after.shadows = [s._replace(support=stamp(s.support)) if s.support else s for s in after.shadows]
        self._arrange(op, func, args, kwargs, outs, after, known)
        self._write(outs, after)
        self._seen_as.originals.clear()
        self._arranged.clear()
        return out

    def _seen(self, inputs: list[Tensor]) -> dict[int, tuple[Tensor, bool, Tensor]]:
        """By id: what stands for each input, whether all of it is known, and all that is."""
        out: dict[int, tuple[Tensor, bool, Tensor]] = {}
        for t in inputs:
            data, whole = self.values.read(t)
            stand = self._stand(t)
            out[id(t)] = stand, whole, stand if data is None else data
        return out

    def _stand(self, t: Tensor) -> Tensor:
        """What rules get to see instead of ``t``."""
        data, whole = self.values.read(t)
        if data is not None and (whole or speaks(t)):
            return data
        return unknown(t) if speaks(t) else t

    def _run(
        self,
        op: Op,
        func: Any,
        args: Any,
        kwargs: Any,
        inputs: list[Tensor],
        stand: dict[int, Tensor],
        planes: dict[int, Tensor],
        written: list[Tensor],
        folded: bool,
    ) -> tuple[Any, list[tuple[Tensor | None, bool]]]:
        """The result on fake tensors, and what is known of each tensor that was made or written."""
        fill = FILLS.get(op.name)
        if fill is not None and not op.foreach:
            value = fill(op.bind(args, kwargs))
            if isinstance(value, (int, float, complex)) and value == value:
                out = self._made(func, args, kwargs)
                t = written[0] if written else out
                return out, [(torch.full((1,) * t.ndim, value, dtype=t.dtype), True)]
        if folded and inputs and not written:
            with _disable_current_modes():
                real = func(*by_id(args, stand), **by_id(kwargs, stand))
            out = mapped(self._like, real)
            return out, [(t, True) for t in tensors(real)]
        out = self._made(func, args, kwargs)
        made = [t for t in tensors(out) if all(t is not w for w in written)]
        outs = made + written
        nothing: list[tuple[Tensor | None, bool]] = [(None, False)] * len(outs)
        if folded and sum(t.numel() for t in outs) <= LIMIT:
            with _disable_current_modes():
                copies = {id(t): fresh(stand[id(t)]) for t in written}
                both = {**stand, **copies}
                real = func(*by_id(args, both), **by_id(kwargs, both))
                new = [t for t in tensors(real) if all(t is not c for c in copies.values())]
            return out, [(t, True) for t in [*new, *copies.values()]]
        fn = TABLE.get(op.name)
        if fn is None or op.foreach or not outs or not (speaks(outs[0]) or outs[0].dtype == torch.bool):
            return out, nothing
        arguments = {
            name: by_id(v, planes) for name, v in op.bind(args, kwargs).items() if name not in op.outs
        }
        given = [t for v in arguments.values() for t in tensors(v)]
        nothing_given = all(blank(t) for t in given) and op.name not in FROM_NOTHING
        if nothing_given or not all(t.numel() for t in (*given, *outs)):
            return out, nothing
        arguments["_name"] = op.name
        try:
            with torch.no_grad():
                found = fn(arguments, outs[0])
        except BLIND:  # it looks at an integer or a bool that is not known
            return out, nothing
        several = [
            None if t is None or is_fake(t) else t for t in (found if isinstance(found, list) else [found])
        ]
        return out, [(t, False) for t in [*several, *[None] * len(outs)]][: len(outs)]

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            with self.fake:
                if func is torch.ops.aten._grouped_mm.default:
                    return _grouped(func, *args, **kwargs)
                return func(*args, **kwargs)
        except unfaked() as error:
            raise AuditError(
                f"{func} gives a result whose shape or value depends on data", self.site()
            ) from error

    def _like(self, real: Tensor) -> Tensor:
        with self.fake:
            return torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=CPU)

    def _read(self, t: Any, what: str) -> Tensor:
        """The value of a tensor that Python asks for."""
        data, whole = self.values.read(t) if isinstance(t, Tensor) else (t, True)
        if data is None or not whole:
            raise AuditError("a branch or a number in Python depends on data", self.site("host"))
        return data

    def number(self, t: Tensor, item: Callable[[Tensor], Any]) -> Any:
        """``t.item()``: a value that leaves torch; one that is not known stays unknown to Python."""
        with self._lock, _disable_current_modes():
            fake = self.faked(t)
            _, whole = self.values.read(fake)
            if not whole and t.numel() == 1 and t.dtype.is_floating_point:
                self.escape("_local_scalar_dense", fake)
                return UnknownNumber(lambda: self.site("host"))
        return item(t)

    # -- orders ---------------------------------------------------------------------------------------

    def _arrange(
        self, op: Op, func: Any, args: Any, kwargs: Any, outs: list[Tensor], after: After,
        known: dict[int, tuple[Tensor, bool, Tensor]],
    ) -> None:  # fmt: skip
        """Integers that follow from an unknown order get the values that they would have if each item were in
        its own slot. Rules about orders treat slots alike, so that any order shows what it cancels out to."""
        ordered = [(t, s.order) for t, s in zip(outs, after.shadows, strict=False) if s.order is not None]
        integers = [(t, order) for t, order in ordered if not speaks(t)]
        if not integers:
            return
        if op.name in ("sort", "index_put", "scatter"):
            for t, order in integers:
                if order.role in (PERMUTATION, INVERSE):
                    self.orders.write(t, torch.arange(t.numel()), True)
            return
        stand = {}
        for t in (*tensors(args), *tensors(tuple(kwargs.values()))):
            data, whole = self.orders.read(t)
            stand[id(t)] = data if data is not None else known[id(t)][0]
            if not (whole or known[id(t)][1]):
                return
        real = func(*by_id(args, stand), **by_id(kwargs, stand)) if not op.written else None
        for t, data in zip(outs, tensors(real), strict=False):
            self.orders.write(t, data, True)

    def represented(
        self, bound: dict[str, Any], orders: Collection[int]
    ) -> tuple[dict[str, Any], dict[int, int]]:
        originals: dict[int, int] = {}

        def stand(t: Tensor) -> Tensor:
            data = self.orders.read(t)[0] if id(t) in orders and is_fake(t) else None
            if data is None:
                return t
            data = data.view_as(data)
            originals[id(data)] = id(t)
            self._arranged.append(data)
            return data

        return {name: mapped(stand, value) for name, value in bound.items()}, originals

    # -- the rule -------------------------------------------------------------------------------------

    def _ruled(
        self,
        op: Op,
        bound: dict[str, Any],
        out: Any,
        outs: list[Tensor],
        inputs: list[Tensor],
        shadows: dict[int, Shadow],
        stand: dict[int, Tensor],
    ) -> After:
        """The supports of the results, by the op's rule on stand-ins."""
        if op.outs:
            bound = {name: value for name, value in bound.items() if name not in op.outs}
        stand = dict(stand)
        originals = self._seen_as.originals
        for t in inputs:
            own = stand[id(t)]
            if own is not t:
                own = own.view_as(own) if id(own) in originals else own
                if own.requires_grad != t.requires_grad:
                    own = own.detach().requires_grad_(t.requires_grad)
                stand[id(t)] = own
                originals[id(own)] = t
        for t in outs:
            if id(t) not in stand:
                stand[id(t)] = self._stand(t)
        ruled = {id(stand[key]): s for key, s in shadows.items()}
        if op.rule.fn.__module__ not in GENERIC:
            ruled = {
                id(t if part_unknown(stand[id(t)]) else stand[id(t)]): shadows[id(t)]
                for t in inputs
                if id(t) in shadows
            }
            stand = {key: t for key, t in stand.items() if not part_unknown(t)}
        arguments = {name: by_id(value, stand) for name, value in bound.items()}
        given = [t for v in arguments.values() for t in tensors(v)]
        targets = [stand.get(id(t), t) for t in outs]
        with _disable_current_modes():
            try:
                after = self._step(op, arguments, by_id(out, stand), targets, given, ruled)
                for cells in (c for s in after.shadows for c in s[:8] if c is not None):
                    if is_fake(cells.data):
                        raise TypeError("a support was made of values that are not known")
                self._rests_on(op, inputs, stand, ruled)
                return after
            except AuditError:
                raise
            except Exception:  # it looks at values that nobody knows
                return self._conservative(op, outs, list(shadows.values()))

    def _conservative(self, op: Op, outs: list[Tensor], given: list[Shadow]) -> After:
        """All that went in may have come out; readouts among it are scored here."""
        algebra, depends = self.algebra, self.ledger.depends
        cells = algebra.join(*[algebra.everything(depends(s, "possible")) for s in given])
        if cells is not None:
            opaque(self, f"{op.full} on values that are not known", cells)
        after = After([Shadow(None, algebra.everything(cells, t.ndim)) for t in outs])
        after.leaving = [s for s in given if s.target is not None]
        return after

    def _rests_on(
        self, op: Op, inputs: list[Tensor], stand: dict[int, Tensor], ruled: dict[int, Shadow]
    ) -> None:
        """Constants whose values a rule may have used: that hold zeros or mask values, or choose."""
        for t in inputs:
            own = stand.get(id(t), t)
            if id(own) in ruled or is_fake(own) or self.backward or self.updating:
                continue
            small = narrow(own)
            if small.numel() < 2 or blank(own):  # one number for all
                continue
            if own.dtype.is_floating_point and not bool(((small == 0) | (small <= -1e9)).any()):
                continue
            sizes = list(small.shape)
            while len(sizes) > 1 and sizes[0] == 1:
                del sizes[0]
            name = f"{str(own.dtype).removeprefix('torch.')} {sizes}"
            self.constants.setdefault(name, self.site())

    # -- operators that call functions ----------------------------------------------------------------

    def _higher_order(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self:
            return branches.followed(self, func, args, kwargs)


#: Rules to which a float that is not known may be NaN: they look at floats for zeros and mask values only.
#: The others may make places of them.
GENERIC = frozenset(
    f"causaltrace.rules.{name}"
    for name in ("pointwise", "matmul", "attention", "norm", "loss", "reduce", "move", "index", "scatter",
                 "conv", "optim", "fallback")
)  # fmt: skip

#: Operations that give one number to all elements, whatever they are given: the number.
FILLS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero", "_efficientzerotensor"), lambda _: 0),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), lambda _: 1),
    **dict.fromkeys(("full", "full_like", "new_full"), lambda a: a["fill_value"]),
    "fill": lambda a: a["value"],
}

#: Functions that know something of their result where they know nothing of what they read.
FROM_NOTHING = ("tril", "triu", "constant_pad_nd", "slice_backward", "select_backward", "zero")


def _grouped(func: Any, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A grouped product of fakes, which torch has in one type only."""
    out: Tensor = func(a.bfloat16(), b.bfloat16(), *args, **kwargs)
    return out.to(a.dtype)
