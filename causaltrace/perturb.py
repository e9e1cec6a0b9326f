"""Ground truth for tests: what really changes when inputs change. No watch and no verdict uses it."""

from __future__ import annotations

import cmath
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: The largest size that whole numbers are drawn for.
PLACES = 1024


class Refused(Exception):
    """The function does not run at these inputs, or gives no dense tensor."""


def flat(value: Any) -> Tensor:
    """All results as one vector of complex numbers; -0.0 is 0.0."""
    parts = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return torch.cat([t.detach().resolve_conj().to(torch.complex128).reshape(-1) for t in parts])


def differs(a: Tensor, b: Tensor) -> Tensor:
    """Where ``a`` is another number than ``b``: everywhere if there are more or fewer of them."""
    if a.shape != b.shape:
        return torch.ones(b.shape, dtype=torch.bool)
    return (a != b) & ~(a.isnan() & b.isnan())


class Plain(TorchDispatchMode):
    """Does nothing. Some backward formulas choose another algorithm under any dispatch mode (prod)."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Truth:
    """A function's results at ``inputs`` and around them. Input elements are numbered through all inputs.
    ``values``: for some inputs, what their elements may be; else see ``others``. ``numbers``: what the
    function may compare its inputs with. ``masks``: does it take -inf for what is masked? ``finite``: is it
    given finite numbers only?"""

    def __init__(
        self,
        fn: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        values: Mapping[int, Sequence[Any]] | None = None,
        numbers: Iterable[float] = (),
        masks: bool = False,
        finite: bool = False,
    ) -> None:
        self.fn, self.inputs, self.values = fn, inputs, values or {}
        self.numbers, self.masks, self.finite = list(numbers), masks, finite
        self.where = [(i, e) for i, t in enumerate(inputs) for e in range(t.numel())]
        base = self.at(inputs)
        if base is None:
            raise Refused
        self.base = base
        self.numbered = (
            ~base.isnan()
        )  #: results that no rule may miss: where 0 met inf, they are none already

    def at(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """None where the function refuses these values."""
        try:
            with Plain():
                out = self.fn(*[t.clone() for t in inputs])
                self.shapes = [t.shape for t in tree_leaves(out) if isinstance(t, Tensor)]
                return flat(out)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return None

    def column(self, element: int, values: Iterable[Any]) -> Tensor | None:
        """Which results change with one element; None if none of its other values was accepted."""
        hit = None
        for value in values:
            out = self.at(self._with({element: value}))
            if out is not None:
                changed = self._changed(out)
                hit = changed if hit is None else hit | changed
        return hit

    def not_finite(self, element: int) -> Tensor:
        """Which results are other finite numbers once an element is none: tests like isnan, and whatever asks
        them. These show what is depended on; as 0 * nan is nan, they say nothing about what is not. Of what
        is masked (-inf, or a place of a mask), nan is a result like any other."""
        found = torch.zeros(self.base.shape, dtype=torch.bool)
        i, e = self.where[element]
        kind, values = self.inputs[i].dtype, []
        if (kind.is_floating_point or kind.is_complex) and not self.finite:
            values = [float("nan"), float("inf"), -float("inf")]
        elif kind == torch.bool and self.masks:
            values = [not self.inputs[i].reshape(-1)[e]]
        for value in values:
            out = self.at(self._with({element: value}))
            if out is not None and out.shape == found.shape:
                masked = self.masks and value in (True, False, -float("inf"))
                found |= differs(out, self.base) & (out.isfinite() | masked)
        return found

    def together(self, elements: list[int], rng: random.Random) -> Tensor | None:
        """Which results change when most of these elements change at once."""
        values = {}
        for e in elements:
            options = self.others(e, rng, 7)
            if options and rng.random() < 0.8:
                values[e] = rng.choice(options)
        out = self.at(self._with(values)) if values else None
        return None if out is None else self._changed(out)

    def _changed(self, out: Tensor) -> Tensor:
        """Results that are other numbers. What is no number any more (0 * inf, the root of a variance below
        0) tells nothing: an exact 0 is taken to cut finite partners only."""
        found = differs(out, self.base)
        return found & ~out.isnan() if out.shape == self.base.shape else found

    def standing_out(self, result: int, high: bool) -> tuple[Tensor, ...]:
        """The inputs where the element that ``result`` may be the gradient of is the largest, or smallest."""
        shape, place = self._place(result)
        first, values = 0, {}
        for t in self.inputs:
            if t.shape == shape and t.dtype.is_floating_point:
                values[first + place] = _beyond(t)[high]
            first += t.numel()
        return self._with(values)

    def naming(self, element: int, result: int) -> list[int]:
        """What a whole number may be to name the place of ``result``: along a dim, or in the last ones."""
        if self.inputs[self.where[element][0]].dtype not in (torch.int32, torch.int64):
            return []
        shape, place = self._place(result)
        tails = [shape[d:].numel() for d in range(len(shape))]
        return sorted(
            {n for d, tail in enumerate(tails) for n in (place % tail, place % tail * shape[d] // tail)}
        )

    def _place(self, result: int) -> tuple[torch.Size, int]:
        """The shape of the tensor that a result is in, and its number there."""
        for shape in self.shapes:
            if result < shape.numel():
                return shape, result
            result -= shape.numel()
        raise IndexError

    def others(self, element: int, rng: random.Random, count: int) -> list[Any]:
        """Other values for an element: large ones, a near one, another element's (a tie), a random one, 0.
        Whole numbers take what else is in the tensor, which is valid wherever it stands."""
        i, e = self.where[element]
        t = self.inputs[i]
        old = t.reshape(-1)[e].item()
        if i in self.values:
            return [v for v in self.values[i] if v != old][:count]
        if t.dtype == torch.bool:
            return [not old]
        like = [x for x in self.inputs if x.dtype == t.dtype and x.numel()]
        beside = rng.choice(like).reshape(-1)
        flat = t.reshape(-1)
        own = flat[rng.randrange(len(flat))].item()
        ties = [beside[e % len(beside)].item(), flat[(e + rng.choice((-1, 1))) % len(flat)].item()]
        if t.dtype.is_floating_point or t.dtype.is_complex:
            low, high = _beyond(t)
            rest = [low, *ties, rng.gauss(0, 1), -old, old + 1, old * (1j if t.dtype.is_complex else 9)]
            rest.append(9999.0)  # what rounds to thousands
            if self.numbers:
                rest.append(rng.choice(self.numbers) + rng.choice((-0.5, 0.0, 0.5)))
            rest = [high, old * 1.02 + 0.01, 0.0, *rng.sample(rest, len(rest))]
            options = [v for v in rest if cmath.isfinite(v)]
            options.insert(2, own)  # a masked place stays a masked place
        else:
            places = rng.choice(self.sizes)  # as an index it may name any of so many
            # -100 is what losses ignore
            named = {*ties, old + 1, max(old - 1, 0), 0, -1, -100, *rng.sample(range(places), min(8, places))}
            options, count = [own, *rng.sample(sorted(named), len(named))], 3 * count
        return [v for v in options if v != old][:count]

    @property
    def sizes(self) -> list[int]:
        """How many places an index may name: dims of inputs and results, and all from one dim on."""
        shapes = [*[t.shape for t in self.inputs], *self.shapes]
        sizes = {n for s in shapes for d in range(max(1, len(s))) for n in (*s[d : d + 1], s[d:].numel())}
        return sorted(n for n in sizes if 0 < n <= PLACES) or [1]

    def _with(self, values: dict[int, Any]) -> tuple[Tensor, ...]:
        out = list(self.inputs)
        for element, value in values.items():
            i, e = self.where[element]
            if out[i] is self.inputs[i]:
                out[i] = out[i].clone()  # with its strides: kernels round differently for others
            out[i][tuple(int(n) for n in np.unravel_index(e, out[i].shape))] = value
        return tuple(out)


def _beyond(t: Tensor) -> tuple[float, float]:
    """A number below, and one above, all of a tensor's: -9 and 9 if these are."""
    if t.is_complex() or not bool(t.isfinite().any()):
        return -9.0, 9.0
    finite = t[t.isfinite()]
    return min(-8.0, float(finite.min())) - 1, max(8.0, float(finite.max())) + 1


