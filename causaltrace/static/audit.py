"""Audit a function or a model before it runs: which labels may reach which scores, whatever the values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace._compat import Operator, current_mode
from causaltrace.context import Recorder
from causaltrace.higher import leaves
from causaltrace.lattice.cells import LABELS, Cells
from causaltrace.ledger import Pending
from causaltrace.ops import uses
from causaltrace.places import internal
from causaltrace.policy import Judge, check_order
from causaltrace.replaced import replaced
from causaltrace.report.about import made_now
from causaltrace.report.model import Notice, Report, Run
from causaltrace.shadow import Shadow
from causaltrace.site import Site
from causaltrace.static.branches import DIFFERENTIABLE, followed
from causaltrace.static.capture import Call, captured
from causaltrace.static.errors import AuditError
from causaltrace.static.joined import Tried
from causaltrace.static.kept import kept
from causaltrace.static.listing import listing
from causaltrace.static.tracer import Static
from causaltrace.stream import Streams

#: What torch says where something wants the memory of a fake tensor.
VALUELESS = (
    "not allocated",
    "FakeTensor",
    "tensor subclasses",
    "data pointer",
    "meta tensor",
    "fake",
    "UnknownNumber",
)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def audit(
    target: Any,
    *example_inputs: Any,
    labels: str | int | None = None,
    scores: str | int | None = None,
    order: str = "both",
    **named: Any,
) -> Report:
    """Prove which labels may reach which scores, for every choice of weights and tokens, without data.

    Args:
        target: a function, an ``nn.Module``, a ``torch.fx.GraphModule``, a ``torch.export.ExportedProgram``,
            or the path of a ``.pt2`` file. A function may do a whole step of an eval: forward, loss,
            backward, optimizer steps, score.
        example_inputs, named: what to call it with. Of tensors only shapes and dtypes count, so that meta
            and fake ones will do; other values are used as they are. An exported program needs none: where
            its shapes are dynamic it is audited at several sizes in range, which the report names (CT097).
        labels: which inputs hold labels: the name or the number of an argument. None: every integer tensor
            of two or more elements. Rows of a tensor ``[batch, length]`` are streams of their own; where
            logits are what is scored, a row's labels may reach no other row.
        scores: which output holds logits ``[..., length, classes]``, in the order of the labels: the name of
            an attribute or a key, or a number. Position t's logits score label t + 1. None: what the target
            itself reads out at labels (losses) if it does; else ``logits``, or its only float output.
        order: as for ``watch``.

    Raises:
        AuditError: the target branches on data, gives values to Python, or cannot be captured.
        TypeError, ValueError: there are no labels, or no logits for them.
    """
    check_order(order)
    run = made_now()
    call = captured(target, example_inputs, named)

    def audited(call: Call, annotates: bool) -> tuple[Report, dict[str, Site]]:
        first = _Pass(call, order, labels, scores, upwards=True, annotates=annotates)
        if first.by_logits and any(t.ndim > 1 and t.shape[0] > 1 for t, _ in first.streams):
            back = _Pass(call, order, labels, scores, upwards=False, annotates=False)
            between_rows(first.judge, back.judge)
        report = first.report(run)
        if call.graph is not None and annotates:
            report.listing = listing(call.graph, first.judge.streams)
        return report, first.tracer.constants

    report, constants = audited(call, True)
    where = "of these shapes"
    if call.dynamic is not None:
        tried = Tried(call.dynamic, report, constants)
        for plan in call.dynamic.sizes.trials():
            tried.first(plan, lambda given: audited(replace(call, named=given), False))
        report, constants, where = tried.joined()
    report.notes.insert(0, claim(f"any weights and tokens {where}", constants))
    return report


def claim(what: str, constants: Mapping[str, Site]) -> Notice:
    """What the report holds for."""
    message = f"static audit: holds for {what}"
    if constants:
        listed = [f"{n} at {Path(site.file).name}:{site.line}" for n, site in sorted(constants.items())]
        message += f", given these constants: {', '.join(listed)}"
    return Notice("CT097", message)


class _Pass:
    """The target run once. ``upwards``: rows are numbered from the first to the last, else the other way
    round: a label is late where it reaches a row before its own, and no order of rows shows both ways."""

    def __init__(
        self, call: Call, order: str, labels: str | int | None, scores: str | int | None,
        upwards: bool, annotates: bool,
    ) -> None:  # fmt: skip
        judge = self.judge = Judge(Streams(), order)
        tracer = self.tracer = Static(cast(Recorder, judge), False, torch.device("cpu"), record=judge.record)
        judge.ledger, tracer.annotates = tracer.ledger, annotates
        given = call.bind(tracer)
        self.streams = _label(judge, tracer, given, labels, upwards)
        with opened(tracer, call):
            out = ran(tracer, call, given)
        with _disable_current_modes():
            score_returned(tracer, judge, out)
            held = [e.shadow for _, e in tracer.memory.alive() if e.shadow.target is not None]
            judge.close(held, Site("score", "returned", "<end of the audit>", 0))
            logits = None
            if scores is not None or not judge.ledger.order:
                logits = logits_in(out, scores)
            self.by_logits = logits is not None
            if logits is not None:
                score_logits(tracer, judge, logits, self.streams)

    def report(self, run: Run) -> Report:
        report = self.judge.report(None)
        report.run = run
        report.ops = uses(self.tracer.ops)
        return report


def between_rows(judge: Judge, other: Judge) -> None:
    """Also what another judge found between rows, which it numbers the other way round."""
    size = judge.streams.size
    for (kind, site, target), finding in other.findings.items():
        if finding.stream != finding.source_stream:
            judge.findings[kind, site, size + target] = finding
    for name, count in other.unproved.items():
        judge.unproved[name] = max(judge.unproved[name], count)


def ran(tracer: Static, call: Call, given: Mapping[str, Any]) -> Any:
    try:
        return call.run(tracer, given)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        if isinstance(error, AuditError) or not any(words in str(error) for words in VALUELESS):
            raise
        text = str(error).partition("\n")[0]
        raise AuditError(f"it needs values, and there are none ({text})", line_of(error)) from error


def line_of(error: BaseException) -> Site | None:
    """The innermost line of the audited program that an error came through."""
    found, at = None, error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        if not internal(code.co_filename):
            found = Site("forward", "", code.co_filename, at.tb_lineno, code.co_name)
        at = at.tb_next
    return found


@contextlib.contextmanager
def opened(tracer: Static, call: Call) -> Iterator[None]:
    dispatched = Operator.__call__
    item, parameter = Tensor.item, torch.nn.Parameter.__deepcopy__

    def copied(t: Tensor, memo: dict[int, Any]) -> Tensor:
        """A copy is an operation: there is no memory to copy."""
        out = memo[id(t)] = t.detach().clone().requires_grad_(t.requires_grad)
        return out

    def same_kind(p: Any, memo: dict[int, Any]) -> Any:
        tracer.weights([p])
        return parameter(p, memo)

    def called(op: Any, *args: Any, **kwargs: Any) -> Any:
        if op.name() in DIFFERENTIABLE and current_mode() is tracer:
            return followed(tracer, op, args, kwargs)
        return dispatched(op, *args, **kwargs)

    def saved(t: Tensor, protocol: int) -> Any:
        raise AuditError("a tensor is saved or pickled, which needs its values", tracer.site("host"))

    undo: list[Callable[[], None]] = [
        register_optimizer_step_pre_hook(tracer.step_begins).remove,
        register_optimizer_step_post_hook(tracer.step_ends).remove,
    ]
    try:
        with torch.compiler.set_stance("force_eager"), kept(tracer, call.modules), tracer:
            undo += [
                replaced(Tensor, "__deepcopy__", copied),
                replaced(torch.nn.Parameter, "__deepcopy__", same_kind),
                replaced(Operator, "__call__", called),
                replaced(Tensor, "item", lambda t: tracer.number(t, item)),
                replaced(Tensor, "__reduce_ex__", saved),
            ]
            yield
    finally:
        for restore in reversed(undo):
            restore()


def _label(
    judge: Judge, tracer: Static, given: Mapping[str, Any], labels: str | int | None, upwards: bool
) -> list[tuple[Tensor, Tensor]]:
    """Number the labels; the (fake) tensors that hold them, with the positions of their elements."""
    found = {n: t for n, t in given.items() if isinstance(t, Tensor)}
    if labels is not None:
        name = list(given)[labels] if isinstance(labels, int) else labels
        if name not in found:
            raise ValueError(
                f"labels={labels!r} names no tensor among the inputs: {', '.join(found) or 'none'}"
            )
        found = {name: found[name]}
    else:
        found = {n: t for n, t in found.items() if t.dtype in INTEGERS and t.numel() > 1}
    if not found:
        raise ValueError("no input holds labels: give an integer tensor, or name it with labels=")
    out = []
    for name, t in found.items():
        positions = _numbered(judge.streams, name, t, upwards)
        tracer.ledger.grow(judge.streams.size)
        tracer.memory.write(t, Shadow(label=Cells(positions.unsqueeze(-1), node=LABELS)))
        out.append((t, positions))
    return out


def _numbered(streams: Streams, name: str, t: Tensor, upwards: bool) -> Tensor:
    """The positions of the labels in ``t``; each row is a stream of its own."""
    if t.ndim < 2 or t.shape[0] == 1:
        return torch.arange(t.numel()).view(t.shape) + streams.add(name, t).offset
    positions = torch.empty(t.shape, dtype=torch.long)
    rows = range(t.shape[0]) if upwards else reversed(range(t.shape[0]))
    for row in rows:
        offset = streams.add(f"{name}[{row}]", t[row]).offset
        positions[row] = torch.arange(t[row].numel()).view(t.shape[1:]) + offset
    return positions


# -- scores -----------------------------------------------------------------------------------------------


def logits_in(out: Any, scores: str | int | None) -> Tensor | None:
    """The output that holds logits."""
    if scores is not None:
        found = _named(out, scores)
        if not isinstance(found, Tensor):
            raise ValueError(f"scores={scores!r} names no output that is a tensor")
        return found
    if not isinstance(out, Tensor) and isinstance(_named(out, "logits"), Tensor):
        return cast(Tensor, _named(out, "logits"))
    flat = [out] if isinstance(out, Tensor) else list(out) if isinstance(out, (list, tuple)) else []
    floats = [t for t in flat if isinstance(t, Tensor) and t.dtype.is_floating_point and t.ndim > 1]
    return floats[0] if len(floats) == 1 else None


def score_returned(tracer: Static, judge: Judge, out: Any) -> None:
    """Readouts among the results, and those that an objective among them sums, are scores."""
    site = Site("score", "returned", "<end of the audit>", 0)
    for t in leaves(out if isinstance(out, (Tensor, list, tuple, Mapping)) else []):
        shadow = tracer.memory.read(tracer.faked(t))
        if shadow is None:
            continue
        if shadow.target is not None:
            judge.scored(shadow, site)
        for pending in shadow.pending:
            if isinstance(pending, Pending):
                judge.candidate(pending, site)


def _named(out: Any, name: str | int) -> Any:
    if isinstance(name, int):
        return (
            out[name]
            if isinstance(out, (list, tuple)) and -len(out) <= name < len(out)
            else (out if name == 0 else None)
        )
    if isinstance(out, Mapping):
        return out.get(name)
    return getattr(out, name, None)


def score_logits(tracer: Static, judge: Judge, logits: Tensor, streams: list[tuple[Tensor, Tensor]]) -> None:
    """Position t's logits score label t + 1 of their row."""
    lead = tuple(logits.shape[:-1])
    positions = next((p for t, p in streams if tuple(t.shape) == lead), None)
    if positions is None and len(lead) > 1 and lead[0] == 1:  # a batch of one, added inside
        positions = next((p.unsqueeze(0) for t, p in streams if tuple(t.shape) == lead[1:]), None)
    if positions is None:
        shapes = ", ".join(str(list(t.shape)) for t, _ in streams)
        raise ValueError(
            f"logits {list(logits.shape)} do not fit the labels {shapes}: return [*labels, classes], "
            "or name the output with scores="
        )
    ledger, algebra = tracer.ledger, tracer.algebra
    shadow = tracer.memory.read(logits)
    nexts = torch.cat((positions[..., 1:], torch.full_like(positions[..., :1], -1)), -1)
    target = ledger.new_readouts(Cells(nexts.unsqueeze(-1), node=LABELS))
    support, possible = (
        algebra.reduce(ledger.depends(shadow, plane), [logits.ndim - 1], keepdim=False)
        for plane in ("support", "possible")
    )
    site = Site("score", "logits", "<output of the audited target>", 0)
    event = ledger.event(Shadow(support, possible, target=target), site)
    if event is not None:
        judge.score(event)
