"""Where a view's elements lie inside another tensor over the same storage.

A shadow is kept for one *base* geometry of a storage. Any other view is found by arithmetic on byte
addresses: the base's strides are the digits of a mixed-radix number, and a view whose steps never carry
from one digit into the next is a strided view of the base's shadow too; one that carries is an index read.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from causaltrace._compat import storage_of

#: A view that carries is read from the fully expanded base if that is at most so many times larger.
EXPAND = 4
#: Elements that a compressed shadow may be expanded to for such a view.
MATERIALISE = 1 << 16
#: A shadow that is so many times smaller than its tensor is small.
SMALL = 8


class Geometry(NamedTuple):
    """Element offset, sizes and strides of a tensor in its storage, and bytes an element."""

    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int


def geometry(t: Tensor) -> Geometry:
    if t.is_nested:  # no sizes and strides: one value for all that the storage holds
        return Geometry(0, (storage_of(t).nbytes() // t.itemsize,), (1,), t.itemsize)
    return Geometry(t.storage_offset(), t.shape, t.stride(), t.itemsize)  # type: ignore[arg-type]


def by_bytes(g: Geometry) -> Geometry:
    """The same memory, with one more dim: the bytes of each element."""
    strides = (*[s * g.itemsize for s in g.strides], 1)
    return Geometry(g.offset * g.itemsize, (*g.sizes, g.itemsize), strides, 1)


class Digit(NamedTuple):
    """One dim of the base: its size, byte stride, and stride in the shadow data (0: compressed)."""

    size: int
    stride: int
    data: int


def natural(view: Geometry, nbytes: int) -> Geometry:
    """A geometry that covers a whole storage of ``nbytes``, shaped after the strides of ``view``."""
    strides = sorted(
        {s for n, s in zip(view.sizes, view.strides, strict=True) if n > 1 and s > 0} | {1}, reverse=True
    )
    total = nbytes // view.itemsize
    sizes: list[int] = []
    outer = total
    for stride in strides:
        if outer % stride:
            return Geometry(0, (total,), (1,), view.itemsize)
        sizes.append(outer // stride)
        outer = stride
    return Geometry(0, tuple(sizes), tuple(strides), view.itemsize)


def covers(view: Geometry, nbytes: int) -> bool:
    """Does the view hold every byte of its storage, each once?"""
    return view.offset == 0 and math.prod(view.sizes) * view.itemsize == nbytes and nested(view)


def nested(base: Geometry) -> bool:
    """Are the strides digits of one number, each at least as large as all that lies inside it?"""
    digits = sorted((s, n) for n, s in zip(base.sizes, base.strides, strict=True) if n > 1)
    extent = 1
    for stride, size in digits:
        if stride < extent:
            return False
        extent = stride * size
    return True


def digits(
    base: Geometry, dims: tuple[int, ...], strides: tuple[int, ...], merge: bool = True
) -> list[Digit]:
    """The base's dims as digits, largest stride first, neighbours merged where both layouts allow it.
    ``dims``, ``strides``: those of the shadow, without the lanes."""
    out = [
        Digit(n, s * base.itemsize, strides[d] if dims[d] != 1 else 0)
        for d, (n, s) in enumerate(zip(base.sizes, base.strides, strict=True))
        if n > 1
    ]
    out.sort(key=lambda digit: -digit.stride)
    out.append(Digit(base.itemsize, 1, 0))
    if not merge:
        return out
    merged = [out[0]]
    for inner in out[1:]:
        outer = merged[-1]
        if outer.stride == inner.size * inner.stride and outer.data == inner.size * inner.data:
            merged[-1] = Digit(outer.size * inner.size, inner.stride, inner.data)
        else:
            merged.append(inner)
    return merged


def decompose(value: int, base: list[Digit]) -> list[int]:
    out = []
    for digit in base:
        out.append(value // digit.stride)
        value %= digit.stride
    return out


def steps(base: list[Digit], start: int, view: Geometry) -> list[list[int]] | None:
    """Per view dim the step in every digit, or None when some element would carry."""
    high = decompose(start, base)
    out = []
    for size, stride in zip(view.sizes, view.strides, strict=True):
        step = decompose(stride * view.itemsize, base) if size > 1 else [0] * len(base)
        out.append(step)
        high = [h + (size - 1) * s for h, s in zip(high, step, strict=True)]
    if any(h >= digit.size for h, digit in zip(high, base, strict=True)):
        return None
    return out


@functools.lru_cache(maxsize=4096)
def strided(
    base: Geometry, view: Geometry, dims: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[list[int], list[int], int] | None:
    """Sizes, strides and offset of ``view`` in a shadow with these dims, or None where an element carries.

    Raises ``IndexError`` when the view reaches outside the base.
    """
    start = view.offset * view.itemsize - base.offset * base.itemsize
    reach = sum((n - 1) * s for n, s in zip(view.sizes, view.strides, strict=True)) * view.itemsize
    limit = (sum((n - 1) * s for n, s in zip(base.sizes, base.strides, strict=True)) + 1) * base.itemsize
    if start < 0 or start + reach + view.itemsize > limit:
        raise IndexError("view outside its base")
    base_digits = digits(base, dims, strides)
    moves = steps(base_digits, start, view)
    if moves is None:
        return None
    first = decompose(start, base_digits)
    jump = [sum(m * d.data for m, d in zip(move, base_digits, strict=True)) for move in moves]
    sizes = [n if j else 1 for n, j in zip(view.sizes, jump, strict=True)]
    return sizes, jump, sum(f * d.data for f, d in zip(first, base_digits, strict=True))


def view_of(data: Tensor, base: Geometry, view: Geometry) -> Tensor:
    """The shadow data ``[*view dims, width]`` of ``view``, given those of ``base``.

    Raises ``IndexError`` when the view reaches outside the base.
    """
    if view.itemsize > base.itemsize:  # one element covers several of the base's: one more dim to join
        ratio = view.itemsize // base.itemsize
        wide = Geometry(
            view.offset * ratio,
            (*view.sizes, ratio),
            (*[s * ratio for s in view.strides], 1),
            base.itemsize,
        )
        return view_of(data, base, wide).amax(-2)
    width, stride = data.shape[-1], data.stride()
    found = strided(base, view, data.shape[:-1], stride[:-1])
    if found is not None:
        sizes, jump, offset = found
        return data.as_strided((*sizes, width), (*jump, stride[-1]), data.storage_offset() + offset)
    widened = _widened(data, base, view)
    if widened is not None:
        return view_of(widened, base, view)
    if data.shape[-1] > 1 and math.prod(base.sizes) > MATERIALISE and data.shape[:-1] != base.sizes:
        # too large to spell out: the innermost dim is joined (never of labels and readouts, width 1)
        inner = min((base.strides[d], d) for d, n in enumerate(data.shape[:-1]) if n > 1)[1]
        return view_of(data.amax(inner, keepdim=True), base, view)
    if math.prod(base.sizes) <= EXPAND * math.prod(view.sizes) and data.shape[:-1] != base.sizes:
        order = sorted(range(len(base.sizes)), key=lambda d: -base.strides[d])
        full = data.expand(*base.sizes, width).permute(*order, -1).contiguous()
        back = sorted(range(len(order)), key=order.__getitem__)
        return view_of(full.permute(*back, -1), base, view)
    start = view.offset * view.itemsize - base.offset * base.itemsize
    return data[tuple(coordinates(data, base, view, start))]


def _widened(data: Tensor, base: Geometry, view: Geometry) -> Tensor | None:
    """``data``, contiguous, with its outer compressed dims spelt out, as few as make the view a strided one
    (heads that are merged with the batch), if that stays small next to the tensor itself."""
    limit = max(MATERIALISE, math.prod(base.sizes) // SMALL)
    order = sorted(range(len(base.sizes)), key=lambda d: -base.strides[d])
    back = sorted(range(len(order)), key=order.__getitem__)
    sizes = list(data.shape[:-1])
    for d in (None, *[d for d in order if sizes[d] != base.sizes[d]]):
        if d is not None:
            sizes[d] = base.sizes[d]
        if math.prod(sizes) > limit:
            return None
        dims = [sizes[d] for d in order]
        strides = [math.prod(dims[i + 1 :]) * data.shape[-1] for i in range(len(dims))]
        if strided(base, view, tuple(sizes), tuple(strides[i] for i in back)) is not None:
            return data.expand(*sizes, -1).permute(*order, -1).contiguous().permute(*back, -1)
    return None


def coordinates(data: Tensor, base: Geometry, view: Geometry, start: int) -> list[Tensor]:
    """Index tensors into ``data``'s dims for each element of ``view``; dims that cannot matter have 1."""
    fine = min(s * base.itemsize for s, m in zip(base.strides, data.shape, strict=False) if m > 1)
    small = [j for j, s in enumerate(view.strides) if s * view.itemsize % fine]
    reach = sum((view.sizes[j] - 1) * view.strides[j] for j in small) * view.itemsize
    inner = set(small) if start % fine + reach < fine else set()
    address = torch.full((1,) * len(view.sizes), start, device=data.device)
    for j, (size, stride) in enumerate(zip(view.sizes, view.strides, strict=True)):
        if j in inner or size == 1:
            continue
        shape = [1] * len(view.sizes)
        shape[j] = size
        address = address + torch.arange(size, device=data.device).view(shape) * (stride * view.itemsize)
    out = []
    for d, (size, stride) in enumerate(zip(base.sizes, base.strides, strict=True)):
        if data.shape[d] == 1:
            out.append(torch.zeros_like(address))
        else:
            out.append(torch.div(address, stride * base.itemsize, rounding_mode="floor") % size)
    return out


