"""Audit a loop of any length from one step: what its state may hold, taken to a fixed point."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace._compat import owners, storage_of
from causaltrace.context import Recorder
from causaltrace.lattice.cells import LABELS, Cells
from causaltrace.ops import uses
from causaltrace.policy import Judge, check_order
from causaltrace.report.about import made_now
from causaltrace.report.model import Notice, Report
from causaltrace.report.summary import plural
from causaltrace.shadow import Shadow
from causaltrace.site import Site
from causaltrace.static.audit import (
    INTEGERS,
    between_rows,
    claim,
    line_of,
    logits_in,
    opened,
    ran,
    score_logits,
    score_returned,
)
from causaltrace.static.capture import Call, captured
from causaltrace.static.errors import AuditError
from causaltrace.static.relative import Frontier, Look
from causaltrace.static.state import Held, reached, restored
from causaltrace.static.tracer import Static
from causaltrace.static.values import speaks
from causaltrace.stream import Streams

#: Steps that a loop is unrolled to, one try after the other, until its state is at a fixed point.
UNROLLED = (2, 4, 8, 16, 32)
END = Site("score", "returned", "<end of the step>", 0)


def audit_loop(
    step: Any,
    state: Any,
    *example_inputs: Any,
    labels: str | int | Mapping[str, int] | None = None,
    scores: str | int | None = None,
    order: str = "both",
    documents: bool | None = None,
    stride: int | None = None,
    steps: int | None = None,
    **named: Any,
) -> Report:
    """Prove by induction over the steps of a loop that no score depends on a label that it must not depend
    on, for loops of any length, any weights and any tokens.

    The loop is ``for inputs in ...: step(state, *inputs)``, where each step goes on in the stream where the
    one before stopped scoring. See docs/static.md for what is proved, and under which assumptions.

    Args:
        step: a function of the state and the inputs of one step. A state that it does not change in place is
            what it returns, alone or first in a tuple, of the same structure; all else is its result.
        state: all that survives a step: modules, optimizers, tensors, and lists, dicts, tuples or objects
            of these. Gradients and states of optimizers are theirs.
        example_inputs, named: the inputs of one step; of tensors only shapes and dtypes count.
        labels: which inputs hold labels: the name or the number of one, or the names of several, each with
            the place of its first label in the part of the stream that a step is given (inputs and targets:
            ``{"inputs": 0, "targets": 1}``). None: the one integer tensor among the inputs.
        scores: as for ``audit``, in the result of a step.
        order: as for ``watch``.
        documents: are the rows of ``[batch, length]`` documents, each of which goes on in the next step?
            False: rows follow one another in one stream, and so do the steps. None: both are tried.
        stride: how many labels further the next step's inputs lie. None: the next step begins to score
            right behind the last label that this one scored.
        steps: run so many, and prove it for so many, for states that grow. If they end at a fixed point it
            holds for any number, and the report says so. None: as many as it takes to a fixed point.

    Raises:
        AuditError: as for ``audit``.
        TypeError, ValueError: bad arguments, with what to do.
    """
    check_order(order)
    for what, number in (("stride", stride), ("steps", steps)):
        if number is not None and (not isinstance(number, int) or number < 1):
            raise ValueError(f"{what} must be a positive number, not {number!r}")
    if isinstance(step, torch.fx.GraphModule) or not callable(step):
        raise TypeError(f"step must be a function of the state and its inputs, not {type(step).__name__}")
    loop = _Loop(step, state, example_inputs, named, labels, scores, order, stride, steps)
    if documents is not None or loop.rows == 1:
        return loop.report(documents is True)
    report = loop.report(False)
    if report.status == "violation":
        return report
    apart = loop.report(True)
    if apart.status != report.status:
        message = (
            f"{report.status} if rows follow one another in one stream, {apart.status} if each row is a "
            "document that goes on in the next step"
        )
        remedy = "say which it is: documents=False or documents=True"
        report.notes.append(Notice("CT095", message, remedy, blocking=True))
        report.status = "unverified"
        report.orders = dict.fromkeys(report.orders, "unverified")
        report.conditions = {c: "not covered" if s == "pass" else s for c, s in report.conditions.items()}
    return report


class _Loop:
    """What is asked: a step, its inputs, and which of them hold labels."""

    def __init__(
        self, step: Any, state: Any, args: tuple[Any, ...], named: dict[str, Any],
        labels: str | int | Mapping[str, int] | None, scores: str | int | None, order: str,
        stride: int | None, steps: int | None,
    ) -> None:  # fmt: skip
        self.step, self.state, self.scores, self.order = step, state, scores, order
        self.stride, self.steps = stride, steps
        whole = captured(step, (state, *args), named)
        self.holder, self.whole = whole.names[0], whole
        self.inputs = Call(whole.run, args, named, whole.names[1:])
        given = dict(zip(self.inputs.names, args, strict=False), **named)
        self.places = _places(given, labels)
        found = [given[name] for name in self.places]
        rows = {t.shape[0] if t.ndim > 1 else 1 for t in found}
        if len(rows) > 1:
            raise ValueError("the inputs that hold labels have different numbers of rows")
        self.rows = rows.pop()
        self.lengths = [(t.numel(), at) for t, at in zip(found, self.places.values(), strict=True)]
        self.name = next(iter(self.places)) if len(self.places) == 1 else "labels"
        modules = [m for held in reached(step, state) for m in held.modules]
        self.modules = [*whole.modules, *modules]

    def report(self, documents: bool) -> Report:
        run = made_now()
        rows = self.rows if documents else 1
        length = max(count // rows + at for count, at in self.lengths)
        first = Unrolled(self, rows, length, [length] * rows, 1, upwards=True)
        strides = [self.stride or first.scored_span(row) or length for row in range(rows)]
        if not first.judge.ledger.order:
            return first.report(run, None)
        last = self._unrolled(rows, length, strides, upwards=True)
        if last.by_logits and rows > 1:  # from rows to later rows
            last.join(self._unrolled(rows, length, strides, upwards=False))
        hidden = {n.message: n for n in (*first.hidden(), *last.hidden())}
        last.judge.notes += hidden.values()
        return last.report(run, strides)

    def _unrolled(self, rows: int, length: int, strides: Sequence[int], upwards: bool) -> Unrolled:
        """So many steps as it takes to a fixed point."""
        *tries, most = (self.steps,) if self.steps else UNROLLED
        for count in tries:
            found = Unrolled(self, rows, length, strides, count, upwards)
            if found.closed:
                return found
        return Unrolled(self, rows, length, strides, most, upwards)


def _places(given: Mapping[str, Any], labels: str | int | Mapping[str, int] | None) -> dict[str, int]:
    """The inputs that hold labels, and where the first label of each lies."""
    tensors = {n: t for n, t in given.items() if isinstance(t, Tensor)}
    if isinstance(labels, Mapping):
        places = dict(labels)
    elif labels is not None:
        places = {(list(given)[labels] if isinstance(labels, int) else labels): 0}
    else:
        found = [n for n, t in tensors.items() if t.dtype in INTEGERS and t.numel()]
        longer = [n for n in found if tensors[n].numel() > 1]
        places = dict.fromkeys(longer or found, 0)
        if len(places) > 1:
            listed = ", ".join(f"{n!r}: 0" for n in places)
            raise ValueError(
                f"several inputs hold integers: name the one with labels (labels={next(iter(places))!r}), or "
                f"say where in the step's part of the stream each begins (labels={{{listed}}})"
            )
    for name, at in places.items():
        if name not in tensors:
            among = ", ".join(tensors) or "none"
            raise ValueError(f"labels name {name!r}, which is no tensor among the inputs: {among}")
        if not isinstance(at, int) or at < 0:
            raise ValueError(f"labels: the place of {name!r} must be 0 or more, not {at!r}")
    if not places:
        raise ValueError("no input holds labels: give an integer tensor, or name it with labels=")
    return places


class Unrolled:
    """So many steps, one after the other, under one tracer. ``closed``: after the last step the state holds
    no more than before it, so that every further step is like the last one. ``upwards``: rows are numbered
    from the first to the last, else the other way round, as in ``audit``."""

    def __init__(
        self, loop: _Loop, rows: int, length: int, strides: Sequence[int], steps: int, upwards: bool
    ) -> None:
        self.loop, self.rows, self.length, self.strides, self.steps = loop, rows, length, strides, steps
        judge = self.judge = Judge(Streams(), loop.order)
        tracer = self.tracer = Static(cast(Recorder, judge), False, torch.device("cpu"), record=judge.record)
        judge.ledger, tracer.annotates = tracer.ledger, False
        self.offsets = [0] * rows
        for row in range(rows) if upwards else reversed(range(rows)):
            name = loop.name if rows == 1 else f"{loop.name}[{row}]"
            size = torch.empty(length + strides[row] * (steps - 1), dtype=torch.long, device="meta")
            self.offsets[row] = judge.streams.add(name, size).offset
        tracer.ledger.grow(judge.streams.size)
        self.closed, self.why = False, ""
        self.looks: dict[str, Look] = {}
        self.known: dict[str, Tensor | None] = {}
        self.numbers: dict[str, Any] = {}
        self.read: set[int] = set()
        self.by_logits = False
        self.undeclared: dict[str, None] = {}
        self.lost: dict[str, Site | None] = {}
        self.changing: dict[str, None] = {}
        self.state = loop.state
        call = Call(loop.whole.run, loop.whole.args, loop.whole.named, loop.whole.names, loop.modules)
        with restored(loop.step, loop.state), opened(tracer, call):
            self._survey(-1)
            for k in range(steps):
                self._step(k, call)
                self._survey(k)

    def scored_span(self, row: int) -> int:
        """From the first to the last label of a row that the first step scores; 0: none."""
        at = self._scored(row, 0)
        return int(at[-1] - at[0]) + 1 if at.numel() else 0

    def _scored(self, row: int, k: int) -> Tensor:
        """Positions that were scored in the part of a stream that steps up to the ``k``-th were given."""
        first = self.offsets[row]
        stop = first + self.length + k * self.strides[row]
        return torch.nonzero(self.tracer.ledger.is_scored[first:stop])[:, 0] + first

    # -- one step -------------------------------------------------------------------------------------

    def _step(self, k: int, call: Call) -> None:
        loop, tracer, judge = self.loop, self.tracer, self.judge
        before = self.state
        with _disable_current_modes():
            given = loop.inputs.bind(tracer)
            labelled = self._label(k, given)
            touched = self._shadows(before)
        out = self._called(k, call, {loop.holder: before, **given})
        with _disable_current_modes():
            self.state, result = _carried(before, out, lambda: not _equal(self._shadows(before), touched))
            score_returned(tracer, judge, result)
            scored = len(judge.ledger.order)
            held = [e.shadow for _, e in tracer.memory.alive() if e.shadow.target is not None]
            judge.close(held, END)
            if loop.scores is not None or not judge.ledger.order or k and self.by_logits:
                logits = logits_in(result, loop.scores)
                if logits is not None:
                    score_logits(tracer, judge, logits, labelled)
            self.by_logits = len(judge.ledger.order) > scored

    def _label(self, k: int, given: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """The inputs of step ``k`` hold the labels of its part of the stream."""
        labelled = []
        for name, at in self.loop.places.items():
            t = given[name]
            positions = torch.arange(t.numel()).view(self.rows, -1) + at
            for row, (offset, stride) in enumerate(zip(self.offsets, self.strides, strict=True)):
                positions[row] += offset + k * stride - row * (t.numel() // self.rows)
            positions = positions.view(t.shape)
            self.tracer.memory.write(t, Shadow(label=Cells(positions.unsqueeze(-1), node=LABELS)))
            labelled.append((t, positions))
        return labelled

    def _called(self, k: int, call: Call, given: Mapping[str, Any]) -> Any:
        try:
            return ran(self.tracer, call, given)
        except AuditError:
            raise
        except Exception as error:
            if not k:
                raise
            remedy = f"it is a loop of a bounded length: audit {k} steps of it with steps={k}"
            what = f"step {k + 1} of the loop fails ({type(error).__name__}: {str(error).splitlines()[:1]})"
            raise AuditError(what, line_of(error), remedy) from error

    def _shadows(self, state: Any) -> list[Tensor | None]:
        """The latest label of each element of the state."""
        latest = self.tracer.latest
        return [latest(t) for t in Held({"state": state}).tensors.values()]

    # -- between steps --------------------------------------------------------------------------------

    def _survey(self, k: int) -> None:
        """Look at all that survived step ``k``: is it no more than before? ``k`` -1: before the loop."""
        with _disable_current_modes():
            declared, beside = reached(self.loop.step, self.state)
            tracer = self.tracer
            tracer.ledger.settle()
            ends = []
            for row, (first, stride) in enumerate(zip(self.offsets, self.strides, strict=True)):
                at = self._scored(row, max(k, 0))
                passed = first + (k + 1) * stride - 1
                ends.append((first, int(at[-1]) if at.numel() else passed))
            frontier = Frontier(tracer.ledger, sorted(ends))
            looks, reasons, storages = {}, [], set()
            for held in (declared, beside):
                for path, t in held.tensors.items():
                    if t.layout is not torch.strided:
                        raise AuditError(f"{path} is a {t.layout} tensor, which cannot be audited")
                    fake = tracer.faked(t)
                    storages.add(id(storage_of(fake)))
                    shadow = tracer.memory.read(fake)
                    if shadow is not None and shadow.order is not None:
                        shadow = shadow._replace(order=None)
                        tracer.memory.write(fake, shadow)
                    look = looks[path] = frontier.look(t.shape, shadow)
                    before = self.looks.get(path, Look(tuple(t.shape)))
                    if path not in self.looks and k >= 0:
                        reasons.append(f"{path} is new")
                    elif not look.within(before):
                        grows = look.shape != before.shape
                        reasons.append(f"{path} grows to {list(t.shape)}" if grows else f"{path} holds more")
                    counted = path in declared.counts or path in beside.counts
                    fixed = counted or self._settled(path, fake)
                    if not fixed and k >= 0:
                        reasons.append(f"{path} has other values")
                    if held is beside and k >= 0 and (look.holds or not fixed):
                        self.undeclared[path] = None
            left = Look() if (mark := tracer.ledger.watermark) is None else frontier.look((), Shadow(mark))
            if k >= 0 and not left.within(self.looks.get("", Look())):
                reasons.append("more values left torch")
            if k >= 0 and not frontier.read <= self.read:
                reasons.append("more labels were read ahead")
            looks[""], self.read = left, frontier.read
            if k >= 0 and self._astray(storages):
                gc.collect()  # what only cycles hold is gone
                for sizes, shadow in self._astray(storages):
                    self._lose(sizes, shadow)
            numbers = {**declared.numbers, **beside.numbers}
            if k > 0:
                self.changing = dict.fromkeys(n for n, v in numbers.items() if _changed(self.numbers, n, v))
            self.numbers, self.looks = numbers, looks
            self.closed = k > 0 and not reasons
            self.why = reasons[0] if reasons else ""

    def _settled(self, path: str, fake: Tensor) -> bool:
        """Is what is known of its values what was known a step before? What is not, is forgotten."""
        new = self.tracer.values.read(fake)[0]
        old = self.known.get(path, new)
        self.known[path] = new
        if old is None:  # not known before, and so not from now on
            if new is not None:
                self._forget(path, fake, None)
            return True
        if new is None or new.shape != old.shape:
            self._forget(path, fake, None)
            return False
        kept = None
        if speaks(fake):
            same = bool((old.isnan() | (old == new)).all())
            kept = torch.where(old == new, new, torch.nan)
        else:
            same = torch.equal(old, new)
        if not same:
            self._forget(path, fake, kept)
        return same

    def _forget(self, path: str, fake: Tensor, kept: Tensor | None) -> None:
        self.tracer.values.write(fake, kept, False)
        self.known[path] = self.tracer.values.read(fake)[0]

    def _astray(self, reached: set[int]) -> list[tuple[Sequence[int], Shadow]]:
        """Sizes and shadows of what holds labels and is alive, though nothing that is reached holds it."""
        alive = self.tracer.memory.alive()
        return [(e.base.sizes, e.shadow) for s, e in alive if id(s) not in reached and self._outlives(s)]

    def _outlives(self, storage: torch.UntypedStorage) -> bool:
        """Does anything but the tracer hold it?"""
        for base, real in self.tracer._storages.values():
            if storage_of(base) is storage:
                return owners(real) > 1
        return True

    def _lose(self, sizes: Sequence[int], shadow: Shadow) -> None:
        cells = next((c for c in shadow[:6] if c is not None), None)
        origin = None if cells is None else cells.origin
        self.lost.setdefault(f"a tensor of {list(sizes)}", None if origin is None else origin.site)

    # -- the report -----------------------------------------------------------------------------------

    def join(self, other: Unrolled) -> None:
        """Also what was found with the rows numbered the other way round."""
        between_rows(self.judge, other.judge)
        self.closed, self.why = self.closed and other.closed, self.why or other.why
        self.steps = max(self.steps, other.steps)

    def hidden(self) -> list[Notice]:
        """What survives and was not declared."""
        out = []
        if self.undeclared:
            names = _some(self.undeclared)
            message = f"the step also changes what was not declared: {names}; it was followed like the state"
            out.append(Notice("CT095", message, "declare it as part of the state"))
        for what, site in self.lost.items():
            message = f"{what} that holds labels survives the step, out of reach of the state"
            out.append(Notice("CT095", message, "declare what holds it as state", site, blocking=True))
        return out

    def report(self, run: Any, strides: Sequence[int] | None) -> Report:
        notes = self.judge.notes
        if strides is not None:
            notes.append(self._claim(strides))
            if self.changing:
                message = f"numbers in Python change from step to step: {_some(self.changing)}"
                remedy = "the proof is about steps that take the same path whatever these are"
                notes.append(Notice("CT095", message, remedy))
            if not self.closed and not self.loop.steps:
                message = f"the state was not at a fixed point after {self.steps} steps: {self.why}"
                remedy = "for a loop of a bounded length say how many steps it has (steps=)"
                notes.append(Notice("CT095", message, remedy, blocking=True))
        report = self.judge.report(None)
        report.run = run
        report.ops = uses(self.tracer.ops)
        return report

    def _claim(self, strides: Sequence[int]) -> Notice:
        if self.closed:
            count = "any number of steps"
            if self.loop.steps:  # more than what was asked for
                count = f"a loop of {self.steps} steps, and for {count},"
            induction = f"; after step {self.steps} the state holds what it held before it (induction)"
        else:
            count, induction = f"a loop of {plural(self.steps, 'step')}", ""
        ahead = str(strides[0]) if len(set(strides)) == 1 else "as many as were scored"
        rows = "" if self.rows == 1 else ", each row in its own stream"
        what = f"{count} of these shapes, each {ahead} labels further on{rows}, for any weights and tokens"
        return claim(what + induction, self.tracer.constants)


def _changed(numbers: Mapping[str, Any], name: str, value: Any) -> bool:
    return name not in numbers or numbers[name] != value


def _some(names: Mapping[str, None]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return ", ".join(listed[:4]) + more


def _carried(state: Any, out: Any, changed: Any) -> tuple[Any, Any]:
    """The state of the next step, and the result of this one."""
    if out is state:
        return state, None
    first = out[0] if isinstance(out, tuple) and out else None
    for new, result in ((out, None), (first, out[1:] if isinstance(out, tuple) else None)):
        if new is not None and new is not state and _alike(new, state):
            if changed():
                raise ValueError(
                    "the step changes its state in place and returns something of the same structure: return "
                    "the new state, or nothing like it"
                )
            return new, result
    return state, out


def _equal(new: Sequence[Tensor | None], old: Sequence[Tensor | None]) -> bool:
    pairs = zip(new, old, strict=False)
    return all(n is o or n is not None and o is not None and torch.equal(n, o) for n, o in pairs)


def _alike(new: Any, old: Any) -> bool:
    """Can it take the place of the state?"""
    if isinstance(old, Tensor):
        return isinstance(new, Tensor) and new.dtype == old.dtype and new.ndim == old.ndim
    if isinstance(old, Mapping):
        same = isinstance(new, Mapping) and bool(old) and new.keys() == old.keys()
        return same and all(_alike(new[key], value) for key, value in old.items())
    if isinstance(old, (list, tuple)):
        same = isinstance(new, (list, tuple)) and bool(old) and len(new) == len(old)
        return same and all(_alike(n, o) for n, o in zip(new, old, strict=True))
    return new is old or type(new) is type(old) and not hasattr(old, "__dict__")
