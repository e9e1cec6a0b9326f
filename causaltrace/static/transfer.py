"""What is known of an operation's results where not all that it reads is: zeros and masks on their way.

A function takes the arguments by name, floats of which nothing is known as NaN, and returns what is known of
the (first) result, or of each in a list; dims along which it is the same may have size 1. Operations that are
not here make values of which nothing is known. Zeros are exact, as in ``rules``: the partner of a zero in a
product is taken for finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from causaltrace._compat import is_fake
from causaltrace.rules.pointwise import MASK_VALUE
from causaltrace.static.values import LIMIT, UNKNOWN, narrow

Known = Tensor | None | list[Tensor | None]
Arguments = dict[str, Any]


def _zero(mask: Tensor, like: Tensor) -> Tensor | None:
    """0 where ``mask``, unknown elsewhere."""
    return torch.where(mask, 0.0, torch.nan).to(like.dtype) if bool(mask.any()) else None


def _of(value: Any) -> Any:
    return narrow(value) if isinstance(value, Tensor) else value


def _is_zero(value: Any) -> Any:
    return torch.as_tensor(_of(value) == 0)


def _truth(value: Any) -> Tensor:
    """0, 1 or ``UNKNOWN``, where 1 is any nonzero number."""
    t = torch.as_tensor(_of(value))
    if is_fake(t):
        return torch.full((1,) * t.ndim, UNKNOWN, dtype=torch.uint8)
    if t.dtype == torch.uint8:  # so they are kept
        return t
    truth = (t != 0).to(torch.uint8)
    return torch.where(t.isnan(), UNKNOWN, truth) if t.is_floating_point() else truth


def both(a: Arguments, out: Tensor) -> Known:
    x, y = _truth(a["self"]), _truth(a["other"])
    return torch.where((x == 0) | (y == 0), 0, torch.maximum(x, y))


def either(a: Arguments, out: Tensor) -> Known:
    x, y = _truth(a["self"]), _truth(a["other"])
    return torch.where((x == 1) | (y == 1), 1, torch.maximum(x, y))


def negated(a: Arguments, out: Tensor) -> Known:
    x = _truth(a["self"])
    return torch.where(x == UNKNOWN, UNKNOWN, 1 - x)


def mul(a: Arguments, out: Tensor) -> Known:
    if out.dtype == torch.bool:
        return both(a, out)
    x, y = _of(a["self"]), _of(a["other"])
    zero = _is_zero(x) | _is_zero(y)
    return torch.where(zero, 0, torch.as_tensor(x * y)).to(out.dtype)


def div(a: Arguments, out: Tensor) -> Known:
    x, y = _of(a["self"]), _of(a["other"])
    if a.get("rounding_mode"):
        return None
    return torch.where(_is_zero(x) & ~_is_zero(y), 0, torch.as_tensor(x / y)).to(out.dtype)


def add(a: Arguments, out: Tensor) -> Known:
    """Sums; a mask value swallows what is not known."""
    x, y = torch.as_tensor(_of(a["self"])), torch.as_tensor(_of(a["other"]))
    total = torch.add(x, y, alpha=a.get("alpha", 1))
    if out.dtype.is_floating_point and a.get("alpha", 1) == 1:
        low = max(MASK_VALUE, torch.finfo(out.dtype).min / 2)
        for mask, other in ((x, y), (y, x)):
            if mask.dtype.is_floating_point:
                total = torch.where((mask <= low) & other.isnan(), mask, total)
    return total.to(out.dtype)


def sub(a: Arguments, out: Tensor) -> Known:
    """Differences; what is not known does not lift a mask value (softmax less its maximum)."""
    x, y = torch.as_tensor(_of(a["self"])), torch.as_tensor(_of(a["other"]))
    total = torch.sub(x, y, alpha=a.get("alpha", 1))
    if out.dtype.is_floating_point and x.dtype.is_floating_point:
        low = max(MASK_VALUE, torch.finfo(out.dtype).min / 2)
        total = torch.where((x <= low) & y.isnan(), x, total)
    return total.to(out.dtype)


def greater(a: Arguments, out: Tensor) -> Known:
    return torch.maximum(narrow(a["self"]), narrow(a["other"])).to(out.dtype)


def same(a: Arguments, out: Tensor) -> Known:
    """Copies and casts."""
    return _cast(a["src"] if "src" in a else a["self"], out)


def _cast(value: Any, out: Tensor) -> Tensor:
    if out.dtype == torch.bool:
        return _truth(value)
    t = torch.as_tensor(_of(value))
    if is_fake(t) and t.dtype == torch.bool or t.dtype == torch.uint8:
        truth = _truth(t)
        return torch.where(truth == UNKNOWN, torch.nan, truth).to(out.dtype)
    return t.to(out.dtype)


def through(name: str) -> Callable[[Arguments, Tensor], Known]:
    """Element-wise functions that make NaN of NaN."""
    return lambda a, out: getattr(torch, name)(narrow(a["self"])).to(out.dtype)


def where(a: Arguments, out: Tensor) -> Known:
    if "mask" in a:
        condition, yes, no = a["mask"], a["value"], a["self"]
    else:
        condition, yes, no = a["condition"], a["self"], a["other"]
    chosen, first, second = _truth(condition), _cast(yes, out), _cast(no, out)
    rest = torch.nan if out.dtype != torch.bool else UNKNOWN
    either = torch.where(first == second, first, rest)
    return torch.where(chosen == 1, first, torch.where(chosen == 0, second, either))


def filled(a: Arguments, out: Tensor) -> Known:
    return torch.as_tensor(a.get("value", 0)).to(out.dtype)


def tri(name: str) -> Callable[[Arguments, Tensor], Known]:
    def fn(a: Arguments, out: Tensor) -> Known:
        x = a["self"]
        kept = getattr(torch, name)(torch.ones(x.shape[-2:], dtype=torch.bool), a.get("diagonal", 0))
        return torch.where(kept, _cast(x, out), 0)

    return fn


def moved(fn: Callable[[Arguments], Tensor]) -> Callable[[Arguments, Tensor], Known]:
    """Movements that are small enough to be made."""
    return lambda a, out: fn(a) if out.numel() <= LIMIT else None


def cat(a: Arguments, out: Tensor) -> Known:
    parts, dim = [t for t in a["tensors"] if t.numel()], int(a.get("dim", 0))
    small = [narrow(t) for t in parts]
    shape = [max(t.shape[d] for t in small) for d in range(out.ndim)]
    wide = [
        t.expand(
            [n if d == dim % out.ndim else s for d, (n, s) in enumerate(zip(p.shape, shape, strict=True))]
        )
        for t, p in zip(small, parts, strict=True)
    ]
    return torch.cat([t.to(out.dtype) for t in wide], dim)


def view_backward(a: Arguments, out: Tensor) -> Known:
    """The gradient in its place, zeros elsewhere; dims that the view leaves alone stay small."""
    grad = a["grad_output"]
    dim = int(a["dim"]) % out.ndim
    small = narrow(grad.unsqueeze(dim) if "index" in a else grad)
    sizes = [n if d == dim else small.shape[d] for d, n in enumerate(out.shape)]
    if torch.Size(sizes).numel() > LIMIT:
        return None
    full = torch.zeros(sizes, dtype=out.dtype)
    if "index" in a:
        full.select(dim, int(a["index"])).copy_(small.squeeze(dim))
    else:
        full[(slice(None),) * dim + (slice(a["start"], a["end"], a["step"]),)].copy_(small)
    return full


def pad(a: Arguments, out: Tensor) -> Known:
    x, widths = a["self"], list(a["pad"])
    if a.get("value", 0) or out.numel() > LIMIT:
        return None
    return torch.constant_pad_nd(x, widths)


def summed(a: Arguments, out: Tensor) -> Known:
    """Zero where all that is summed is."""
    dims = a.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(a["self"].ndim))
    small = narrow(a["self"])
    zero = (small == 0).to(torch.uint8)
    gone = zero.amin(dims, keepdim=bool(a.get("keepdim", False))) if small.ndim else zero
    return _zero(gone.bool(), out)


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor | None:
    """Zero where each product of a row and a column has a zero factor."""
    a, b = narrow(a), narrow(b)
    if not bool((a == 0).any() | (b == 0).any()):
        return None
    k = max(a.shape[-1], b.shape[-2])
    if a.shape[-2] * k * b.shape[-1] > LIMIT * 64:  # whole rows and columns only
        rows, columns = (a == 0).all(-1, keepdim=True), (b == 0).all(-2, keepdim=True)
        return _zero(rows | columns, out)
    x, y = ((t != 0).float() for t in (a.expand(*a.shape[:-1], k), b.expand(*b.shape[:-2], k, b.shape[-1])))
    return _zero(x @ y == 0, out)


def mm(a: Arguments, out: Tensor) -> Known:
    return product(a["self"], a["mat2"], out)


def linear(a: Arguments, out: Tensor) -> Known:
    return None


def addmm(a: Arguments, out: Tensor) -> Known:
    """A bias that masks stays; a sum is zero where both parts are."""
    x, y = (a["mat1"], a["mat2"]) if "mat1" in a else (a["batch1"], a["batch2"])
    made = product(x, y, out)
    part = torch.full((1,) * out.ndim, torch.nan, dtype=out.dtype) if made is None else made
    return add({"self": part, "other": a["self"]}, out) if a.get("beta", 1) == 1 else None


def softmax(a: Arguments, out: Tensor) -> Known:
    """0 where a key is masked and another is not."""
    x = narrow(a["self"])
    if not x.ndim or x.shape[int(a["dim"])] == 1:
        return None
    low = max(MASK_VALUE, torch.finfo(x.dtype).min / 2)
    hidden = (x <= low) & ~(x <= low).all(int(a["dim"]), keepdim=True)
    return _zero(hidden, out)


def softmax_backward(a: Arguments, out: Tensor) -> Known:
    grad, output = narrow(a["grad_output"]), narrow(a["output"])
    if not grad.ndim:
        return None
    dead = (grad == 0).all(int(a["dim"]), keepdim=True)
    return _zero(dead | (output == 0) if "_softmax_backward" in a["_name"] else dead, out)


def gradient(a: Arguments, out: Tensor) -> Known:
    """grad * f'(x): zero where the gradient is."""
    name = next(n for n in ("grad_output", "grad_out", "grad") if n in a)
    return _zero(narrow(a[name]) == 0, out)


