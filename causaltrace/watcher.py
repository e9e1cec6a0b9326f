"""The context manager: the one place where the parts are put together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace import charge
from causaltrace.boundary import copies, sight
from causaltrace.boundary.adopt import adopt
from causaltrace.boundary.files import Files, Pattern
from causaltrace.boundary.finder import Finder
from causaltrace.boundary.host import Host
from causaltrace.boundary.kernels import following
from causaltrace.boundary.numpy import current as current_arrays
from causaltrace.boundary.outside import Outside
from causaltrace.context import Recorder
from causaltrace.distribution import charged
from causaltrace.graph.tape import Tape
from causaltrace.lattice.cells import LABELS, Cells
from causaltrace.lattice.exact import Exact
from causaltrace.lattice.horizon import Horizon
from causaltrace.mass import pack
from causaltrace.ops import uses
from causaltrace.policy import Judge, check_order
from causaltrace.report.about import made_now
from causaltrace.report.model import Finding, Notice, Report, Run
from causaltrace.shadow import Shadow
from causaltrace.site import Site
from causaltrace.stream import Stream, Streams, check_tokens, named
from causaltrace.tracer import Tracer

if TYPE_CHECKING:
    from networkx import MultiDiGraph

Tokens = Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None

_current: Watch | None = None
_lock = threading.Lock()


#: Labels that can be told apart in one watch: a number for each of them in every support.
EXACT_LABELS = 4096

NOT_OPEN = (
    "label_files labels what is read in an open watch, and this one is not: call it at the top of the block, "
    "`with causaltrace.watch() as trace: causaltrace.label_files(...)`, before the files are read"
)


def _exact(given: list[tuple[str, Tensor]]) -> Exact:
    total = sum(t.numel() for _, t in given)
    if not 0 < total <= EXACT_LABELS:
        raise ValueError(
            f"precision='exact' tells 1 to {EXACT_LABELS} given labels apart, not {total}: pass the tokens, "
            "or watch a part of the stream"
        )
    return Exact(range(total))


class Standing(NamedTuple):
    """How far a watch has come: positions scored and labels; findings and opaque operations so far."""

    scored: int
    labels: int
    findings: int
    opaque: int


def _runs(row: Tensor) -> list[int]:
    """``[start, stop, start, stop ...]`` of what is true in a bool tensor ``[n]``."""
    edges = torch.zeros(row.numel() + 2, dtype=torch.int8)
    edges[1:-1] = row
    found: list[int] = edges.diff().nonzero()[:, 0].tolist()
    return found


class ViolationError(AssertionError):
    """Raised by ``raise_if_violation``; its text is the report."""


def current() -> Watch | None:
    """The watch that is open now, if any."""
    return _current


class Watch:
    """Follows labels through everything that runs inside the ``with`` block.

    Args:
        tokens: the label stream: an integer tensor (1-D stream, or 2-D rows one after the other), several of
            them, or a mapping name -> tensor. Inputs and targets must be sliced from these inside the block.
            None: the stream is found by itself, as the outside integer tensor whose elements index a loss.
        order: which orders the status needs: "both", "stream" or "scored".
        precision: "horizon" (latest label of each element; exact for the verdict) or "exact" (all labels of
            each element, for ``matrix``; at most 4,096 labels, all given here).
        documents: start positions of documents; a document's first token is given, not scored.
        strict: raise on the first operation that has no rule.

    Raises:
        TypeError, ValueError: bad arguments, with what to do.
        RuntimeError: a watch is open already.
    """

    def __init__(
        self,
        tokens: Tokens = None,
        *,
        order: str = "both",
        precision: str = "horizon",
        documents: Tensor | Sequence[int] | None = None,
        strict: bool = False,
    ) -> None:
        check_order(order)
        if precision not in ("horizon", "exact"):
            raise ValueError(f"precision must be 'horizon' or 'exact', not {precision!r}")
        given = named(tokens)
        lattice = _exact(given) if precision == "exact" else Horizon()
        device = given[0][1].device if given else torch.device("cpu")
        with torch.inference_mode(False):
            self.streams = Streams()
            self._given: list[tuple[Stream, Tensor]] = []
            self._judge = Judge(self.streams, order)
            self._tracer = Tracer(cast(Recorder, self._judge), strict, device, lattice, self._judge.record)
            self._judge.ledger = self._tracer.ledger
            for name, tensor in given:
                self._add(name, tensor)
            if documents is not None:
                self._documents(torch.as_tensor(documents))
        outside = self._tracer.outside = Outside(self._tracer)
        self._host = Host(self._tracer, outside, self.note)
        self._finder = Finder(self._tracer, given, self._add, self.note)
        self._tracer.finder = self._finder
        self._files: Files | None = None
        self._stack = contextlib.ExitStack()
        self._report: Report | None = None
        self._run = Run()

    # -- labels ---------------------------------------------------------------------------------------

    def _add(self, name: str, tensor: Tensor) -> Stream:
        stream = self._numbered(name, tensor)
        self._place(
            tensor, torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape) + stream.offset
        )
        return stream

    def _numbered(self, name: str, tensor: Tensor) -> Stream:
        """A new stream; no tensor has its labels yet."""
        lattice = self._tracer.algebra.lattice
        if isinstance(lattice, Exact) and self.streams.size + tensor.numel() > len(lattice.window):
            raise ValueError(
                f"stream {name!r} is new: with precision='exact' give all streams to watch() at once"
            )
        stream = self.streams.add(name, tensor)
        self._given.append((stream, tensor))
        self._tracer.ledger.grow(self.streams.size)
        return stream

    def _place(self, tensor: Tensor, positions: Tensor) -> None:
        """The elements of ``tensor`` are the labels at ``positions``; negative ids (-100) are none."""
        positions = torch.where(tensor.long() >= 0, positions, -1)
        self._tracer.memory.declare(tensor, Shadow(label=Cells(positions.unsqueeze(-1), node=LABELS)))

    def _documents(self, starts: Tensor) -> None:
        size = self.streams.size
        if (
            starts.dtype.is_floating_point
            or starts.numel()
            and not bool(((starts >= 0) & (starts < size)).all())
        ):
            raise ValueError(f"documents must be start positions between 0 and {size - 1}")
        self._tracer.ledger.is_scored[starts.long().flatten()] = True

    def label(self, t: Tensor, positions: Tensor | None = None, stream: str = "labels") -> Tensor:
        """Declare the elements of ``t`` labels: of ``positions`` in an existing stream, or of a new one."""
        check_tokens(t)
        with torch.inference_mode(False), self._quiet():
            known = self.streams.find(stream)
            if positions is None:
                if known is not None and known.size == t.numel():
                    positions = torch.arange(t.numel(), device=t.device).view(t.shape)
                elif known is not None:
                    raise ValueError(
                        f"stream {stream!r} exists with {known.size} labels; give positions=, or another name"
                    )
                else:
                    self._finder.stop()
                    self._add(stream, t)
                    return t
            if known is None:
                raise ValueError(f"no stream {stream!r} to place positions in; label its whole tensor first")
            where = torch.as_tensor(positions, device=t.device).expand(t.shape)
            if where.numel() and not bool(((where >= -1) & (where < known.size)).all()):
                raise ValueError(
                    f"positions must lie in stream {stream!r} of {known.size} labels (-1: no label)"
                )
            self._place(t, torch.where(where >= 0, where + known.offset, -1))
        return t

    def label_files(self, *patterns: Pattern, dtype: Any = None, offset: int = 0) -> None:
        """See ``causaltrace.label_files``."""
        if _current is not self:
            raise RuntimeError(NOT_OPEN)
        if self._files is None:
            self._files = Files(current_arrays(), self._numbered, self.note)
            self._files.declare(patterns, dtype, offset)
            self._stack.callback(self._files.close)
            self._files.enter()
            self._finder.stop()
        else:
            self._files.declare(patterns, dtype, offset)

    def score(self, nll: Tensor, targets: Tensor | None = None, distribution: Tensor | None = None) -> Tensor:
        """Count ``nll`` as the score; from the first call on, nothing else does.

        Args:
            nll: values read out at labels, in any shape; or any values, with ``targets``.
            targets: the labels that they score, sliced from the watched tokens; same shape.
            distribution: ``[*nll.shape, classes]``, probabilities or their logarithms: what each value is
                read from. Its support is judged, its rows must sum to 1, and ``nll`` must be what it charges
                for the labels, however it was computed.
        """
        with self._quiet():
            ledger, memory = self._tracer.ledger, self._tracer.memory
            shadow = (memory.read(nll) or Shadow())._replace(values=nll)
            target = shadow.target
            if targets is not None:
                if targets.shape != nll.shape:
                    raise ValueError(
                        f"targets have shape {tuple(targets.shape)}, nll {tuple(nll.shape)}; they must match"
                    )
                labels = memory.read(targets)
                if labels is None or labels.label is None:
                    raise ValueError(
                        "targets are not labels of the watched tokens: slice them from those inside the block"
                    )
                target = ledger.new_readouts(labels.label) if target is None else target
            if target is None:
                raise ValueError(
                    "nll was not read out at labels in this watch; pass targets= sliced from the tokens"
                )
            if not self._judge.explicit:
                self._judge.forget_scores()
            support, possible = shadow.support, shadow.possible
            if distribution is not None:
                if distribution.shape[:-1] != nll.shape:
                    raise ValueError(
                        f"distribution has shape {tuple(distribution.shape)}, nll {tuple(nll.shape)}; "
                        "it must be [*nll.shape, classes]"
                    )
                shadow = shadow._replace(post=None, mass=self._charged(nll, target, distribution))
                row = memory.read(distribution)
                last = distribution.ndim - 1
                algebra = self._tracer.algebra
                support = algebra.join(support, algebra.reduce(ledger.depends(row), [last], keepdim=False))
                possible = algebra.join(
                    possible, algebra.reduce(ledger.depends(row, "possible"), [last], keepdim=False)
                )
            event = ledger.event(
                shadow._replace(support=support, possible=possible, target=target), self._tracer.site("score")
            )
            if event is not None:
                self._judge.score(event)
        return nll

    def _charged(self, nll: Tensor, target: Cells, rows: Tensor) -> Cells:
        """The mass of values that are read from ``rows`` at the labels with readouts ``target``."""
        positions = self._tracer.ledger.positions(target).data[..., 0].expand(nll.shape)
        classes = torch.full_like(positions, -1)
        for stream, tokens in self._given:
            inside = (positions >= stream.offset) & (positions < stream.offset + stream.size)
            here = (positions - stream.offset).clamp(0, stream.size - 1)
            classes = torch.where(inside, tokens.reshape(-1).to(here.device)[here].long(), classes)
        lanes, agrees = charged(nll, classes, rows, self._tracer.memory)
        count = int((~agrees & (positions >= 0)).sum())
        if count:
            self.note(f"trace.score: {count} values are not what their distribution charges for the label")
        return pack(lanes, nll.ndim)

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Our own operations are not the user's."""
        with _disable_current_modes():
            yield

    # -- the block ------------------------------------------------------------------------------------

    def __enter__(self) -> Watch:
        global _current
        with _lock:
            if _current is not None:
                raise RuntimeError(
                    "a causaltrace watch is open already; watches do not nest. Watch the outer block only"
                )
            if self._report is not None:
                raise RuntimeError("this watch is over; make a new one")
            _current = self
        self._run = made_now()
        try:
            with torch.inference_mode(False), self._quiet():
                found = copies.look(self._tracer, self._given, self._judge.notes.append)
            self._stack.callback(adopt(found))
            del found
            if hasattr(torch.compiler, "set_stance"):
                self._stack.enter_context(torch.compiler.set_stance("force_eager"))
            sight.older(self.note)
            self._stack.enter_context(self._host)
            self._stack.enter_context(self._tracer)
            following.append(self._tracer)
            self._stack.callback(following.remove, self._tracer)
        except BaseException:
            self._stack.close()
            _current = None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _current
        self._stack.__exit__(kind, error, trace)
        _current = None
        self._tracer.over = True
        readouts = [(o, e) for o, e in self._tracer.memory.alive() if e.shadow.target is not None]
        held = [e.shadow._replace(values=charge.held(o, e)) for o, e in readouts]
        self._judge.close(held, Site("score", "returned", "<end of the watch>", 0))
        self._report = self._made(None if error is None else f"{type(error).__name__}: {error}")
        finished.append(self._report)

    # -- while it runs --------------------------------------------------------------------------------

    def follow(self, tell: Callable[[Watch], None]) -> None:
        """Call ``tell`` with this watch after every score event; it must be quick and leave torch alone."""
        self._judge.told = lambda: tell(self)

    @property
    def standing(self) -> Standing:
        scored = sum(positions.numel() for positions in self._tracer.ledger.order)
        return Standing(scored, self.streams.size, len(self._judge.findings), len(self._judge.opaque_ops))

    # -- results --------------------------------------------------------------------------------------

    @property
    def report(self) -> Report:
        """What was found so far; complete once the block is left."""
        return self._report if self._report is not None else self._made(None)

    def _made(self, error: str | None) -> Report:
        report = self._judge.report(error)
        report.run = self._run
        if isinstance(self._tracer.algebra.lattice, Exact):
            report.reach = [_runs(row) for row in self.matrix()]
        report.ops = uses(self._tracer.ops)
        for use in report.ops:
            if use.handled == "registered":
                message = f"the verdict rests on the rule of {use.op} that was registered at {use.detail}"
                remedy = "check it with causaltrace.testing.check_rule"
                report.notes.append(Notice("CT096", message, remedy, count=use.calls))
        return report

    @property
    def ok(self) -> bool:
        return self.report.status == "clean"

    def matrix(self) -> Tensor:
        """Which labels each score may depend on: bool ``[scored, labels]``.

        Rows are in the order of ``report.positions``, columns are the labels of all streams, one after the
        other. What left torch (``report.escapes``) is not in it.

        Raises:
            RuntimeError: the watch has ``precision="horizon"``, which keeps the latest label only.
        """
        ledger = self._tracer.ledger
        if not isinstance(self._tracer.algebra.lattice, Exact):
            raise RuntimeError("matrix() needs the labels of each score: watch(tokens, precision='exact')")
        rows = torch.cat(ledger.order).long() if ledger.order else torch.zeros(0, dtype=torch.long)
        return ledger.matrix.cpu()[rows].bool()

    def raise_if_violation(self) -> None:
        """Raise ``ViolationError`` with the report as text unless nothing was violated."""
        if self.report.status == "violation":
            raise ViolationError(str(self.report))

    def explain(self, finding: Finding) -> str:
        """The way of a finding's label, printed like a traceback, and the state that was shared on it."""
        from causaltrace.graph.explain import explain

        return explain(finding, self.report)

    @property
    def graph(self) -> MultiDiGraph:
        """The provenance graph so far as a ``networkx.MultiDiGraph``; see ``graph.export.to_networkx``."""
        from causaltrace.graph.export import to_networkx

        return to_networkx(self.report.graph)

    def render(self, path: str | Path, expand: bool = False) -> Path:
        """Draw the provenance graph: SVG, PNG, PDF or DOT by the suffix of ``path``. One node a source line,
        layers of one kind in one; ``expand``: one a site. Needs graphviz's program ``dot``, but for DOT."""
        from causaltrace.graph.render import render

        return render(self.report.graph, path, expand)

    def tape(self, limit: int = 10_000) -> Tape:
        """Record the operations of a region: ``with trace.tape() as tape: ...`` in the watch; see ``Tape``.

        Raises:
            RuntimeError: the watch is not open.
        """
        if _current is not self:
            raise RuntimeError("tape() records inside the block of its watch, which is not open")
        return Tape(self._tracer, limit)

    def note(self, message: str, remedy: str = "", blocking: bool = False) -> None:
        self._judge.notes.append(Notice("CT095", message, remedy, blocking=blocking))


