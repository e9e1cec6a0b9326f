"""Orders and conditions: scores and supports in, findings and a status out.

Stream order: a label may reach only later positions. Scored order: a label may be used anywhere once its
own score is fixed, and until then only at later positions. Both are decided for every score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from causaltrace._compat import as_numpy
from causaltrace.graph.record import Record, Route, spanned
from causaltrace.graph.timeline import Timeline
from causaltrace.graph.walk import walk
from causaltrace.lattice.cells import Cells
from causaltrace.ledger import POSITION_MASK, Ledger, Pending, Score
from causaltrace.mass import is_known, is_probability, proved
from causaltrace.report.model import Finding, Hop, Judged, Moment, Notice, Report
from causaltrace.shadow import Shadow
from causaltrace.site import Site
from causaltrace.step import REMEDY
from causaltrace.stream import Streams
from causaltrace.unscored import Unscored

ORDERS = ("stream", "scored")
#: Score events of one site of which a legal score's path is kept, and the elements looked at for it.
EXEMPLIFIED = (2, 16, 128)
LEGAL_SEARCH = 200
#: Optimizer steps whose labels may wait to be read.
UNREAD_UPDATES = 256
#: What Python calls the operations by which values leave torch.
NAMES = {"_local_scalar_dense": "a scalar read (item, float, int or bool)"}
#: Operations that tell Python how many elements a mask chooses.
COUNTING = ("index", "nonzero", "masked_select")


def check_order(order: str) -> None:
    """Raise unless ``order`` names one of the two orders, or both."""
    if order not in ("both", *ORDERS):
        raise ValueError(f"order must be 'both', 'stream' or 'scored', not {order!r}")


@dataclass(slots=True)
class Judge:
    """Judges every score as it happens and keeps what it found."""

    streams: Streams
    order: str
    ledger: Ledger = field(init=False)
    findings: dict[tuple[str, Site, int], Finding] = field(default_factory=dict)
    unproved: dict[str, int] = field(default_factory=lambda: {"stream": 0, "scored": 0})
    unproved_label: int = -1
    unnormalised: dict[tuple[str, Site], Notice] = field(default_factory=dict)
    opaque_ops: dict[tuple[str, Site], Notice] = field(default_factory=dict)
    escapes: dict[tuple[str, Site], Notice] = field(default_factory=dict)
    unwritten_reads: dict[tuple[str, Site], Notice] = field(default_factory=dict)
    notes: list[Notice] = field(default_factory=list)
    declassified: dict[tuple[str, Site], Notice] = field(default_factory=dict)
    objectives: list[Score] = field(default_factory=list)
    explicit: bool = False
    told: Callable[[], None] | None = None  #: called after every score event
    record: Record = field(default_factory=Record)
    timeline: Timeline = field(default_factory=Timeline)
    _scored: int = 0  #: positions
    _events: Counter[Site] = field(default_factory=Counter)
    _legal: list[Route] = field(default_factory=list)
    _updates: list[tuple[Site, list[Tensor]]] = field(default_factory=list)
    _paths: dict[tuple[str, int], tuple[Hop, ...]] = field(default_factory=dict)
    _unscored: Unscored = field(default_factory=Unscored)
    _picked: dict[int, Site] = field(default_factory=dict)  #: positions of which nothing else was seen

    # -- told by the tracer ---------------------------------------------------------------------------

    def scored(self, shadow: Shadow, site: Site, left: bool = False) -> None:
        """Readouts left the per-position world; ``left``: for Python."""
        if self.explicit:
            return
        event = self.ledger.event(shadow, site)
        if event is not None:
            event.left = left
            self.score(event)

    def picked(self, shadow: Shadow, site: Site) -> None:
        """Readouts of which an operation picks some by their size: scores, if nothing else takes them all."""
        event = None if self.explicit else self.ledger.event(shadow, site)
        if event is not None:
            at = self._positions(event)
            fresh = at[~self.ledger.is_scored[at]].tolist()
            self.score(event)
            self._picked.update(dict.fromkeys(fresh, site))

    def score(self, event: Score) -> None:
        if self._picked:
            for at in self._positions(event).tolist():
                self._picked.pop(at, None)
        position, latest, first = as_numpy(self.ledger.commit(event))
        before = len(self.findings)
        self._judge(event)
        if self.told is not None:
            self.told()
        if not position.size:  # these readouts have been scored already
            return
        lag = (position - latest)[latest >= 0]
        if lag.size:
            span = (int(lag.min()), int(lag.max()))
            self.record.scored(event.site, (event.cells, event.late), lag.size, span)
        self._catch_up()
        self._scored += int(first.sum())
        self.timeline.add(
            Moment(
                "score",
                event.site,
                first=int(position.min()),
                last=int(position.max()),
                label=int(latest.max()),
                scored=self._scored,
                findings=len(self.findings) - before,
            )
        )
        self._events[event.site] += 1
        if self._events[event.site] in EXEMPLIFIED:
            self._exemplify(event)

    def _exemplify(self, event: Score) -> None:
        """Keep the path of a legal score, that of the latest label in the event."""
        cells = event.cells
        if cells is None or cells.data.device.type != "cpu":  # no device is waited for
            return
        latest = event.support[:, 0] >> 1
        lag = (event.target & POSITION_MASK) - latest
        latest = torch.where(lag > 0, latest, -1)
        i = int(latest.argmax())
        if latest[i] >= 0:
            route, whole = walk(cells, event.element(i), int(latest[i]), event.site, LEGAL_SEARCH)
            if whole:
                self._legal.append(Route(route, (int(lag[i]), int(lag[i])), False))

    def forget_scores(self) -> None:
        """Explicit scores replace what was taken for scores."""
        self.explicit = True
        self.findings.clear()
        self.unproved = dict.fromkeys(self.unproved, 0)
        self.unnormalised.clear()
        self.ledger.forget_scores()
        self.record.forget_scores()
        self.timeline.forget_scores()
        self._scored = 0
        self._events.clear()
        self._legal.clear()
        self._picked.clear()

    def updated(self, held: list[Cells], site: Site) -> None:
        """An optimizer step ended, and its parameters hold these supports. Their labels are looked at when
        the next score is, for which the device must be waited for anyway."""
        self._updates.append((site, [c.data[..., 0].max() >> 1 for c in held if c.data.numel()]))
        if len(self._updates) >= UNREAD_UPDATES:
            self._catch_up()

    def _catch_up(self) -> None:
        for site, tops in self._updates:
            label = max((int(top) for top in tops), default=-1)
            self.timeline.add(Moment("update", site, label=label, scored=self._scored))
        self._updates.clear()

    def candidate(self, pending: Pending, site: Site) -> None:
        """An objective's value is used: the score of its positions, unless another one turns up."""
        if pending.used or self.explicit:
            return
        pending.used = True
        event = self.ledger.event(pending.shadow, site)
        if event is not None and not bool(self.ledger.is_scored[self._positions(event)].all()):
            self.objectives.append(event)

    def _gone(self, shadow: Shadow, site: Site) -> None:
        """The readouts in a value that is not followed any further are scores."""
        if shadow.target is not None:
            self.scored(
                shadow, Site("score", site.op, site.file, site.line, site.function, site.module), True
            )
        for pending in shadow.pending:
            if isinstance(pending, Pending):
                self.candidate(pending, site)

    def escaped(self, what: str, shadow: Shadow, site: Site) -> None:
        """A value that depends on labels reached plain Python."""
        self._gone(shadow, site)
        cells = self.ledger.depends(shadow, "possible")
        if cells is None or not cells.data.numel():
            return
        self._unscored.left(cells)
        self.ledger.raise_watermark(cells)
        label = int(cells.data[..., 0].max()) >> 1
        mark = self.ledger.watermark
        self._catch_up()
        top = label if mark is None else int(mark.data[..., 0].max()) >> 1
        self.timeline.add(Moment("escape", site, label=top, scored=self._scored))
        known = self.escapes.get((what, site))
        if known is None:
            given, remedy = "a value that depends", "keep the value in torch"
            if what in COUNTING:
                given, remedy = "a number of elements that depends", "choose them with where, of all rows"
            if what == "nonzero":
                remedy += ", or declassify the condition (where documents begin, say)"
            message = f"{NAMES.get(what, what)} gave Python {given} on labels"
            remedy = f"score these positions before it leaves, or {remedy}"
            self.escapes[what, site] = Notice("CT091", message, remedy, site, label=label)
        else:
            known.count += 1
            known.label = max(known.label or 0, label)

    def declassify(self, shadow: Shadow | None, reason: str, site: Site) -> None:
        """The program says that a value may be known, whatever labels it depends on."""
        label = None
        if shadow is not None:
            self._gone(shadow, site)
            cells = self.ledger.depends(shadow, "possible")
            label = None if cells is None else int(cells.data[..., 0].max()) >> 1
        known = self.declassified.get((reason, site))
        if known is None:
            message = f"the program declassified values here, because: {reason}"
            remedy = "read the reason: the verdict rests on it"
            self.declassified[reason, site] = Notice("CT098", message, remedy, site, label=label)
        else:
            known.count += 1
            known.label = label if known.label is None else max(known.label, label or 0)

    def unwritten(self, op: str, site: Site) -> None:
        """An operation read memory that was never seen written."""
        known = self.unwritten_reads.get((op, site))
        if known is None:
            message = f"{op} read memory that nothing was seen to write: it may hold any label"
            remedy = "fill it in torch, or give what fills it a rule (causaltrace.kernel_rule, docs/rules.md)"
            self.unwritten_reads[op, site] = Notice("CT099", message, remedy, site)
        else:
            known.count += 1

    def opaque(self, op: str, cells: Cells | None, site: Site) -> None:
        """An op without a rule: everything may have flowed."""
        known = self.opaque_ops.get((op, site))
        if known is None:
            self.opaque_ops[op, site] = Notice(
                "CT090",
                f"{op} has no rule: all of its inputs may have reached all of its outputs",
                site=site,
                remedy=REMEDY,
                label=None if cells is None else int(cells.data[..., 0].max()) >> 1,
            )
        else:
            known.count += 1

    # -- judging --------------------------------------------------------------------------------------

    def _positions(self, event: Score) -> Tensor:
        return (event.target & POSITION_MASK).to(self.ledger.device)

    def _judge(self, event: Score) -> None:
        self._paths.clear()
        target = (event.target & POSITION_MASK).to(torch.int32)
        late = event.support >> 1 >= target[:, None]
        may = event.possible >> 1 >= target[:, None]
        post = None if event.post is None else event.post[:, 0] >> 1
        normal = None if event.mass is None else proved(event.mass, event.left)
        any_bad = late.any() | may.any() | event.again.any()
        if normal is not None:
            any_bad = any_bad | ~normal.all()
        if post is not None:
            any_bad = any_bad | (post >= target).any()
        if not bool(any_bad):
            return
        for lane, order in enumerate(ORDERS):
            if self._wanted(order):
                missing = may[:, lane] & ~late[:, lane]
                count = int(missing.sum())
                self.unproved[order] += count
                if count:
                    self.unproved_label = max(
                        self.unproved_label, int((event.possible[:, lane] >> 1)[missing].max())
                    )
        targets = target.tolist()
        sources = event.support[:, 0].tolist()
        orders = late.tolist()
        for i, bad in enumerate(orders):
            if any(bad[lane] and self._wanted(order) for lane, order in enumerate(ORDERS)):
                source, direct = sources[i] >> 1, sources[i] & 1
                kind = "CT003" if not direct else "CT002" if source == targets[i] else "CT001"
                names = tuple(o for lane, o in enumerate(ORDERS) if bad[lane] and self._wanted(o))
                self._find(kind, targets[i], source, names, event, i, event.cells)
        names = tuple(o for o in ORDERS if self._wanted(o))
        self._unnormalised(event, normal, targets, names)
        if post is not None:
            for i, source in enumerate(post.tolist()):
                if source >= targets[i]:
                    kind = "CT004" if source == targets[i] else "CT001"
                    self._find(kind, targets[i], source, names, event, i, event.late)
        for i in event.again.nonzero()[:, 0].tolist():
            self._find("CT006", targets[i], targets[i], names, event, i, None)

    def _unnormalised(
        self, event: Score, normal: Tensor | None, targets: list[int], orders: tuple[str, ...]
    ) -> None:
        """Scores that are not those of a distribution, and those that could not be shown to be."""
        if normal is None or event.mass is None:
            return
        known, probability = is_known(event.mass), is_probability(event.mass)
        wrong = ~normal & known & ~probability
        if not event.left:  # Python may do to it what it likes
            for i in wrong.nonzero()[:, 0].tolist():
                self._find("CT005", targets[i], targets[i], orders, event, i, None)
        for reason, where in (
            ("probabilities were summed, not their logarithms", ~normal & probability),
            ("values that are not normalised were read by Python", wrong & event.left),
            ("nothing in the arithmetic shows that the sum over all classes is 1", ~normal & ~known),
        ):
            count = int(where.sum())
            if count:
                self._not_shown(reason, event.site, count)

    def _not_shown(self, reason: str, site: Site, count: int) -> None:
        known = self.unnormalised.get((reason, site))
        if known is not None:
            known.count += count
            return
        message = f"scores may not be those of a normalised distribution: {reason}"
        remedy = "normalise the row before the label is read, or trace.score(nll, distribution=row)"
        self.unnormalised[reason, site] = Notice("CT100", message, remedy, site, count, blocking=True)

    def _only_picked(self) -> list[Notice]:
        """Scores of which nothing was seen but an operation that picks some by their size."""
        message = "losses were picked by their size: no sum or mean of all of them was seen"
        remedy = "sum all losses, or say what is scored: trace.score"
        sites = Counter(self._picked.values()).items()
        return [Notice("CT100", message, remedy, site, count, blocking=True) for site, count in sites]

    def _wanted(self, order: str) -> bool:
        return self.order in ("both", order)

    def _find(
        self,
        kind: str,
        target: int,
        source: int,
        orders: tuple[str, ...],
        event: Score,
        i: int,
        cells: Cells | None,
    ) -> None:
        key = (kind, event.site, target)
        known = self.findings.get(key)
        if known is not None and known.source >= source:
            return
        stream, local = self.streams.locate(target)
        origin, where = self.streams.locate(source)
        route: tuple[Hop, ...] = (Hop(event.site, ""),)
        if cells is not None:
            route = self._path(kind, event, i, source, cells)
        self.findings[key] = Finding(kind, local, where, orders, event.site, route, stream.name, origin.name)

    def _path(self, kind: str, event: Score, i: int, source: int, cells: Cells) -> tuple[Hop, ...]:
        """Findings of one event, source and kind share the route; only the first is walked."""
        key = (kind, source if kind != "CT002" else -1)
        if key not in self._paths:
            self._paths[key] = walk(cells, event.element(i), source, event.site).hops
        return self._paths[key]

    # -- the end --------------------------------------------------------------------------------------

    def close(self, held: list[Shadow], site: Site) -> None:
        """Objectives, and readouts that are still held, count for positions that nothing else scored."""
        if self.explicit:
            return
        definite = self.ledger.is_scored.clone()
        for event in self.objectives:
            fresh = ~definite[self._positions(event)]
            if bool(fresh.any()):
                self.score(event.restricted(fresh))
        definite = self.ledger.is_scored.clone()
        for shadow in held:
            if shadow.objective and self.ledger.order:
                continue  # an objective that happens to be alive still
            returned = self.ledger.event(shadow, site, returned=True)
            if returned is not None:
                fresh = ~definite[self._positions(returned)]
                if bool(fresh.any()):
                    self.score(returned.restricted(fresh))

    def report(self, error: str | None) -> Report:
        self._catch_up()
        positions = torch.cat(self.ledger.order).tolist() if self.ledger.order else []
        local = [self.streams.locate(p)[1] for p in positions] if len(self.streams.streams) > 1 else positions
        violations = list(self.findings.values())
        notes = [*self.notes, *self.declassified.values(), *self.unwritten_reads.values()]
        unnormalised = [*self.unnormalised.values(), *self._only_picked()]
        notes += unnormalised
        notes += filter(None, [None if self.explicit else self._unscored.notice(self.ledger)])
        if not positions:
            notes.append(
                Notice(
                    "CT093",
                    "no score was found: the labels met no loss inside the watch",
                    blocking=True,
                    remedy="slice inputs and targets from the tokens in the block, or call trace.score",
                )
            )
        if error is not None:
            notes.append(
                Notice(
                    "CT094",
                    f"the watched program stopped early: {error}",
                    blocking=True,
                    remedy="the report covers what ran before",
                )
            )
        orders = {}
        blind = any(n.blocking for n in notes if n.kind != "CT100")
        followed = bool(positions)
        for order in filter(self._wanted, ORDERS):
            failed = any(order in f.orders for f in violations)
            hidden = blind or bool(self.unproved[order])
            blocked = hidden or bool(unnormalised)
            orders[order] = "violation" if failed else "unverified" if blocked else "clean"
            followed = followed and (failed or not hidden)
        status = next((s for s in ("violation", "unverified") if s in orders.values()), "clean")
        if any(self.unproved.values()):
            count = max(self.unproved.values())
            notes.append(
                Notice(
                    "CT092",
                    f"{count} scores may depend on labels that they must not depend on, through the opaque "
                    "operations and escapes listed here",
                    blocking=True,
                    label=self.unproved_label,
                    remedy="follow the remedy of each listed operation or escape",
                )
            )
        possible = (self.opaque_ops, self.escapes, self.unwritten_reads)
        for notice in (n for found in possible for n in found.values()):
            notice.blocking = any(self.unproved.values())
        return Report(
            status,
            orders,
            self._conditions(violations, followed, bool(unnormalised)),
            violations,
            local,
            list(self.opaque_ops.values()),
            list(self.escapes.values()),
            notes,
            self.streams.size,
            error,
            streams=[(s.name, s.size) for s in self.streams.streams],
            lags=self._lags(),
            timeline=list(self.timeline.moments),
            graph=self.record.provenance([*self._legal, *self._routes()]),
            judged=Judged(*self.ledger.charged()),
        )

    def _lags(self) -> list[int | None]:
        """How far before each score the latest label is that reached it."""
        if not self.ledger.order:
            return []
        positions, latest = torch.cat(self.ledger.order), torch.cat(self.ledger.latest)
        pairs = zip((positions - latest).tolist(), (latest >= 0).tolist(), strict=True)
        return [lag if reached else None for lag, reached in pairs]

    def _routes(self) -> Iterator[Route]:
        """The paths of all findings, each once."""
        spans: dict[int, Route] = {}
        offsets = {s.name: s.offset for s in self.streams.streams}
        for (_, _, target), finding in self.findings.items():
            lag = target - finding.source - offsets[finding.source_stream]
            known = spans.get(id(finding.path))
            span = spanned(None if known is None else known.lag, (lag, lag))
            spans[id(finding.path)] = Route(finding.path, span, True)
        return iter(spans.values())

    def _conditions(self, violations: list[Finding], followed: bool, unnormalised: bool) -> dict[str, str]:
        """``followed``: nothing hid where labels went."""
        kinds = {f.kind for f in violations}
        proved = "pass" if followed else "not covered"
        normal = "not covered" if self.ledger.blind or unnormalised else proved
        return {
            "C1": "fail" if kinds & {"CT001", "CT002", "CT003"} else proved,
            "C2": "fail" if kinds & {"CT004", "CT005"} else normal,
            "C3": "fail" if "CT003" in kinds else proved,
            "C4": "fail" if "CT006" in kinds else proved,
        }