def class_gradient(a: Arguments, out: Tensor) -> Known:
    """nll_loss_backward: rows of zero gradient."""
    grad = narrow(a["grad_output"])
    dim = 1 if out.ndim > 1 else 0
    return _zero((grad.unsqueeze(dim) if grad.ndim else grad) == 0, out)


def norm_gradient(a: Arguments, out: Any) -> Known:
    grad = narrow(a["grad_out"])
    inner = list(range(grad.ndim - len(a["normalized_shape"]), grad.ndim))
    zero = (grad == 0).to(torch.uint8).amin(inner, keepdim=True).bool()
    return [_zero(zero, grad)]


def attention_gradient(a: Arguments, out: Any) -> Known:
    """(dq, dk, dv): queries without gradient; keys that no query with one sees."""
    name = next(n for n in ("grad_out", "grad_out_", "grad_output") if n in a)
    grad = narrow(a[name])
    dead = (grad == 0).all(-1, keepdim=True)
    keys = dead.all(-2, keepdim=True)
    if a.get("is_causal") and dead.shape[-2] > 1 and a["query"].shape[-2] == a["key"].shape[-2]:
        keys = dead.flip(-2).cummin(-2).values.flip(-2)
    same_heads = keys.shape[1] == 1 or a["query"].shape[1] == a["key"].shape[1]
    into = _zero(keys, grad) if same_heads else None
    return [_zero(dead, grad), into, into]


