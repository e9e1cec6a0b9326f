"""Branches and loops whose condition is not known: all that may run is run, and what it makes is joined.

``cond(p, yes, no, x)`` is ``where(p, yes(x), no(x))`` if the functions do nothing but give results. So that
is run, and the rule of ``where`` says what the results depend on. A loop is run round by round, and what its
state is once it has ended is chosen in the same way. If nothing that is known ends it, each round's state is
chosen like this, until it does not change any more: no further round can change it then.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

from causaltrace._compat import storage_of
from causaltrace.higher import FORMS, leaves
from causaltrace.lattice.cells import Cells
from causaltrace.shadow import Shadow
from causaltrace.site import Site
from causaltrace.static.bodies import Body
from causaltrace.static.errors import AuditError
from causaltrace.static.state import Held
from causaltrace.static.values import UNKNOWN, narrow

if TYPE_CHECKING:
    from causaltrace.static.tracer import Static

#: Rounds of a loop that are run with all that is known of their values.
FREE = 256
#: Rounds after which the state of a loop must have settled.
ROUNDS = 4096
Function = Callable[..., Any]
REMEDY = "run it on data inside causaltrace.watch(tokens), which follows what is taken"


class Apart:
    """What a function makes that may not be run. It may write to nothing else."""

    def __init__(self) -> None:
        self._own: dict[int, torch.UntypedStorage] = {}  #: held, so that no id is used again

    def made(self, ts: Iterable[Tensor]) -> None:
        self._own.update((id(s), s) for s in map(storage_of, ts))

    def owns(self, t: Tensor) -> bool:
        return id(storage_of(t)) in self._own

    def wrote(self, ts: Iterable[Tensor], site: Callable[[], Site]) -> None:
        if not all(map(self.owns, ts)):
            what = "a branch or a loop, which data decides on, writes to what it was given"
            raise AuditError(what, site(), REMEDY)


class Shared:
    """Tensors that may be one and the same in a run with data: there is no writing to one of several."""

    def __init__(self, t: Tensor) -> None:
        self._members = [weakref.ref(storage_of(t))]

    def alive(self) -> list[torch.UntypedStorage]:
        return [s for ref in self._members if (s := ref()) is not None]

    def add(self, t: Tensor) -> None:
        self._members.append(weakref.ref(storage_of(t)))

    def has(self, t: Tensor) -> bool:
        return any(storage_of(t) is s for s in self.alive())

    def made(self, ts: Iterable[Tensor]) -> None:
        pass

    def wrote(self, ts: Iterable[Tensor], site: Callable[[], Site]) -> None:
        if len(self.alive()) > 1 and any(map(self.has, ts)):
            what = "a result of a branch or a loop, which may be what that was given as it is, is written to"
            raise AuditError(what, site(), f"clone it there, or {REMEDY}")


def cond(tracer: Static, condition: Any, yes: Function, no: Function, operands: Any = ()) -> Any:
    """``torch.cond``."""
    known = _known(tracer, condition)
    if known is not None:
        return yes(*operands) if known else no(*operands)
    first, second = (_made(tracer, body, operands) for body in (yes, no))
    return _chosen(tracer, condition, first, second)


def loop(tracer: Static, condition: Function, body: Function, carried: Any, more: Any = (), **_: Any) -> Any:
    """``while_loop``."""
    state = tuple(carried)
    while known := _known(tracer, goes_on := condition(*state, *more)):
        state = tuple(body(*state, *more))
    if known is None:
        return _ended(tracer, condition, body, state, more, goes_on)
    same = all(a is b for a, b in zip(state, carried, strict=True))
    return tuple(t.clone() if isinstance(t, Tensor) else t for t in state) if same else state


def _ended(
    tracer: Static, condition: Function, body: Function, state: Any, more: Any, goes_on: Tensor
) -> Any:
    """The state after a loop of which it is not known whether it ``goes_on``."""
    result = state
    for t in leaves(state):
        _mark(tracer, t)
    for _ in range(FREE):
        before = _seen(tracer, (*state, *result, goes_on))
        try:
            state = tuple(_made(tracer, body, (*state, *more)))
            asked = _asked(tracer, condition, (*state, *more))
        except AuditError:
            raise
        except (IndexError, RuntimeError):  # a known index may be out of range in a round that is never run
            break
        result = _chosen(tracer, goes_on, state, result)
        if _known(tracer, asked) is False:
            return result
        goes_on = _flag(goes_on) & _flag(asked)
        if _same(before, _seen(tracer, (*state, *result, goes_on))):
            return result
    for _ in range(ROUNDS):
        before = _seen(tracer, result)
        asked = _asked(tracer, condition, (*result, *more))
        if _known(tracer, asked) is False:
            return result
        result = _chosen(tracer, asked, tuple(_made(tracer, body, (*result, *more))), result)
        if _same(before, _seen(tracer, result)):
            return result
    raise AuditError(f"what a loop carries still changes after {ROUNDS} rounds", tracer.site(), REMEDY)


def _known(tracer: Static, condition: Any) -> bool | None:
    """What a condition says; None: data decides."""
    if not isinstance(condition, Tensor):
        return bool(condition)
    data, whole = tracer.values.read(tracer.faked(condition))
    if data is None or not whole and (condition.dtype != torch.bool or int(data) == UNKNOWN):
        return None
    return bool(data)


def _flag(condition: Any) -> Any:
    if not isinstance(condition, Tensor):
        return condition
    condition = condition.reshape(())
    return condition if condition.dtype == torch.bool else condition != 0


#: Operators that choose what is run.
CHOOSING: dict[str, Callable[..., Any]] = {"cond": cond, "while_loop": loop}
#: Operators that are followed before autograd sees them. It would know nothing of what their functions close
#: over, which only the compiler finds; their operations have gradients of their own.
DIFFERENTIABLE = (*CHOOSING, "scan", "associative_scan", "map_impl")


def followed(tracer: Static, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operations that an operator is made of."""
    name = tracer._op_name = func.name()
    for t in leaves((args, kwargs)):
        tracer.faked(t)
    if name in CHOOSING:
        return CHOOSING[name](tracer, *args, **kwargs)
    if name not in FORMS:
        raise AuditError(f"{name} runs kernels that nothing is known of", tracer.site())

    def decided(condition: Any, only_results: bool) -> bool:
        return bool(tracer._read(condition, name) if isinstance(condition, Tensor) else condition)

    return FORMS[name](func, decided, *args, **kwargs)