def assign(data: Tensor, base: Geometry, view: Geometry, value: Tensor) -> Tensor:
    """``data`` with the elements of ``view`` replaced by ``value`` (a new tensor).

    Dims are expanded only where the view takes a part of them or ``value`` differs along them.
    """
    sizes = base.sizes
    start = view.offset * view.itemsize - base.offset * base.itemsize
    plain = digits(base, data.shape[:-1], data.stride()[:-1], merge=False)
    moves = steps(plain, start, view)
    order = sorted((d for d, n in enumerate(sizes) if n > 1), key=lambda d: -base.strides[d])
    if moves is None:
        full = data.expand(*sizes, data.shape[-1]).clone(memory_format=torch.contiguous_format)
        where = coordinates(full, base, view, start)
        full[tuple(where)] = value.to(full.dtype)
        return full
    first = decompose(start, plain)
    shape = [1] * len(sizes)
    for i, d in enumerate(order):
        along = [j for j, move in enumerate(moves) if move[i]]
        whole = (
            len(along) == 1
            and first[i] == 0
            and moves[along[0]][i] == 1
            and sum(1 for m in moves[along[0]] if m) == 1
            and view.sizes[along[0]] == sizes[d]
            and value.shape[along[0]] == 1
        )
        shape[d] = data.shape[d] if whole else sizes[d]
    out = data.expand(*shape, data.shape[-1]).clone(memory_format=torch.contiguous_format)
    view_of(out, base, view).copy_(value)
    return out
