"""What an audit must not leave behind: gradients, caches and optimizer states made of fake tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from causaltrace.static.tracer import Static


@contextlib.contextmanager
def kept(tracer: Static, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules, gradients and optimizers back as they were; parameters of modules have no values."""
    # what the program makes and drops is not held: it would seem to survive
    saved: WeakKeyDictionary[nn.Module, tuple[dict[str, Any], dict[str, Tensor | None]]] = WeakKeyDictionary()
    grads = WeakTensorKeyDictionary()
    states: WeakKeyDictionary[torch.optim.Optimizer, tuple[dict[Any, Any], list[Any]]] = WeakKeyDictionary()

    def hold(t: Tensor) -> None:
        if t not in grads:
            grads[t] = t.grad

    def meet(module: nn.Module, *_: Any) -> None:
        for m in module.modules():
            if m in saved:
                continue
            saved[m] = dict(vars(m)), dict(m._buffers)
            own = [p for p in m._parameters.values() if p is not None]
            tracer.weights(own)
            for p in own:
                hold(p)

    def step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if optimizer not in states:
            groups = [dict(g) for g in optimizer.param_groups]
            states[optimizer] = {k: dict(v) for k, v in optimizer.state.items()}, groups
            for group in optimizer.param_groups:
                for p in group["params"]:
                    hold(p)

    for module in modules:
        meet(module)
    hooks = (register_module_forward_pre_hook(meet), register_optimizer_step_pre_hook(step))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, (attributes, buffers) in saved.items():
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        for t, grad in grads.items():
            t.grad = grad
        for optimizer, (state, groups) in states.items():
            optimizer.state.clear()
            optimizer.state.update(state)
            for group, old in zip(optimizer.param_groups, groups, strict=True):
                group.update(old)