#: Reports of the watches that ended in this process, oldest first (the command line prints them).
finished: list[Report] = []


def watch(tokens: Tokens = None, **options: Any) -> Watch:
    """Watch an eval: ``with causaltrace.watch(tokens) as trace: ...``; see ``Watch`` for the arguments."""
    return Watch(tokens, **options)


def label(t: Tensor, positions: Tensor | None = None, stream: str = "labels") -> Tensor:
    """Declare the elements of ``t`` labels in the open watch; returns ``t``. A no-op outside a watch."""
    return _current.label(t, positions, stream) if _current is not None else t


def label_files(*patterns: Pattern, dtype: Any = None, offset: int = 0) -> None:
    """Declare what numpy reads from files labels, from here to the end of the open watch.

    Integers that ``np.fromfile``, ``np.memmap`` or ``np.load`` give from a file whose path matches are labels
    at their place in it, in any shape: reading it again, or in parts, gives the same positions. A file is a
    stream with its name; files are numbered one after the other in the order in which they are first read.

    Args:
        patterns: globs, compared as ``PurePath.match`` does: ``"val_*.bin"`` with the name, ``"data/*.bin"``
            with the end of the absolute path, ``"/data/*.bin"`` with all of it.
        dtype: of a label. None: of the first integers that are read from a file.
        offset: bytes of a header before the first label; the header of a ``.npy`` file is known.

    Raises:
        RuntimeError: no watch is open.
        TypeError, ValueError: bad arguments, with what to do. Without ``dtype``, also the read that gives
            integers of another dtype than the first one from the same file.
    """
    if _current is None:
        raise RuntimeError(NOT_OPEN)
    _current.label_files(*patterns, dtype=dtype, offset=offset)


