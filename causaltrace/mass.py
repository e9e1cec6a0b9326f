"""What all classes together are charged: is the number that a readout became still one of a distribution?

A readout is the element of a row at the label. What is computed from it with values that no label decides
could be computed for every class; call q(c) the probability that class c would get. The *mass* of a readout
follows the sum of q over all classes through the arithmetic: it is 1 where the score is that of a normalised
distribution. Sums are exact where the arithmetic is linear in probabilities (scaling, mixing) or adds to
their logarithms; anything else makes them unknown, which proves nothing and accuses nobody.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells

#: Lanes of a mass; NaN is unknown. SUM: of the values themselves, none of which is negative, over all
#: classes. UP: the logarithm of the sum of exp(value / UNIT); DOWN: of exp(-value / UNIT). Which one is
#: meant need not be known.
SUM, UP, DOWN, UNIT, CLASSES, SLACK = range(6)
WIDTH = 6
#: How far from 1 a sum of probabilities may be, beside the rounding of the type that it was computed in.
TOLERANCE = 1e-4
#: The part of a sum that a floor under each probability (``clamp_min``) may add.
FLOOR = 1e-5
#: Numbers of rows that are summed at a time.
BLOCK = 1 << 20
#: Two factors are the same if they differ by less.
SAME = 1e-6
LOGS = {"log": 1.0, "log2": math.log(2), "log10": math.log(10)}
EXPS = {"exp": 1.0, "exp2": math.log(2)}
SUMS = {"logaddexp": 1.0, "logaddexp2": math.log(2)}


def pack(lanes: Tensor, ndim: int) -> Cells:
    """Lanes ``[*dims, WIDTH]`` as a plane of a tensor of ``ndim`` dims: the bits of each float32 as a number
    that is not negative. -1, which stands for nothing in every plane, is a NaN."""
    lanes = lanes.reshape((1,) * (ndim + 1 - lanes.ndim) + lanes.shape)
    bits = lanes.float().contiguous().view(torch.int32)
    return Cells(bits.to(torch.int64) & 0xFFFFFFFF)


def unpack(data: Tensor) -> Tensor:
    """The lanes in the data of a plane, as wide floats."""
    return wide((data & 0xFFFFFFFF).to(torch.int32).view(torch.float32))


def wide(t: Tensor) -> Tensor:
    return t if t.device.type == "mps" else t.double()  # which has no wider floats


def unknown(device: torch.device) -> Tensor:
    lanes = torch.full((WIDTH,), math.nan, device=device)
    lanes[SLACK] = 0
    return wide(lanes)


# -- at the readout ---------------------------------------------------------------------------------------


def normalised(log: bool, classes: float, device: torch.device) -> Tensor:
    """The mass of an element of a (log-)softmax: 1."""
    lanes = unknown(device)
    lanes[CLASSES] = classes
    if log:
        lanes[UP], lanes[UNIT] = 0, 1
    else:
        lanes[SUM] = 1
    return lanes


def of_rows(rows: Iterator[Tensor]) -> Tensor:
    """Masses ``[n, WIDTH]`` of elements of rows ``[n, classes]`` that may hold anything."""
    return torch.cat([_rows(block) for block in rows])


def blocks(x: Tensor, dim: int) -> Iterator[Tensor]:
    """The rows of ``x`` along ``dim``, some at a time."""
    rows = x.movedim(dim, -1).reshape(-1, x.shape[dim])
    return iter(rows.split(max(1, BLOCK // max(1, rows.shape[1]))))


def chosen(x: Tensor, places: list[Tensor]) -> Iterator[Tensor]:
    """The rows of ``x`` at ``places``, some at a time."""
    if not places:
        yield x.reshape(1, -1)
        return
    flat = [p.reshape(-1) for p in torch.broadcast_tensors(*places)]
    step = max(1, BLOCK // max(1, x.shape[-1]))
    for start in range(0, len(flat[0]), step):
        yield x[tuple(p[start : start + step] for p in flat)]


def _rows(x: Tensor) -> Tensor:
    epsilon = torch.finfo(x.dtype).eps
    x = x.float() if x.itemsize < 4 else x
    total = torch.where(x.amin(-1) >= 0, x.sum(-1), math.nan)
    up, down, unit = x.logsumexp(-1), (-x).logsumexp(-1), torch.ones_like(total)
    if x.device.type != "cpu" or bool((x.amax(-1) <= TOLERANCE).all() | (x.amin(-1) >= -TOLERANCE).all()):
        bits = [(math.log(2) * sign * x).logsumexp(-1) for sign in (1, -1)]  # in bits, perhaps
        two = (bits[0].abs() < TOLERANCE) | (bits[1].abs() < TOLERANCE)
        up, down = torch.where(two, bits[0], up), torch.where(two, bits[1], down)
        unit = torch.where(two, 1 / math.log(2), unit)
    slack = epsilon * (1 + up.abs().nan_to_num(0, 0, 0))
    is_log = (up.abs() <= TOLERANCE + slack) | (down.abs() <= TOLERANCE + slack)
    is_sum = ~is_log & ((total - 1).abs() <= TOLERANCE + slack)
    total = total.masked_fill(is_log, math.nan)
    up, down = up.masked_fill(is_sum, math.nan), down.masked_fill(is_sum, math.nan)
    return wide(torch.stack((total, up, down, unit, torch.full_like(up, x.shape[-1]), slack), -1))


def refused(lanes: Tensor, where: Tensor) -> Tensor:
    """No distribution charges this."""
    result = lanes.clone()
    result[..., :CLASSES].masked_fill_(where.unsqueeze(-1), math.nan)
    result[..., UP].masked_fill_(where, math.inf)
    return result


def negated(lanes: Tensor) -> Tensor:
    """The mass of an element whose sign a loss turns."""
    return _scaled(lanes, -1.0)


# -- arithmetic -------------------------------------------------------------------------------------------


def through(name: str, bound: Mapping[str, Any], masses: Mapping[int, Tensor], out: Tensor) -> Tensor | None:
    """The mass after an element-wise op; None: unknown. ``masses``: by ids of the operands that are
    readouts; no label decides the others."""
    x, y = bound.get("self", bound.get("input")), bound.get("other", bound.get("end"))
    one, two = masses.get(id(x)), masses.get(id(y))
    result: Tensor | None = None
    if name in ("add", "sub", "rsub"):
        alpha = bound.get("alpha", 1)
        first, second = (-alpha, 1) if name == "rsub" else (1, -alpha if name == "sub" else alpha)
        result = _added(x, one, first, y, two, second)
    elif name in ("mul", "div") and (one is None) != (two is None) and not bound.get("rounding_mode"):
        mass, factor = (two, x) if one is None else (one, y)
        if mass is not None and (name == "mul" or one is not None):
            result = _scaled(mass, factor if name == "mul" else 1 / factor)
    elif name == "neg" and one is not None:
        result = _scaled(one, -1.0)
    elif name in LOGS and one is not None:
        result = _only(one, UP, one[..., SUM].log())
        result[..., UNIT] = 1 / LOGS[name]
    elif name in EXPS and one is not None:
        result = _only(one, SUM, _exponent(one, EXPS[name]).exp())
    elif name in SUMS:
        terms = [_term(v, m, masses, SUMS[name]) for v, m in ((x, one), (y, two))]
        mass = one if one is not None else two
        assert mass is not None
        result = _only(mass, UP, torch.logaddexp(*terms))
        result[..., UNIT] = 1 / SUMS[name]
    elif name in ("clamp", "clamp_min", "clamp_max") and one is not None:
        result = _clamped(one, bound.get("min"), bound.get("max"))
    elif name == "lerp":
        weight = bound.get("weight")
        if id(weight) not in masses:
            inside = torch.as_tensor(weight, device=out.device)
            inside = torch.where((inside >= 0) & (inside <= 1), wide(inside), math.nan)
            first, second = _scalable(x, one, 1 - inside), _scalable(y, two, inside)
            result = _added(
                first, None if one is None else first, 1, second, None if two is None else second, 1
            )
    return result


def mixed(name: str, lanes: Tensor, dim: int) -> Tensor | None:
    """The mass of several readouts of one label that are summed over ``dim``."""
    result = lanes.select(dim, 0).clone()
    same = (lanes[..., CLASSES] == result[..., CLASSES].unsqueeze(dim)).all(dim)
    if name in ("sum", "mean"):
        result = _only(result, SUM, getattr(lanes[..., SUM], name)(dim))
    elif name == "logsumexp":
        result = _only(result, UP, _exponent(lanes, 1.0).logsumexp(dim))
        result[..., UNIT] = 1
    else:
        return None
    result[..., SLACK] = lanes[..., SLACK].amax(dim)
    result[..., :UNIT].masked_fill_(~same.unsqueeze(-1), math.nan)
    return result


def _only(lanes: Tensor, lane: int, value: Tensor) -> Tensor:
    """``value`` in one lane, and nothing known in the others."""
    shape = torch.broadcast_shapes(lanes.shape[:-1], value.shape)
    result = lanes.expand(*shape, WIDTH).clone()
    result[..., :CLASSES] = math.nan
    result[..., lane] = value
    return result


def _number(value: Any, like: Tensor) -> Tensor:
    return wide(torch.as_tensor(value, device=like.device))


def _scaled(lanes: Tensor, factor: Any) -> Tensor:
    """Times a number, or a tensor of which the sums may differ; a logarithm's factor is the same everywhere,
    but for the zeros that take positions out of a score."""
    c = _number(factor, lanes)
    every = c[..., None] if c.ndim else c
    shape = torch.broadcast_shapes(lanes.shape[:-1], c.shape)
    result = lanes.expand(*shape, WIDTH).clone()
    result[..., SUM] *= torch.where(c >= 0, c, math.nan)
    used = every != 0
    most, least = (torch.where(used, every, off) for off in (-math.inf, math.inf))
    most, least = most.amax(), least.amin()
    result[..., UNIT] *= torch.where((most - least).abs() <= SAME * most.abs(), most, math.nan)
    lost = result[..., UNIT].isnan() | (result[..., UNIT] == 0)
    result[..., UP].masked_fill_(lost, math.nan)
    result[..., DOWN].masked_fill_(lost, math.nan)
    return result


def _shifted(lanes: Tensor, value: Any) -> Tensor:
    """Plus the same for all classes."""
    c = _number(value, lanes)
    shape = torch.broadcast_shapes(lanes.shape[:-1], c.shape)
    result = lanes.expand(*shape, WIDTH).clone()
    result[..., SUM] += result[..., CLASSES] * torch.where(c >= 0, c, math.nan)
    shift = c / result[..., UNIT]
    result[..., UP] += shift
    result[..., DOWN] -= shift
    if isinstance(value, Tensor) and value.dtype.is_floating_point:
        rounding = shift.abs().nan_to_num(0, 0, 0) * torch.finfo(value.dtype).eps
        result[..., SLACK] += rounding
    return result


def _scalable(value: Any, lanes: Tensor | None, factor: Tensor) -> Any:
    return value * factor if lanes is None else _scaled(lanes, factor)


def _added(x: Any, one: Tensor | None, a: Any, y: Any, two: Tensor | None, b: Any) -> Tensor:
    one, two = (m if m is None or f == 1 else _scaled(m, f) for m, f in ((one, a), (two, b)))
    if one is None:
        assert two is not None
        return _shifted(two, x if a == 1 else x * a)
    if two is None:
        return _shifted(one, y if b == 1 else y * b)
    result = _only(one, SUM, one[..., SUM] + two[..., SUM])
    result[..., SUM].masked_fill_(one[..., CLASSES] != two[..., CLASSES], math.nan)
    result[..., SLACK] = torch.maximum(one[..., SLACK], two[..., SLACK])
    return result


def _exponent(lanes: Tensor, base: float) -> Tensor:
    """The logarithm of the sum of exp(base * value)."""
    unit = lanes[..., UNIT] * base
    down = torch.where((unit + 1).abs() < SAME, lanes[..., DOWN], math.nan)
    return torch.where((unit - 1).abs() < SAME, lanes[..., UP], down)


def _term(value: Any, lanes: Tensor | None, masses: Mapping[int, Tensor], base: float) -> Tensor:
    """What a term of a sum of exponentials adds for all classes, as a logarithm."""
    if lanes is not None:
        return _exponent(lanes, base)
    some = next(iter(masses.values()))
    return some[..., CLASSES].log() + _number(value, some) * base


def _clamped(lanes: Tensor, low: Any, high: Any) -> Tensor | None:
    """A floor that adds next to nothing for all classes together, or a ceiling that none of them can
    reach."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    result = lanes.clone()
    classes, unit = lanes[..., CLASSES], lanes[..., UNIT]

    def bounded(lane: int, total: Tensor, floor: Tensor, ceiling: Tensor) -> None:
        kept = (classes * floor <= FLOOR * total) & (ceiling >= total * (1 - TOLERANCE))
        result[..., lane].masked_fill_(~kept, math.nan)

    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    bounded(SUM, lanes[..., SUM], torch.full_like(unit, max(low, 0.0)), torch.full_like(unit, high))
    for lane, sign in ((UP, 1), (DOWN, -1)):
        ends = torch.stack([sign * end / unit for end in (low, high)])
        bounded(lane, lanes[..., lane].exp(), ends.amin(0).exp(), ends.amax(0).exp())
    return result


# -- at the score -----------------------------------------------------------------------------------------


def logarithms(lanes: Tensor) -> tuple[Tensor, Tensor]:
    """Is it the logarithm of a distribution's element, and is it that with the other sign?"""
    return lanes[..., UP].abs() <= _allowed(lanes), lanes[..., DOWN].abs() <= _allowed(lanes)


def proved(lanes: Tensor, as_it_is: bool) -> Tensor:
    """Is it the logarithm of a distribution's element, of either sign? ``as_it_is``: or the element."""
    up, down = logarithms(lanes)
    out = up | down
    return out | is_probability(lanes) if as_it_is else out


def is_probability(lanes: Tensor) -> Tensor:
    """Is it the element of a distribution?"""
    return (lanes[..., SUM] - 1).abs() <= _allowed(lanes)


def _allowed(lanes: Tensor) -> Tensor:
    return TOLERANCE + lanes[..., SLACK].nan_to_num(0)


def is_known(lanes: Tensor) -> Tensor:
    """Is what all classes are charged known?"""
    return ~lanes[..., :UNIT].isnan().all(-1)
