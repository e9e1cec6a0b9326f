"""The one argument of every rule: an operation with named arguments, their supports and their values."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from causaltrace._compat import is_fake
from causaltrace.lattice.cells import Algebra, Cells

Result = Cells | None | list[Cells | None]


def tensors(value: Any) -> list[Tensor]:
    """Tensors in an argument or a result: itself, or in lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    out: list[Tensor] = []
    if isinstance(value, (list, tuple)):
        for v in value:
            if isinstance(v, Tensor):
                out.append(v)
            elif isinstance(v, (list, tuple)):
                out += tensors(v)
    return out


class OpCall:
    """One operation, seen on one plane.

    ``args`` maps schema names to values (defaults left out: use ``get``). ``cells(name)`` is the support of
    a tensor argument (a list for list arguments) on the plane that is being computed; None is bottom.
    ``out`` is what the op returned, or None when the rule runs before an in-place op. ``blind``: floats that
    are NaN are not known (a static audit).
    """

    __slots__ = (
        "_cells",
        "args",
        "backward",
        "bare",
        "blind",
        "full",
        "lattice",
        "name",
        "out",
        "plane",
        "selects",
    )

    def __init__(
        self,
        name: str,
        args: dict[str, Any],
        cells: Callable[[Tensor], Cells | None],
        lattice: Algebra,
        plane: str = "support",
        backward: bool = False,
        out: Any = None,
        selects: bool = False,
        bare: Callable[[Tensor], Cells | None] | None = None,
        full: Callable[[Tensor], Cells | None] | None = None,
        blind: bool = False,
    ) -> None:
        self.name, self.args, self._cells, self.lattice = name, args, cells, lattice
        self.plane, self.backward, self.out, self.selects = plane, backward, out, selects
        self.blind = blind
        #: As ``of``, without the labels that a tensor's elements themselves are.
        self.bare = bare or cells
        #: As ``of``, with these labels in any case.
        self.full = full or cells

    def get(self, name: str, default: Any = None) -> Any:
        return self.args.get(name, default)

    def tensor(self, name: str) -> Tensor:
        value = self.args[name]
        assert isinstance(value, Tensor), name
        return value

    def of(self, value: Any) -> Cells | None:
        """Support of a tensor; anything else is bottom."""
        return self._cells(value) if isinstance(value, Tensor) else None

    def cells(self, name: str) -> Cells | None:
        return self.of(self.args.get(name))

    def inputs(self) -> list[Tensor]:
        """Every tensor argument, lists flattened."""
        out: list[Tensor] = []
        for value in self.args.values():
            if isinstance(value, Tensor):
                out.append(value)
            elif isinstance(value, (list, tuple)):
                out += [v for v in value if isinstance(v, Tensor)]
        return out

    def outputs(self) -> list[Tensor]:
        """Every tensor of the result, lists flattened; what is none (numbers, None) is left out."""
        return tensors(self.out)

    @property
    def moves_values(self) -> bool:
        """Is this one of the planes on which indices and conditions count (``support``, ``possible``)?"""
        return self.plane in ("support", "possible")

    def dim(self, default: int | None = None, name: str = "dim", ndim: int | None = None) -> int:
        """A dim argument, non-negative."""
        d = self.get(name, default)
        n = self.tensor("self").ndim if ndim is None else ndim
        return int(d) % max(n, 1)

    def dims(self, name: str = "dim", of: str = "self") -> list[int]:
        """A list-of-dims argument, non-negative; none or empty means all."""
        n = self.tensor(of).ndim
        value = self.get(name)
        if isinstance(value, int):
            value = [value]
        if not value:
            return list(range(n))
        return sorted({int(d) % max(n, 1) for d in value})


def known(t: Tensor) -> bool:
    """Are there values to look at? A static audit has none of integers and bools that depend on data; floats
    that do are NaN, which equals nothing and is nonzero."""
    return not is_fake(t)


def anywhere(op: OpCall, c: Cells | None, dim: int, index: Tensor) -> Cells | None:
    """``c``, to be read along ``dim`` at ``index``: of all of it where nobody knows where that points."""
    return c if known(index) else op.lattice.reduce(c, [dim])


def live(t: Tensor, keep: Collection[int]) -> Tensor:
    """Is anything nonzero? One bool per index of the dims ``keep``; the others become size 1."""
    if not known(t):
        return torch.ones([n if d in keep else 1 for d, n in enumerate(t.shape)], dtype=torch.bool)
    for d in range(t.ndim):  # what is broadcast need not be looked at again and again
        if t.shape[d] > 1 and t.stride(d) == 0 and d not in keep:
            t = t.narrow(d, 0, 1)
    gone = [d for d in range(t.ndim) if d not in keep and t.shape[d] != 1]
    if t.dtype.is_floating_point:  # several times as fast as a comparison; NaN counts as nonzero
        return (t.abs().amax(gone, keepdim=True) if gone and t.numel() else t) != 0
    flags = t != 0
    for d in range(t.ndim):
        if d not in keep and flags.shape[d] != 1:
            flags = flags.any(d, keepdim=True)
    return flags


def all_live(t: Tensor, keep: Collection[int]) -> bool:
    """Is something nonzero at every index of the dims ``keep``? Looked at on the host only, and only at the
    first element of each slice, which mostly settles it."""
    if t.device.type != "cpu" or not t.numel():
        return False
    if not known(t):
        return True
    return bool(t[tuple([slice(None) if d in keep else 0 for d in range(t.ndim)])].all())


def varied(*cells: Cells | None, ndim: int) -> set[int]:
    """The dims along which some of these supports differ (aligned from the right)."""
    out: set[int] = set()
    for c in cells:
        if c is not None:
            shift = ndim - len(c.dims)
            out |= {d + shift for d, n in enumerate(c.dims) if n != 1}
    return out


def absorb(
    op: OpCall, factor: Tensor, own: Cells | None, other: Cells | None, partner: Tensor | None = None
) -> Cells | None:
    """Support of ``factor * anything``: where ``factor`` is exactly 0 only its own support counts.

    Sound because the absorber's support stays. Zeros are looked for at the granularity of the supports:
    a whole slice along dims on which neither support varies must be zero to cut the other operand,
    but for masks (bool) that are broadcast over each other.
    """
    lattice = op.lattice
    if other is None or other is own:
        return own
    joined = lattice.join(own, other)
    if joined is own:
        return own
    dims = varied(own, other, ndim=factor.ndim)
    if partner is not None and factor.dtype == torch.bool:
        shared = partner.shape[max(0, partner.ndim - factor.ndim) :]
        sizes = (1,) * (factor.ndim - partner.ndim) + tuple(shared)
        dims |= {d for d, n in enumerate(sizes) if n == 1}
    if all_live(factor, dims):
        return joined
    mask = live(factor, tuple(dims))
    if len(other.dims) > factor.ndim:
        mask = mask.reshape((1,) * (len(other.dims) - factor.ndim) + tuple(mask.shape))
    return lattice.join(own, lattice.keep(other, mask))


def matters(op: OpCall, factor: Tensor, own: Cells | None, partner: Tensor) -> bool:
    """Is it worth looking for zeros in ``factor``? Only precision is at stake, never soundness.

    Gradients, masks and broadcast factors often hold exact zeros, and so does a matrix of pairs (decays
    between positions, masked); a weight or an activation does not. In a backward pass these are told from
    gradients by requiring grad.
    """
    if factor.requires_grad:
        return False
    if op.backward or own is None or not factor.dtype.is_floating_point:
        return True
    sizes = [n for n in own.dims if n != 1]
    return factor.numel() < partner.numel() or len(set(sizes)) < len(sizes)
