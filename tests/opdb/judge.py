"""What the rules say about a sample against what changes when its inputs change."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from causaltrace.depends import Followed, follow
from causaltrace.perturb import Refused, drawn_again
from tests.opdb.samples import Sample

#: Input elements that are told apart in one sample: all of them, or a window of so many.
WHOLE, WINDOW = 512, 64
#: Other inputs at which a reported pair is looked for: at most so many (fewer where only a window is told
#: apart), and so many in a row that show nothing new.
ATTEMPTS, PATIENCE = 60, 20
#: The same, for further inputs at which only what is still hidden is looked at.
SEARCHES, DILIGENCE = 600, 200


@dataclass
class Verdict:
    """``missed``: (output element, input element) pairs that changed but were not reported, -1 for several
    at once. ``reported`` and ``true``: pairs within the perturbed columns. ``opaque``: operations without a
    rule."""

    missed: list[tuple[int, int]] = field(default_factory=list)
    reported: int = 0
    true: int = 0
    opaque: list[str] = field(default_factory=list)
    horizon: bool = True
    judged: bool = True
    looked: int = 0  #: other inputs that were looked at

    @property
    def exact(self) -> bool:
        return self.judged and self.reported == self.true


class Judge:
    """One sample at one place: its results, and what the rules say of a window of its input elements."""

    def __init__(self, sample: Sample, inputs: tuple[Tensor, ...], window: range) -> None:
        self.window = window
        self.truth = sample.truth(inputs)
        self.followed = follow(sample.fn, inputs, window)
        self.reach = torch.cat([m.reshape(m.shape[:-1].numel(), len(window)) for m in self.followed.members])
        assert len(self.reach) == len(self.truth.base), "the watched run gave other results"

    def column(
        self, at: int, rng: random.Random, values: int, missed: list[tuple[int, int]]
    ) -> Tensor | None:
        element = self.window[at]
        hit = self.truth.column(element, self.truth.others(element, rng, values))
        if hit is not None:
            missed += [(r, element) for r in self.unreported(hit, at)]
        return hit

    def unreported(self, hit: Tensor, at: int) -> list[int]:
        """Results that change with an element, and that the rules do not name."""
        rows: list[int] = (hit & self.truth.numbered & ~self.reach[:, at]).nonzero()[:, 0].tolist()
        return rows

    def several(self, rng: random.Random, missed: list[tuple[int, int]]) -> None:
        """One result must stand when all that it is said not to depend on changes."""
        r = rng.randrange(len(self.reach))
        changed = self.truth.together([self.window[at] for at in (~self.reach[r]).nonzero()[:, 0]], rng)
        if changed is not None and changed[r] and self.truth.numbered[r]:
            missed.append((r, -1))


def judge(sample: Sample, elements: int = 24, values: int = 6, seed: int = 0, effort: float = 1) -> Verdict:
    """Change up to ``elements`` elements of the inputs one by one, and for some results everything that they
    are said not to depend on at once. A pair that was reported and did not show is looked for at other inputs
    of the same kind, where the rules report it, too; ``effort``: at what share of the usual number."""
    rng = random.Random(f"{sample.op} {sample.number} {seed}")
    total = sum(t.numel() for t in sample.inputs)
    first = rng.randrange(total - WINDOW) if total > WHOLE else 0
    window = range(first, first + WINDOW) if total > WHOLE else range(total)
    out = Verdict()
    here = Judge(sample, sample.inputs, window)
    out.opaque = sorted(here.followed.opaque)
    out.horizon = _horizon(here.followed, window)
    columns = sorted(rng.sample(range(len(window)), min(elements, len(window))))
    for _ in range(3 if len(here.reach) else 0):
        here.several(rng, out.missed)
    shown = {at: here.column(at, rng, values, out.missed) for at in columns}
    known = {at: hit for at, hit in shown.items() if hit is not None}
    out.judged = bool(known) or not columns
    for at, hit in known.items():
        if bool((here.reach[:, at] & ~hit).any()):
            hit |= here.truth.not_finite(window[at])
    share = effort if total <= WHOLE else effort / 4
    for look, most, patience in ((_look_elsewhere, ATTEMPTS, PATIENCE), (_search, SEARCHES, DILIGENCE)):
        fruitless = 0
        for attempt in range(int(most * share)):
            hidden = [at for at, hit in known.items() if bool((here.reach[:, at] & ~hit).any())]
            if not hidden or fruitless == patience:
                break
            before = sum(int(hit.sum()) for hit in known.values())
            look(sample, here, {at: known[at] for at in hidden}, attempt, rng, values, out.missed)
            out.looked += 1
            fruitless = 0 if sum(int(hit.sum()) for hit in known.values()) > before else fruitless + 1
    for at, hit in known.items():
        out.reported += int(here.reach[:, at].sum())
        out.true += int((here.reach[:, at] & hit).sum())
    return out


def _look_elsewhere(
    sample: Sample,
    here: Judge,
    known: dict[int, Tensor],
    attempt: int,
    rng: random.Random,
    values: int,
    missed: list[tuple[int, int]],
) -> None:
    """Add to ``known`` what shows at inputs drawn anew, and what shows there only once an element is none."""
    try:
        there = Judge(sample, drawn_again(sample.inputs, attempt, here.truth.sizes), here.window)
    except Refused:
        return
    if there.reach.shape != here.reach.shape:
        return
    there.several(rng, missed)
    for at, hit in known.items():
        found = there.column(at, rng, values, missed)
        if found is not None:
            hit |= found & there.reach[:, at]
        if attempt % 4 == 3:
            hit |= there.truth.not_finite(here.window[at]) & there.reach[:, at]


def _search(
    sample: Sample,
    here: Judge,
    known: dict[int, Tensor],
    attempt: int,
    rng: random.Random,
    values: int,
    missed: list[tuple[int, int]],
) -> None:
    """As ``_look_elsewhere``, for a pair that is still hidden: the rules are asked only where it shows."""
    at, hit = rng.choice(list(known.items()))
    result = rng.choice((here.reach[:, at] & ~hit).nonzero()[:, 0].tolist())
    inputs = drawn_again(sample.inputs, ATTEMPTS + attempt, here.truth.sizes)
    try:
        truth = sample.truth(inputs)
        if attempt % 3 and truth.base.shape == here.truth.base.shape:
            inputs = truth.standing_out(result, high=attempt % 3 == 1)
            truth = sample.truth(inputs)
        element = here.window[at]
        options = [*truth.naming(element, result), *truth.others(element, rng, values)]
        found = truth.column(element, options)
        if found is None or found.shape != hit.shape or not (found & here.reach[:, at] & ~hit).any():
            return
        there = Judge(sample, truth.inputs, here.window)
    except Refused:
        return
    missed += [(r, element) for r in there.unreported(found, at)]
    hit |= found & there.reach[:, at]


def _horizon(followed: Followed, window: range) -> bool:
    """Is the latest element of each result the last of its members?"""
    if not window:
        return True
    order = torch.arange(window.start, window.stop)
    for reach, top in zip(followed.members, followed.latest, strict=True):
        last = torch.where(reach, order, -1).amax(-1)
        inside = (top >= window.start) & (top < window.stop)
        if not torch.equal(last[inside], top[inside]) or bool((last > top).any()):
            return False
    return True
