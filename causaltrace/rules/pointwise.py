"""Element-wise operations: out[i] depends on every operand at i, less what an exact zero absorbs."""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, absorb, live, matters, varied

#: A finite mask value this low is -inf for a softmax (DESIGN 2.2).
MASK_VALUE = -1e9


def join(op: OpCall) -> Result:
    """out = union of all operands; every result of an op that has several."""
    if isinstance(op.out, (list, tuple)):
        return [_union(op)] * len(op.out)
    return _union(op)


def _union(op: OpCall) -> Cells | None:
    if isinstance(op.args.get("scalars"), Tensor):  # one number for each tensor of a foreach list
        rest = op.lattice.join(*[op.of(t) for name, t in op.args.items() if name != "scalars"])
        return op.lattice.join(rest, op.lattice.everything(op.cells("scalars")))
    return op.lattice.join(*[op.of(t) for t in op.inputs()])


def sampled(op: OpCall) -> Result:
    """Random numbers depend on the parameters of their distribution, not on what they overwrite."""
    given = [op.args[name] for name in ("mean", "std", "p") if name in op.args]
    if not given and op.name == "bernoulli":  # the probabilities; in place, what is overwritten with p=0.5
        return None if op.out is op.args["self"] else op.cells("self")
    return op.lattice.join(*[op.of(t) for t in given])


def mul(op: OpCall) -> Result:
    """out = a | b; an exact 0 in one cuts the other."""
    a, b = op.args["self"], op.args["other"]
    return _product(op, a, b)


def _product(op: OpCall, a: object, b: object) -> Cells | None:
    if not isinstance(a, Tensor):
        a, b = b, a
    assert isinstance(a, Tensor)
    ca = op.of(a)
    if not isinstance(b, Tensor):
        return None if b == 0 and ca is not None else ca
    return _cut(op, a, b, ca, op.of(b))


def _cut(op: OpCall, a: Tensor, b: Tensor, ca: Cells | None, cb: Cells | None) -> Cells | None:
    """Union of two operands, of which an exact 0 in one cuts the other."""
    if ca is cb:
        return ca
    joined = op.lattice.join(ca, cb)
    cut_b = joined is not ca and matters(op, a, ca, b)
    cut_a = joined is not cb and matters(op, b, cb, a)
    if cut_a and cut_b:
        return _meet(op, a, b, ca, cb)
    if cut_b:
        return absorb(op, a, ca, cb, b)
    if cut_a:
        return absorb(op, b, cb, ca, a)
    return joined


def either(op: OpCall) -> Result:
    """a or b: a True in one cuts the other."""
    a, b = op.args["self"], op.args["other"]
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return join(op)
    if op.name != "logical_or" and not a.dtype == b.dtype == torch.bool:
        return join(op)
    return _cut(op, _may_be_zero(op, a), _may_be_zero(op, b), op.of(a), op.of(b))


def _may_be_zero(op: OpCall, t: Tensor) -> Tensor:
    return (t == 0) | t.isnan() if op.blind and t.is_floating_point() else t == 0


def _meet(op: OpCall, a: Tensor, b: Tensor, ca: Cells | None, cb: Cells | None) -> Cells | None:
    """Both operands may hold zeros: where a is 0 S(a) suffices, where only b is 0 S(b) does, else both."""
    ndim = max(a.ndim, b.ndim)
    dims = varied(ca, cb, ndim=ndim)
    alive_a = live(a, [d - (ndim - a.ndim) for d in dims])
    alive_b = live(b, [d - (ndim - b.ndim) for d in dims])
    shape = torch.broadcast_shapes(alive_a.shape, alive_b.shape)
    if len(shape) < ndim:
        shape = torch.Size((1,) * (ndim - len(shape)) + tuple(shape))
    kept_a = op.lattice.keep(ca, (alive_b | ~alive_a).expand(shape))
    kept_b = op.lattice.keep(cb, alive_a.expand(shape))
    return op.lattice.join(kept_a, kept_b)


def div(op: OpCall) -> Result:
    """out = a | b; in a backward pass, where the forward one divided by b already, an exact 0 in a cuts b."""
    a = op.args["self"]
    if not op.backward or not isinstance(a, Tensor):
        return join(op)
    return absorb(op, a, op.of(a), op.of(op.args["other"]))


def add(op: OpCall) -> Result:
    """out = a | b; a mask value that swallows the other operand (x + z == z, z <= -1e9 or -inf) cuts it."""
    a, b = op.args["self"], op.args["other"]
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return op.of(a if isinstance(a, Tensor) else b)
    if op.get("alpha", 1) == 0:
        return op.of(a)
    ca, cb = op.of(a), op.of(b)
    lattice = op.lattice
    if op.get("alpha", 1) == 1 and not op.backward:
        by_b = _swallows(op, b, a) if ca is not None and (may_mask(cb) or _scores(b, a)) else None
        if by_b is not None:
            return lattice.join(lattice.keep(ca, ~by_b), cb)
        by_a = _swallows(op, a, b) if cb is not None and (may_mask(ca) or _scores(a, b)) else None
        if by_a is not None:
            return lattice.join(lattice.keep(cb, ~by_a), ca)
    return lattice.join(ca, cb)


def may_mask(c: Cells | None) -> bool:
    """Is it worth looking for mask values? A constant may hold them, and what varies from key to key."""
    return c is None or bool(c.dims) and c.dims[-1] != 1


def _scores(mask: Tensor, x: Tensor) -> bool:
    """Is it scores of attention that a mask is added to? One that was chosen row by row (sparse attention),
    or that holds a bias of the row, looks the same from key to key."""
    return mask.ndim >= 4 or mask.numel() < x.numel()


