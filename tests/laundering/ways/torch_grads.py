"""Gradients: labels that travel through a backward pass, its hooks and its saved tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from tests.laundering import VOCAB, tensors

TABLE = torch.linspace(0.1, 1.3, VOCAB, dtype=torch.float64)


def leaf(n: int = VOCAB) -> Tensor:
    return torch.ones(n, dtype=torch.float64, requires_grad=True)


@tensors("the gradient of a weight that was multiplied with labels")
def gradient(x: Tensor) -> Tensor:
    weight = leaf(3)
    (weight * x * 0.1).sum().backward()
    return weight.grad.sum()


@tensors("a hook on a tensor that replaces its gradient")
def tensor_hook(x: Tensor) -> Tensor:
    weight = leaf()
    weight.register_hook(lambda grad: grad * x[-1])
    (weight * TABLE).sum().backward()
    return weight.grad * 0.1


@tensors("a hook that runs when a gradient has been accumulated")
def accumulated_hook(x: Tensor) -> Tensor:
    weight = leaf()

    def scale(held: Tensor) -> None:
        held.grad.mul_(x[-1])

    weight.register_post_accumulate_grad_hook(scale)
    (weight * TABLE).sum().backward()
    return weight.grad * 0.1


@tensors("a hook on a module: forward and full backward")
def module_hooks(x: Tensor) -> Tensor:
    layer = torch.nn.Identity()
    layer.register_forward_hook(lambda module, args, out: out * x[-1])
    layer.register_full_backward_hook(lambda module, given, got: (given[0] * x[0],))
    weight = leaf()
    out = layer(weight)
    out.sum().backward()
    return weight.grad * 0.1 + out.detach() * 0.1


class Scaled(torch.autograd.Function):
    """Constants in the forward pass, labels in the backward pass."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.last = x[-1]
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * x[0] + ctx.last, None


@tensors("a custom Function that keeps labels for its backward pass")
def custom_function(x: Tensor) -> Tensor:
    weight = leaf()
    Scaled.apply(weight, x).sum().backward()
    return weight.grad * TABLE * 0.1


@tensors("saved tensors that are swapped on the way: saved_tensors_hooks")
def saved_tensors(x: Tensor) -> Tensor:
    weight = leaf(3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: x.double()):
        out = (weight * weight.detach()).sum()
    out.backward()
    return weight.grad.sum() * 0.1


@tensors("a gradient that is assigned: weight.grad = labels")
def grad_assigned(x: Tensor) -> Tensor:
    weight = leaf(3)
    weight.grad = x.double()
    torch.optim.SGD([weight], lr=0.1).step()
    return weight.detach().sum()


@tensors("the gradient that backward starts from")
def grad_given(x: Tensor) -> Tensor:
    weight = leaf(3)
    (weight * TABLE[:3]).backward(x.double())
    return weight.grad.sum()


@tensors("computed again in the backward pass: checkpoint")
def checkpointed(x: Tensor) -> Tensor:
    weight = leaf(3)
    checkpoint(lambda w: (w.sin() * x).sum(), weight, use_reentrant=False).backward()
    return weight.grad.sum() * 0.1


@tensors("torch.func.grad")
def func_grad(x: Tensor) -> Tensor:
    return torch.func.grad(lambda w: (w * w * x).sum())(TABLE[:3]).sum() * 0.1


@tensors("torch.func.jacrev")
def jacobian(x: Tensor) -> Tensor:
    return torch.func.jacrev(lambda w: w * x)(TABLE[:3]).sum() * 0.1


@tensors("torch.func.jvp, with labels as the tangent")
def tangent(x: Tensor) -> Tensor:
    return torch.func.jvp(torch.sin, (TABLE[:3],), (x.double(),))[1].sum() * 0.1


@tensors("a dual number, with labels as the tangent")
def dual(x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        hidden = forward_ad.make_dual(TABLE[:3], x.double()) * 0.1
        return forward_ad.unpack_dual(hidden).tangent.sum()


@tensors("second derivatives")
def second_derivative(x: Tensor) -> Tensor:
    weight = leaf(3)
    (first,) = torch.autograd.grad((weight**3 * x).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    return second.sum() * 0.1


@tensors("anomaly mode, which raises when a gradient is not a number", once=True)
def anomaly(x: Tensor) -> float:
    weight = leaf(1)
    try:
        with torch.autograd.detect_anomaly(check_nan=True):
            (weight * (x[-1] - 3).double().sqrt()).sum().backward()
    except RuntimeError:
        return 0.5
    return 0.0


@tensors("whether gradients are finite: clip_grad_norm_(error_if_nonfinite=True)")
def nonfinite(x: Tensor) -> float:
    weight = leaf(1)
    (weight / (x[-1] - 3)).sum().backward()
    try:
        torch.nn.utils.clip_grad_norm_([weight], 1.0, error_if_nonfinite=True)
    except RuntimeError:
        return 0.5
    return 0.0
