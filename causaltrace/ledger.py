"""What was read, read out and scored: the only mutable knowledge about labels.

A *readout* is one element of a loss (or gather) at a verbatim label; each has a number of its own, so
that a value used twice is told from two values for one position. A *score* is a readout that left the
per-position world. An objective that requires grad is only a *candidate*: it counts as the score of a
position if nothing else scored it.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from causaltrace import charge
from causaltrace.lattice.cells import Algebra, Cells
from causaltrace.lattice.horizon import Horizon
from causaltrace.mass import unknown, unpack, wide
from causaltrace.shadow import UNHEDGED, Memory, Shadow
from causaltrace.site import Site

#: Readouts that are remembered until they are written back.
PICKED = 8
POSITION_BITS = 30
POSITION_MASK = (1 << POSITION_BITS) - 1


#: Later than any position.
NEVER = 1 << 40


@dataclass(slots=True, eq=False)
class Score:
    """One score event: readouts and what their distributions depended on, as flat arrays.

    ``target``: packed readout number and position; ``support``, ``possible``, ``post``: their horizons at
    that moment, ``members``: the labels of the lattice's window in ``possible``. ``cells`` keeps the
    support's history for the explanation, ``late`` that of ``post``. ``mass``: what all classes together are
    charged, lanes ``[n, mass.WIDTH]``; None where no values are known. ``left``: the values went to Python
    as they are, or are held at the end. ``values``: of the readouts; None: not known.
    """

    site: Site
    target: Tensor
    support: Tensor
    possible: Tensor
    members: Tensor
    post: Tensor | None
    again: Tensor
    cells: Cells | None
    dims: tuple[int, ...]
    index: Tensor
    late: Cells | None = None
    mass: Tensor | None = None
    left: bool = False
    values: Tensor | None = None

    def element(self, i: int) -> tuple[int, ...]:
        """The index of the ``i``-th readout in its tensor."""
        index = torch.unravel_index(self.index[i].cpu(), self.dims) if self.dims else ()
        return tuple(int(x) for x in index)

    def restricted(self, keep: Tensor) -> Score:
        """Only some of the readouts."""
        keep = keep.to(self.target.device)
        flat = ("target", "support", "possible", "members", "post", "again", "index", "mass", "values")
        parts: dict[str, Any] = {n: None if (t := getattr(self, n)) is None else t[keep] for n in flat}
        return replace(self, **parts)


@dataclass(slots=True, eq=False)
class Pending:
    """Readouts that an objective summed; a score only if the objective's value is used as one."""

    shadow: Shadow
    site: Site
    used: bool = False

    def __post_init__(self) -> None:
        if self.shadow.values is not None:  # by then they may be others
            self.shadow = self.shadow._replace(values=self.shadow.values.clone())