def _rows(names: str, fn: Callable[[Arguments, Any], Known]) -> dict[str, Callable[[Arguments, Any], Known]]:
    return dict.fromkeys(names.split(), fn)


TABLE: dict[str, Callable[[Arguments, Any], Known]] = {
    "mul": mul,
    **_rows("bitwise_and logical_and __and__", both),
    **_rows("bitwise_or logical_or __or__", either),
    **_rows("bitwise_not logical_not", negated),
    "div": div,
    "add": add,
    "sub": sub,
    **_rows("maximum max", greater),
    **_rows("clone _to_copy copy _conj_physical", same),
    **{name: through(name) for name in ("neg", "abs", "sqrt", "tanh", "exp", "relu", "square")},
    **_rows("where masked_fill", where),
    **_rows("fill zero", filled),
    "tril": tri("tril"),
    "triu": tri("triu"),
    "cat": cat,
    "stack": moved(lambda a: torch.stack(list(a["tensors"]), a.get("dim", 0))),
    "flip": moved(lambda a: a["self"].flip(a["dims"])),
    "roll": moved(lambda a: a["self"].roll(a["shifts"], a.get("dims", ()))),
    "repeat": moved(lambda a: a["self"].repeat(a["repeats"])),
    "index_select": moved(lambda a: a["self"].index_select(a["dim"], a["index"])),
    "constant_pad_nd": pad,
    **_rows("slice_backward select_backward", view_backward),
    "sum": summed,
    **_rows("mm bmm", mm),
    **_rows("addmm baddbmm", addmm),
    **_rows("_softmax _safe_softmax", softmax),
    **_rows("_softmax_backward_data _log_softmax_backward_data", softmax_backward),
    **_rows(
        "gelu_backward silu_backward sigmoid_backward tanh_backward threshold_backward leaky_relu_backward "
        "elu_backward softplus_backward hardswish_backward hardsigmoid_backward hardtanh_backward "
        "mish_backward native_dropout_backward",
        gradient,
    ),
    **_rows("nll_loss_backward nll_loss2d_backward", class_gradient),
    **_rows("native_layer_norm_backward _fused_rms_norm_backward", norm_gradient),
    **_rows(
        "_scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_flash_attention_backward "
        "_scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward",
        attention_gradient,
    ),
}
