"""What scores charge for their labels, in nats: the number that a verdict is about.

Readouts that leave bring their values along, and their mass says what these are: logarithms of any unit and
sign, or probabilities. Where it does not, nothing is said.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causaltrace._compat import is_wrapped, storage_of
from causaltrace.mass import DOWN, UNIT, UP, is_probability, logarithms, wide
from causaltrace.schema import Op
from causaltrace.shadow import Entry

PLAIN = (Tensor, torch.nn.Parameter)


def plain(values: Tensor | None, dims: tuple[int, ...]) -> Tensor | None:
    """The values as a flat tensor, if they are numbers that can be looked at, one for each of ``dims``."""
    if values is None or type(values) not in PLAIN or is_wrapped(values) or values.is_nested:
        return None
    if values.layout is not torch.strided or not values.is_floating_point() or values.shape != dims:
        return None
    return wide(values.detach()).reshape(-1)


def summed(op: Op, bound: dict[str, Any], index: Tensor) -> Tensor | None:
    """What a loss that gives one number for all labels charges for each of them; None: not known."""
    x = bound.get("self")
    if not op.name.startswith("nll_loss") or bound.get("weight") is not None or not isinstance(x, Tensor):
        return None
    dim = min(1, x.ndim - 1)
    at = index.clamp(0, x.shape[dim] - 1)
    return -(x.gather(dim, at.unsqueeze(dim)).squeeze(dim) if x.ndim > 1 else x[at])


def held(owner: Any, entry: Entry) -> Tensor | None:
    """What lies in memory at the end; None: not known."""
    base, dtype = entry.base, entry.dtype
    if isinstance(owner, np.ndarray) and owner.flags.carray and not owner.dtype.hasobject:
        owner = storage_of(torch.from_numpy(np.asarray(owner).reshape(-1).view(np.uint8)))
    if not isinstance(owner, torch.UntypedStorage) or dtype is None or dtype.itemsize != base.itemsize:
        return None
    last = base.offset + sum((n - 1) * stride for n, stride in zip(base.sizes, base.strides, strict=True))
    if (last + 1) * base.itemsize > owner.nbytes():
        return None
    return torch.empty(0, dtype=dtype, device=owner.device).set_(owner, *base[:3])


def nats(values: Tensor, lanes: Tensor, left: bool) -> Tensor:
    """What readouts with these values and masses charge; NaN: not known. ``left``: Python got the values as
    they are, and may do to them what it likes where nothing shows that they are a distribution's."""
    up, down, unit = lanes[..., UP], lanes[..., DOWN], lanes[..., UNIT]
    is_up, is_down = logarithms(lanes)
    if not left:  # of no distribution, but nats
        is_up |= up.isfinite() & down.isnan() & (unit.abs() == 1)
        is_down |= down.isfinite() & up.isnan() & (unit.abs() == 1)
    charge = values / unit
    charge = torch.where(is_up, -charge, torch.where(is_down, charge, math.nan))
    return torch.where(is_probability(lanes), -values.log(), charge) if left else charge