# -- functions that may not be run ------------------------------------------------------------------------


def _made(tracer: Static, body: Function, given: Any) -> Any:
    """What a function gives that may not be run."""
    apart = Apart()
    out = _apart(tracer, apart, body, given)
    found: list[Any] = []
    for t in leaves(tree_flatten(out)[0]):
        storage = storage_of(tracer.faked(t))
        if not apart.owns(tracer.faked(t)) or any(storage is s for s in found):
            _mark(tracer, t)
        found.append(storage)
    return out


def _mark(tracer: Static, t: Tensor) -> None:
    """Whatever is chosen from this may be it."""
    guards: list[Apart | Shared] = [g for g in tracer.guards if isinstance(g, Apart) or len(g.alive()) > 1]
    tracer.guards = [*guards, Shared(tracer.faked(t))]


def _asked(tracer: Static, condition: Function, given: Any) -> Any:
    return _apart(tracer, Apart(), condition, given)


def _apart(tracer: Static, apart: Apart, body: Function, given: Any) -> Any:
    ledger = tracer.ledger
    held, scored = _held(body), (ledger.version, len(ledger.candidates))
    tracer.guards.append(apart)
    try:
        out = body(*given)
    finally:
        tracer.guards = [g for g in tracer.guards if g is not apart]
    if scored != (ledger.version, len(ledger.candidates)):
        raise AuditError("a branch or a loop, which data decides on, scores labels", tracer.site(), REMEDY)
    if not _unchanged(held, _held(body)):
        what = "a branch or a loop, which data decides on, changes Python objects"
        raise AuditError(what, tracer.site(), REMEDY)
    return out


def _held(body: Function) -> Held | None:
    """What a function of Python's can reach. Graphs have no effects but on tensors."""
    if isinstance(body, (torch.fx.GraphModule, Body)):
        return None
    cells = getattr(body, "__closure__", None) or ()
    return Held({"": body, **{str(i): cell.cell_contents for i, cell in enumerate(cells)}})