def score(nll: Tensor, targets: Tensor | None = None, distribution: Tensor | None = None) -> Tensor:
    """Count ``nll`` as the score of its positions in the open watch; returns ``nll``. See ``Watch.score``."""
    return _current.score(nll, targets, distribution) if _current is not None else nll


def declassify(x: Tensor, *, reason: str) -> Tensor:
    """The values of ``x`` without the labels that they depend on: from here on they count as known.

    For what the watch cannot prove and the reader of a report can judge: a step count, a flag that an eval
    is over, a statistic that its rules allow. Every report lists the reason, the line and how often.
    Readouts in ``x`` are scored here. Returns new memory with the same bits, through which gradients go as
    before; ``x`` keeps its labels. Outside a watch ``x`` is returned as it is.

    A number that has been read (``t.item()``) has left torch already: declassify ``t`` before it is read.

    Raises:
        TypeError: ``x`` is not a tensor.
        ValueError: no reason is given.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError("declassify needs reason='why these values may be known'; reports print it")
    if not isinstance(x, Tensor):
        raise TypeError(
            f"declassify takes a tensor, not {type(x).__name__}: a number or a list has left torch already, "
            "and what it may depend on counts. Declassify the tensor before it is read: "
            "causaltrace.declassify(t, reason=...).item()"
        )
    if _current is None:
        return x
    with _current._quiet():
        value, shadow = x.clone(), _current._tracer.memory.read(x)
    shadow = shadow and shadow._replace(values=value)
    _current._tracer.declassified(shadow, " ".join(reason.split()))
    return value