class Ledger:
    """Read and scored flags by global position, on the host unless ``device`` says otherwise. ``blind``:
    there are no values to look at."""

    def __init__(self, algebra: Algebra, memory: Memory, device: torch.device, blind: bool = False) -> None:
        self.algebra, self.memory, self.device, self.blind = algebra, memory, device, blind
        self.was_read = torch.zeros(0, dtype=torch.bool, device=device)
        self.is_scored = torch.zeros(0, dtype=torch.bool, device=device)
        self.readout = torch.zeros(0, dtype=torch.int64, device=device)
        window = algebra.lattice.width - Horizon.width
        self.nats = wide(torch.zeros(0, device=device))  #: what the score charges, NaN: not known
        self.matrix = torch.zeros(0, window, dtype=torch.uint8, device=device)  #: [score, label]
        self.version = 0
        self._watermark: Cells | None = None
        #: Called before the watermark is read, and with what joins it (see ``boundary.processes``).
        self.asked: Callable[[], None] | None = None
        self.rose: Callable[[Cells], None] | None = None
        self.candidates: list[Score] = []
        self.order: list[Tensor] = []  #: positions as they were scored, on the host
        self.latest: list[Tensor] = []  #: the latest label that reached each of these scores, -1 if none did
        self.in_order = True  #: did every score come after the ones before it?
        self._furthest = -1  #: position scored
        self._fresh_from = NEVER  #: the first position that was scored since shadows were brought up to date
        self._next_readout = 0
        self._first_marked = 0
        self._settled = True
        #: The last readouts, and where their rows are.
        self._picked: deque[tuple[weakref.ref[Any], Cells]] = deque(maxlen=PICKED)
        memory.value = self.value
        memory.mark = lambda: self.watermark

    def grow(self, size: int) -> None:
        extra = size - self.is_scored.numel()
        if extra > 0:
            pad = torch.zeros(extra, dtype=torch.bool, device=self.device)
            self.was_read = torch.cat((self.was_read, pad))
            self.is_scored = torch.cat((self.is_scored, pad))
            none = torch.full((extra,), -1, dtype=torch.int64, device=self.device)
            self.readout = torch.cat((self.readout, none))
            self.nats = torch.cat((self.nats, self.nats.new_full((extra,), math.nan)))
            rows = torch.zeros(extra, self.matrix.shape[1], dtype=torch.uint8, device=self.device)
            self.matrix = torch.cat((self.matrix, rows))

    def on_host(self) -> Callable[[], None]:
        """For a copy of the process, which can use no device: what it calls to go on."""
        flags = {
            name: getattr(self, name).cpu() for name in ("was_read", "is_scored", "readout", "nats", "matrix")
        }
        return lambda: vars(self).update(flags, device=torch.device("cpu"))

    # -- reading --------------------------------------------------------------------------------------

    def read(self, label: Cells) -> Cells:
        """The support of verbatim labels, at this moment and site: a path names the line that read them."""
        now = ("read", self.version)
        key = (*now, self.algebra.site())
        out = label.moved.get(key)
        if out is None:
            known = label.moved.get(now)
            if known is not None and known.origin is not None:  # read at another line already
                out = self.algebra.make(known.origin.fn, label, share=False, data=known.data)
            else:
                self.settle()
                where = label.data[..., 0].to(self.device).long()
                self.was_read[where[where >= 0]] = True
                lattice, scored = self.algebra.lattice, self.is_scored
                out = self.algebra.make(lambda data: lattice.read(data, scored), label, share=False)
                label.moved[now] = out
            label.moved[key] = out
        return out

    def anything(self) -> Cells | None:
        """What memory that was never written may hold: any label that there is."""
        size, lattice = self.is_scored.numel(), self.algebra.lattice
        if not size:
            return None
        exact = lattice.width > Horizon.width
        positions = torch.arange(0 if exact else size - 1, size, dtype=torch.int32)[:, None]
        unscored = torch.zeros(1, dtype=torch.bool).expand(size)
        return Cells(lattice.reduce(lattice.read(positions, unscored), (0,))[0])

    def positions(self, target: Cells) -> Cells:
        """Readouts to the label positions that they score."""
        key = "positions"
        out = target.moved.get(key)
        if out is None:
            out = self.algebra.move(target, lambda t: torch.where(t >= 0, t & POSITION_MASK, -1))
            target.moved[key] = out
        return out

    def depends(self, shadow: Shadow | None, plane: str = "support") -> Cells | None:
        """All that the value of a tensor depends on, its own labels included."""
        if shadow is None:
            return None
        base = shadow.support
        if plane == "possible" and shadow.possible is not None:
            base = shadow.possible
        parts = [base, shadow.post]
        parts += [self.read(c) for c in (shadow.label, shadow.onehot, shadow.match) if c is not None]
        if shadow.target is not None:
            parts.append(self.read(self.positions(shadow.target)))
        return self.algebra.join(*parts)

    def value(self, shadow: Shadow) -> Shadow:
        """The value alone, which is no label and no readout."""
        if shadow.plain:
            return shadow
        return Shadow(self.depends(shadow), self.depends(shadow, "possible"))

    def picked(self, rows: Tensor, readouts: Cells) -> None:
        """These were read out of ``rows``."""
        self._picked.append((self.memory.place(rows), readouts))

    def back(self, shadow: Shadow, rows: Tensor) -> bool:
        """Was a value with this shadow read out of ``rows``? Written back, as in ``counts[x, y] += 1``, it
        is an update of theirs and no score."""
        if shadow.target is None or not self._picked:
            return False
        place, data = self.memory.place(rows)(), shadow.target.data
        return any(known() is place and torch.equal(readouts.data, data) for known, readouts in self._picked)

    def new_readouts(self, label: Cells) -> Cells:
        """Numbers for readouts at verbatim ``label`` positions (-1 elsewhere)."""
        count = label.data.numel()
        first = self._next_readout
        self._next_readout += count
        ids = torch.arange(first, first + count, device=label.data.device).view(label.data.shape)
        return self.algebra.move(
            label, lambda p: torch.where(p >= 0, (ids << POSITION_BITS) | p.long(), -1), held=count * 8
        )

    # -- scoring --------------------------------------------------------------------------------------

    def event(self, shadow: Shadow, site: Site, returned: bool = False) -> Score | None:
        """The readouts in a tensor with this shadow, and what they depend on now. ``returned``: they are
        scored by being held at the end."""
        assert shadow.target is not None
        target = shadow.target.data[..., 0]
        support = shadow.support
        possible = shadow.possible if shadow.possible is not None else support
        post = shadow.post
        dims = torch.broadcast_shapes(
            target.shape, *[c.dims for c in (support, possible, post, shadow.mass) if c is not None]
        )
        index = torch.nonzero((target >= 0).expand(dims).reshape(-1))[:, 0]
        if index.numel() == 0:
            return None
        flat = target.expand(dims).reshape(-1)[index]

        def lanes(cells: Cells | None) -> Tensor:
            width = self.algebra.lattice.width
            if cells is None:
                return torch.full((flat.numel(), width), -1, dtype=torch.int32, device=flat.device)
            return cells.data.to(index.device).expand(*dims, width).reshape(-1, width)[index]

        now = self.now(lanes(support))
        maybe = self.now(lanes(possible), bound=True)
        held = returned and bool(
            (flat >> POSITION_BITS < self._first_marked).all()
        )  # fixed before anything left
        watermark = None if held else self.watermark
        if watermark is not None:  # a branch in Python may have decided anything since
            mark = self.now(watermark.data.reshape(-1), bound=True).to(maybe.device)
            hidden = torch.full_like(mark, -1)
            hidden[1] = mark[1]
            maybe = torch.maximum(maybe, hidden)
        mass = unknown(flat.device).expand(flat.numel(), -1)
        if shadow.mass is not None:
            data = shadow.mass.data.to(index.device)
            mass = unpack(data.expand(*dims, data.shape[-1]).reshape(-1, data.shape[-1])[index])
        values = None if self.blind else charge.plain(shadow.values, tuple(dims))
        after = None if post is None else self.now(lanes(post))
        members = self.algebra.lattice.members(maybe)
        if after is not None:
            members = members | self.algebra.lattice.members(after)
        return Score(
            site,
            flat,
            now[:, : Horizon.width],
            maybe[:, : Horizon.width],
            members,
            None if after is None else after[:, : Horizon.width],
            torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device),
            support,
            tuple(dims),
            index,
            post,
            None if self.blind else mass,
            returned,
            None if values is None else values.to(index.device)[index],
        )

    def commit(self, event: Score) -> Tensor:
        """The event's readouts are scores from now on; ``again`` marks positions scored before.

        Returns, on the host, int32 rows ``[3, n]`` of the scores that are new: position, latest label that
        reached it (-1: none), and whether it is the first score of its position."""
        position = (event.target & POSITION_MASK).to(self.device)
        number = (event.target >> POSITION_BITS).to(self.device)
        order = torch.argsort(position, stable=True)
        sorted_position, sorted_number = position[order], number[order]
        known = self.readout[sorted_position]
        again = (known >= 0) & (known != sorted_number)
        twin = (sorted_position[1:] == sorted_position[:-1]) & (sorted_number[1:] != sorted_number[:-1])
        again[1:] |= twin
        first = known < 0
        first[1:] &= sorted_position[1:] != sorted_position[:-1]
        marks = torch.zeros(2, len(order), dtype=torch.bool, device=self.device)
        marks[:, order] = torch.stack((again, first))
        event.again = marks[0].to(event.target.device)
        latest = event.support[:, 0] >> 1
        if event.post is not None:
            latest = torch.maximum(latest, event.post[:, 0] >> 1)
        rows = torch.stack((position, latest.to(position), marks[1]))
        rows = rows[:, self.readout[position] != number].to(torch.int32).cpu()
        self._charge(event, position, number)
        self.readout[position] = number
        self.is_scored = self.is_scored.index_fill(0, position, True)  # what was read before keeps the other
        if self.matrix.shape[1]:
            members = event.members.to(self.matrix)
            self.matrix.scatter_reduce_(0, position[:, None].expand_as(members), members, "amax")
        if rows.numel():
            nearest, furthest = (int(p) for p in torch.aminmax(rows[0]))
            self.in_order = self.in_order and nearest > self._furthest
            self._furthest = max(self._furthest, furthest)
            self._fresh_from = min(self._fresh_from, nearest)
        self.order.append(rows[0])
        self.latest.append(rows[1])
        self.version += 1
        self._settled = False
        return rows

    def _charge(self, event: Score, position: Tensor, number: Tensor) -> None:
        """What the event charges stands; where it is not known, what the same readouts charged before."""
        before = self.nats[position].where(self.readout[position] == number, math.nan)
        if event.values is None or event.mass is None:
            self.nats[position] = before
            return
        nats = charge.nats(event.values, event.mass, event.left).to(before)
        self.nats[position] = nats.where(nats.isfinite(), before)

    def charged(self) -> tuple[float | None, int]:
        """The mean of what the scores charge that is known, and of how many that is."""
        known = self.nats[~self.nats.isnan()]
        return float(known.mean()) if known.numel() else None, known.numel()

    def behind(self, x: Cells) -> bool:
        """Has the latest label in ``x`` been scored, and do scores only go on from there? Looked at on the
        host only. Then no score that it must not reach is to be expected, unless scores start over."""
        if not self.in_order or x.data.device.type != "cpu" or not x.data.numel():
            return False
        return int(x.data[..., 0].max()) >> 1 <= self._furthest

    # -- time -----------------------------------------------------------------------------------------

    def _bound(self) -> Tensor:
        """Per position l: the latest position <= l that was read and is still unscored, or -1."""
        n = self.is_scored.numel()
        here = torch.arange(n, dtype=torch.int32, device=self.device)
        return torch.cummax(torch.where(self.was_read & ~self.is_scored, here, -1), 0).values

    def now(self, lanes: Tensor, bound: bool = False) -> Tensor:
        """Lattice data brought up to date: a label read before it was scored may be scored by now.

        The unscored lane keeps one label only, so what else hides below a scored one is not known: on
        the ``support`` plane it is dropped, on the ``possible`` plane (``bound``) it is replaced by the
        latest label that it could be. Never a guess: the bound can only raise ``unverified``.
        """
        unscored = lanes[..., 1]
        position = unscored >> 1
        stale = (unscored >= 0) & self.is_scored.to(lanes.device)[position.clamp(min=0).long()]
        if lanes.device.type == "cpu" and not bool(stale.any()):
            return lanes
        if bound:
            limit = self._bound().to(lanes.device)[position.clamp(min=0).long()]
            other = torch.where(limit >= 0, limit * 2 + (unscored & 1), -1)
        else:
            other = torch.full_like(unscored, -1)
        out = lanes.clone()
        out[..., 1] = torch.where(stale, other, unscored)
        return out

    def settle(self) -> None:
        """Bring every live shadow up to date. Called before new labels are read, since the bound on what
        hides below a scored label is exact only until then."""
        if self._settled:
            return
        self._settled = True
        stale, self._fresh_from = self._fresh_from * 2, NEVER  # what is below has not been scored since
        done: dict[tuple[int, bool], tuple[Cells, Cells | None]] = {}

        def fresh(cells: Cells, bound: bool) -> Cells | None:
            key = (id(cells), bound)
            if key not in done:
                top = self.algebra.bounds(cells)[1]
                data = cells.data if top[1] < stale else self.now(cells.data, bound)
                if data is cells.data:
                    done[key] = (cells, cells if max(top) >= 0 else None)
                else:
                    out = Cells(data, cells.origin, cells.node)
                    done[key] = (cells, None if bool((data < 0).all()) else out)
            return done[key][1]

        settled: set[int] = set()
        for _, entry in self.memory.alive():
            old = entry.shadow
            if old.order is not None:
                old = old._replace(order=None)
                entry.set(old)
            if old.support is None and old.possible is None and old.post is None:
                continue
            if old.support is not None and old[1:] == UNHEDGED:
                number = id(old.support)
                if number in settled or self.algebra.bounds(old.support)[1][1] < stale:
                    settled.add(number)
                    continue
            changed = False
            planes: dict[str, Cells | None] = {}
            for name in ("support", "post"):
                cells = getattr(old, name)
                planes[name] = None if cells is None else fresh(cells, False)
                changed |= planes[name] is not cells
            possible = old.possible if old.possible is not None else old.support
            raised = None if possible is None else fresh(possible, True)
            if old.possible is not None or raised is not planes["support"]:
                same = (
                    raised is not None
                    and planes["support"] is not None
                    and raised.data.shape == planes["support"].data.shape
                    and torch.equal(raised.data, planes["support"].data)
                )
                planes["possible"] = None if same else raised
                changed = True
            if changed:
                entry.set(old._replace(**planes))  # type: ignore[arg-type]
        if self._watermark is not None:
            self._watermark = fresh(self._watermark, True)

    @property
    def watermark(self) -> Cells | None:
        """All that has left torch so far."""
        if self.asked is not None:
            self.asked()
        return self._watermark

    def raise_watermark(self, cells: Cells | None) -> None:
        """A value with this support reached plain Python."""
        everything = self.algebra.everything(cells)
        if everything is not None:
            data = self.now(everything.data.cpu(), bound=True)
            mark = everything if data is everything.data else Cells(data, everything.origin, everything.node)
            if self._watermark is None:
                self._first_marked = self._next_readout
            self._watermark = self.algebra.join(self._watermark, mark)
            if self.rose is not None:
                self.rose(mark)

    def forget_scores(self) -> None:
        """Nothing has been scored: explicit scores replace the ones that were seen."""
        self.is_scored = torch.zeros_like(self.is_scored)
        self.readout.fill_(-1)
        self.nats.fill_(math.nan)
        self.matrix.zero_()
        self.in_order, self._furthest = True, -1
        self.order.clear()
        self.latest.clear()
        self.version += 1
