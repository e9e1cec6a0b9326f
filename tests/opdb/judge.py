"""What the rules say about a sample against what changes when its inputs change."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from causaltrace.depends import trace
from tests.opdb.samples import Refused, Sample


@dataclass
class Verdict:
    """``missed``: (output element, input element) pairs that changed but were not reported. ``reported`` and
    ``true``: pairs within the perturbed columns. ``opaque``: operations without a rule."""

    missed: list[tuple[int, int]] = field(default_factory=list)
    reported: int = 0
    true: int = 0
    opaque: list[str] = field(default_factory=list)
    horizon: bool = True
    judged: bool = True

    @property
    def exact(self) -> bool:
        return self.judged and self.reported == self.true


def flat(value: Any) -> Tensor:
    """All results as one vector of complex numbers; -0.0 is 0.0."""
    parts = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return torch.cat([t.detach().resolve_conj().to(torch.complex128).reshape(-1) for t in parts])


def differs(a: Tensor, b: Tensor) -> Tensor:
    return (a != b) & ~(a.isnan() & b.isnan())


def others(t: Tensor, e: int, rng: random.Random, count: int) -> list[Any]:
    """Other values for element ``e``: large ones, a near one, another element's (a tie), a random one, 0.
    Whole numbers take what else is in the tensor, which is valid wherever it stands."""
    whole = t.reshape(-1)
    old = whole[e].item()
    if t.dtype == torch.bool:
        return [not old]
    tie = whole[rng.randrange(len(whole))].item()
    if not (t.dtype.is_floating_point or t.dtype.is_complex):
        options = list(dict.fromkeys([tie, *whole.tolist(), old + 1, max(old - 1, 0)]))
    else:
        options = [9.0, -9.0, old * 1.02 + 0.01, tie, rng.gauss(0, 1), -old, 0.0, old + 1]
        if t.dtype.is_complex:
            options.append(old * 1j)
    return [v for v in options if v != old][:count]


class Plain(TorchDispatchMode):
    """Does nothing. Some backward formulas choose another algorithm under any dispatch mode (prod)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Truth:
    """A sample's results at its inputs and around them."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        base = self.at(sample.inputs)
        if base is None:
            raise Refused
        self.base = base

    def at(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """None where the op refuses these values, or gives another number of results."""
        try:
            with warnings.catch_warnings(), Plain():
                warnings.simplefilter("ignore")
                out = flat(self.sample.fn(*[t.clone() for t in inputs]))
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return None
        known = getattr(self, "base", None)
        return None if known is not None and known.shape != out.shape else out

    def column(self, which: int, e: int, rng: random.Random, count: int) -> Tensor | None:
        """Which results change with element ``e`` of one input; None if no other value was accepted."""
        hit = None
        for value in others(self.sample.inputs[which], e, rng, count):
            out = self.at(self._with({which: {e: value}}))
            if out is not None:
                changed = differs(out, self.base)
                hit = changed if hit is None else hit | changed
        return hit

    def together(self, free: list[Tensor], rng: random.Random) -> Tensor | None:
        """The results when many of the elements in these masks change at once."""
        values: dict[int, dict[int, Any]] = {}
        for i, (t, mask) in enumerate(zip(self.sample.inputs, free, strict=True)):
            for e in mask.reshape(-1).nonzero()[:, 0].tolist():
                options = others(t, e, rng, 7)
                if options and rng.random() < 0.8:
                    values.setdefault(i, {})[e] = rng.choice(options)
        return self.at(self._with(values)) if values else None

    def _with(self, values: dict[int, dict[int, Any]]) -> tuple[Tensor, ...]:
        out = []
        for i, t in enumerate(self.sample.inputs):
            if i in values:
                t = t.clone(memory_format=torch.contiguous_format)
                for e, value in values[i].items():
                    t.view(-1)[e] = value
            out.append(t)
        return tuple(out)


def judge(sample: Sample, elements: int = 24, values: int = 5, seed: int = 0) -> Verdict:
    """Perturb up to ``elements`` elements of the inputs one by one, and for some results everything that they
    are said not to depend on at once."""
    rng = random.Random(f"{sample.op} {sample.number} {seed}")
    out = Verdict()
    truth = Truth(sample)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        members, latest, opaque = trace(sample.fn, *sample.inputs)
    out.opaque = sorted(opaque)
    count = len(truth.base)
    reach = torch.cat(
        [
            torch.cat(
                [part.reshape(top.numel(), t.numel()) for part, t in zip(row, sample.inputs, strict=True)], 1
            )
            for row, top in zip(members, latest, strict=True)
        ]
    )
    assert reach.shape[0] == count, "the watched run gave other results"
    tops = torch.cat([top.reshape(-1) for top in latest])
    order = torch.arange(reach.shape[1])
    out.horizon = torch.equal(torch.where(reach, order, -1).amax(1) if reach.shape[1] else tops, tops)
    where = [(i, e) for i, t in enumerate(sample.inputs) for e in range(t.numel())]
    columns = rng.sample(range(len(where)), min(elements, len(where)))
    out.judged = not columns
    for c in columns:
        hit = truth.column(*where[c], rng, values)
        if hit is None:
            continue
        out.judged = True
        out.true += int(hit.sum())
        out.reported += int(reach[:, c].sum())
        out.missed += [(int(r), c) for r in (hit & ~reach[:, c]).nonzero()[:, 0]]
    for _ in range(3):
        if not count:
            break
        r = rng.randrange(count)
        free = (~reach[r]).split([t.numel() for t in sample.inputs])
        changed = truth.together(list(free), rng)
        if changed is not None and bool(differs(changed, truth.base)[r]):
            out.missed.append((r, -1))
    return out