def _swallows(op: OpCall, mask: Tensor, x: Tensor) -> Tensor | None:
    """Where ``mask`` is so low that adding ``x`` does not change it; None if nowhere."""
    if op.backward or not mask.dtype.is_floating_point or mask.requires_grad or mask.ndim < 2:
        return None
    low = max(MASK_VALUE, torch.finfo(mask.dtype).min / 2)
    if not bool((mask <= low).any()):  # waits for a device, but only for constants and what varies by key
        return None
    total = (x + mask).to(mask.dtype)
    swallowed = total == mask
    if op.blind:  # what is not known is taken for moderate
        swallowed = swallowed | total.isnan()
    return (mask <= low) & swallowed


def grad_of(op: OpCall) -> Result:
    """Backward of an element-wise op: grad * f'(x); a zero gradient cuts the rest, a zero scale all."""
    if op.get("scale", 1) == 0:  # dropout of everything
        return None
    name = next(n for n in ("grad_output", "grad_out", "grad") if n in op.args)
    grad, own = op.tensor(name), op.cells(name)
    rest = op.lattice.join(*[op.of(t) for t in op.inputs() if t is not grad])
    return absorb(op, grad, own, rest)


def addcmul(op: OpCall) -> Result:
    """out = self | (tensor1 * tensor2)."""
    product = _product(op, op.args["tensor1"], op.args["tensor2"])
    return op.lattice.join(op.cells("self"), product)


def rrelu(op: OpCall) -> Result:
    """Results and noise: in training a number is drawn for each negative element, so that all that came
    before decides which one an element gets."""
    one = _union(op)
    if op.get("training", False):
        one = op.lattice.everything(one, op.tensor("self").ndim)
    return [one, one]


def bounded(op: OpCall) -> Result:
    """hardtanh: S(self), but nothing where the two bounds are one number."""
    return None if op.get("min_val", -1) == op.get("max_val", 1) else join(op)


def bounded_backward(op: OpCall) -> Result:
    """grad where self is between the bounds."""
    return None if op.get("min_val", -1) == op.get("max_val", 1) else grad_of(op)


def hardshrink_backward(op: OpCall) -> Result:
    """grad where self is not between -lambd and lambd, which nothing is if lambd is negative."""
    return op.cells("grad_out") if op.args["lambd"] < 0 else grad_of(op)


def fill(op: OpCall) -> Result:
    """out = value, wherever self came from."""
    return op.cells("value")


def pow_(op: OpCall) -> Result:
    """out = base | exponent; x ** 0 is 1."""
    exponent = op.get("exponent")
    if not isinstance(exponent, Tensor) and exponent == 0:
        return None
    return join(op)


def tri(op: OpCall) -> Result:
    """tril, triu: what is cut off is 0 and depends on nothing."""
    x = op.tensor("self")
    c = op.cells("self")
    if c is None:
        return None
    n, m = x.shape[-2:]
    kept = getattr(torch, op.name)(torch.ones(n, m, dtype=torch.bool, device=x.device), op.get("diagonal", 0))
    return op.lattice.keep(c, kept)


def _halves(op: OpCall, c: Cells | None, dim: int) -> list[Cells | None]:
    """The two halves of a support along ``dim``."""
    if c is None or c.dims[dim] == 1:
        return [c, c]
    n = c.dims[dim] // 2
    return [op.lattice.move(c, lambda data, at=at: data.narrow(dim, at, n)) for at in (0, n)]  # type: ignore[misc]


def heaviside(op: OpCall) -> Result:
    """S(self), and S(values) where self is 0: elsewhere they are not read."""
    own, values, x = op.cells("self"), op.cells("values"), op.tensor("self")
    if values is None:
        return own
    return op.lattice.join(own, op.lattice.keep(values, ~((x > 0) | (x < 0))))


def glu(op: OpCall) -> Result:
    """out = first half | second half."""
    return op.lattice.join(*_halves(op, op.cells("self"), op.dim(-1)))


def glu_backward(op: OpCall) -> Result:
    """a * sigmoid(b): S(grad) | S(b) for the half a, S(grad) | S(a) | S(b) for b; a zero gradient cuts the
    rest."""
    dim, lattice = op.dim(-1), op.lattice
    grad, own = op.tensor("grad_output"), op.cells("grad_output")
    first, second = _halves(op, op.cells("self"), dim)
    a, b = absorb(op, grad, own, second), absorb(op, grad, own, lattice.join(first, second))
    if a is b or b is None:
        return (
            b if b is None or b.dims[dim] == 1 else lattice.move(b, lambda data: torch.cat((data,) * 2, dim))
        )
    shape = [*b.dims, b.data.shape[-1]]
    shape[dim] = grad.shape[dim]
    if a is None:
        blank = b.data.new_full(shape, lattice.lattice.bottom)
        return lattice.move(b, lambda data: torch.cat((blank, data.expand(shape)), dim))
    return lattice.make(lambda x, y: torch.cat((x.expand(shape), y.expand(shape)), dim), a, b, share=False)


def prelu_backward(op: OpCall) -> Result:
    """(grad of self, grad of weight) = grad * (1 or weight), grad * (0 or self); a zero gradient cuts the
    rest."""
    grad, own, x = op.tensor("grad_output"), op.cells("grad_output"), op.cells("self")
    return [absorb(op, grad, own, op.lattice.join(x, op.cells("weight"))), absorb(op, grad, own, x)]
