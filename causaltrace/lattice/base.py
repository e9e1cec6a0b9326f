"""The lattice interface: what a rule may do to supports, whatever represents them.

Data are tensors ``[*dims, width]`` where every dim is the tensor's own size or 1 (one value for the
whole dim, never materialised). All functions are pure, so a result can be replayed to explain it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Lattice(Protocol):
    """A join semilattice over label positions, stored in the last dim of a tensor."""

    width: int
    bottom: int  #: in every lane

    def read(self, positions: Tensor, scored: Tensor) -> Tensor:
        """Supports of verbatim labels: ``positions [*dims, 1]`` (-1: no label) to ``[*dims, width]``."""
        ...

    def join(self, *xs: Tensor) -> Tensor:
        """Least upper bound, with broadcasting."""
        ...

    def reduce(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """Join over ``dims``, which stay with size 1."""
        ...

    def running(self, x: Tensor, dim: int, reverse: bool) -> Tensor:
        """Join of everything up to (``reverse``: from) each index of ``dim``."""
        ...

    def keep(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x`` where ``mask [*dims]`` is true, else bottom."""
        ...

    def bounds(self, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A value below, and one above, every element of ``x``, as ``width`` numbers each."""
        ...

    def below(self, low: tuple[int, ...], high: tuple[int, ...]) -> bool:
        """Is one value, as ``bounds`` gives it, contained in another?"""
        ...

    def members(self, x: Tensor) -> Tensor:
        """Labels of the window that are in it: bool ``[*dims, window]`` (the horizon's window is empty)."""
        ...

    def indirect(self, x: Tensor) -> Tensor:
        """The same labels, marked as having passed through a backward pass."""
        ...

    def contract(self, mask: Tensor, x: Tensor) -> Tensor:
        """``out[..., q, 1] = join of x[..., k, 1] over the k with mask[..., q, k]``."""
        ...