def _unchanged(a: Held | None, b: Held | None) -> bool:
    if a is None or b is None:
        return True
    tensors = [{path: id(t) for path, t in held.tensors.items()} for held in (a, b)]
    numbers = [{path: repr(n) for path, n in held.numbers.items()} for held in (a, b)]
    return tensors[0] == tensors[1] and numbers[0] == numbers[1]


# -- joining ----------------------------------------------------------------------------------------------


def _chosen(tracer: Static, condition: Any, first: Any, second: Any) -> Any:
    """``first`` if the condition is true, else ``second``."""
    (a, kind), (b, other) = tree_flatten(first), tree_flatten(second)
    if kind != other:
        raise AuditError("branches give results of different kinds", tracer.site(), REMEDY)
    flag = _flag(condition)
    return tree_unflatten([_one(tracer, flag, x, y) for x, y in zip(a, b, strict=True)], kind)


def _one(tracer: Static, flag: Tensor, a: Any, b: Any) -> Any:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        if type(a) is type(b) and a == b:
            return a
        raise AuditError("a number in Python depends on data", tracer.site(), REMEDY)
    if a.shape != b.shape or a.dtype != b.dtype:
        what = f"results of branches differ: {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
        raise AuditError(what, tracer.site(), REMEDY)
    with tracer._lock, _disable_current_modes():
        first, second = (tracer.memory.read(tracer.faked(t)) for t in (a, b))
        kept = _alike(tracer, first, second)
    if kept is None:
        out = torch.where(flag, a, b)
    else:
        out = torch.where(flag, _bare(tracer, a, first), _bare(tracer, b, second))
        with tracer._lock, _disable_current_modes():
            found = tracer.memory.read(out) or Shadow()
            tracer.memory.write(out, kept._replace(support=found.support, possible=found.possible))
    for guard in tracer.guards:
        if isinstance(guard, Shared) and any(guard.has(tracer.faked(t)) for t in (a, b)):
            guard.add(out)
    return out


def _bare(tracer: Static, t: Tensor, shadow: Shadow | None) -> Tensor:
    """A copy without the labels and readouts that its elements are."""
    copy = t.clone()
    with tracer._lock, _disable_current_modes():
        tracer.memory.write(copy, None if shadow is None else Shadow(shadow.support, shadow.possible))
    return copy


def _alike(tracer: Static, a: Shadow | None, b: Shadow | None) -> Shadow | None:
    """What two tensors are whose elements are copies of the same labels, or read them out: so is whichever is
    taken. None: they are not."""
    if a is None or b is None or (a.label, a.target) == (None, None):
        return None
    ledger = tracer.ledger
    for x, y in ((a.label, b.label), (a.target, b.target)):
        if (x is None) != (y is None):
            return None
        if x is not None and y is not None and not _equal(*(ledger.positions(c).data for c in (x, y))):
            return None
    if any(s.onehot or s.match or s.order for s in (a, b)):
        return None
    return Shadow(
        label=a.label,
        target=a.target,
        post=tracer.algebra.join(a.post, b.post),
        pending=tuple(dict.fromkeys(a.pending + b.pending)),
        objective=a.objective or b.objective,
    )


# -- has it settled? --------------------------------------------------------------------------------------


def _seen(tracer: Static, state: Iterable[Any]) -> list[Any]:
    """All that is known of what a loop carries."""
    out: list[Any] = []
    with tracer._lock, _disable_current_modes():
        for value in state:
            if isinstance(value, Tensor):
                t = tracer.faked(value)
                shadow = tracer.memory.read(t) or Shadow()
                if shadow.target is not None:  # each round makes readouts of its own
                    shadow = shadow._replace(target=tracer.ledger.positions(shadow.target))
                out += [shadow, *tracer.values.read(t)]
            else:
                out.append(value)
    return out


def _same(before: list[Any], after: list[Any]) -> bool:
    with _disable_current_modes():
        return all(map(_same_value, before, after))


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, Shadow) and isinstance(b, Shadow):
        return a.order is b.order is None and a[8:] == b[8:] and all(map(_same_value, a[:8], b[:8]))
    if isinstance(a, Cells) and isinstance(b, Cells):
        return _equal(a.data, b.data)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _equal(narrow(a), narrow(b))
    return type(a) is type(b) and bool(a == b)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Element by element; what is not known is the same as itself."""
    return bool(((a == b) | (a != a) & (b != b)).all())