def drawn_again(
    inputs: tuple[Tensor, ...], attempt: int, sizes: Sequence[int] | None = None
) -> tuple[Tensor, ...]:
    """Other inputs of the same kind. Zeros and what is not finite mostly stand where they stood; whole
    numbers and bools stand in every other attempt, and else come from the same range or name places, of
    which there are so many as one of ``sizes`` says (without them, a dim of an input)."""
    g = torch.Generator().manual_seed(attempt)
    sizes = sizes or sorted({n for t in inputs for n in t.shape if n})
    places = sizes[attempt // 4 % len(sizes)] if sizes else 1
    return tuple(_drawn(t.detach(), attempt, places, g) for t in inputs)


def _drawn(t: Tensor, attempt: int, places: int, g: torch.Generator) -> Tensor:
    if not t.numel():
        return t
    if t.dtype.is_floating_point or t.dtype.is_complex:
        noise = torch.randn(t.shape, dtype=t.dtype, generator=g) * (1, 4, 16)[attempt // 5 % 3]
        few = torch.randint(1, 4 - attempt // 5 % 2, t.shape, generator=g).to(t.dtype)
        shares = (0.1 + 0.8 * torch.rand(t.shape, generator=g).to(t.dtype)) ** (1, 4, 16)[attempt // 5 % 3]
        if (kind := attempt % 5) == 4:
            some = torch.rand(t.shape, generator=g) < (0.5, 0.1)[attempt // 10 % 2]
            return noise if attempt % 10 == 4 else (few - 2) * some
        return torch.where(t.isfinite() & (t != 0), (noise, t * (1 + 0.3 * noise), few, shares)[kind], t)
    if attempt % 2 == 0:
        return t.clone()
    if t.dtype == torch.bool:
        return torch.rand(t.shape, generator=g) < 0.5
    low, high = (int(t.min()), int(t.max()) + 1) if attempt % 4 == 1 else (0, places)
    new = torch.randint(low, max(high, low + 1), t.shape, generator=g).to(t.dtype)
    if attempt % 8 > 4:
        stands = torch.rand(t.shape, generator=g) < (0.5, 0.2)[attempt // 8 % 2]
        new = torch.where(stands, t, new)
    # what rises, like offsets, may have to: kernels read past the end of what does not
    return new.sort().values if t.ndim == 1 and bool((t.diff() >= 0).all()) else new
