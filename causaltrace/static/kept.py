"""What an audit must not leave behind: gradients, caches and optimizer states made of fake tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from causaltrace.static.tracer import Static


@contextlib.contextmanager
def kept(tracer: Static, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules, gradients and optimizers back as they were; parameters of modules have no values."""
    saved: dict[int, tuple[nn.Module, dict[str, Any], dict[str, Tensor | None]]] = {}
    grads: dict[int, tuple[Tensor, Tensor | None]] = {}
    states: dict[int, tuple[torch.optim.Optimizer, dict[Any, Any], list[Any]]] = {}

    def hold(t: Tensor) -> None:
        grads.setdefault(id(t), (t, t.grad))

    def meet(module: nn.Module, *_: Any) -> None:
        for m in module.modules():
            if id(m) in saved:
                continue
            saved[id(m)] = m, dict(vars(m)), dict(m._buffers)
            own = [p for p in m._parameters.values() if p is not None]
            tracer.weights(own)
            for p in own:
                hold(p)

    def step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if id(optimizer) not in states:
            groups = [dict(g) for g in optimizer.param_groups]
            states[id(optimizer)] = optimizer, {k: dict(v) for k, v in optimizer.state.items()}, groups
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
        for module, attributes, buffers in saved.values():
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        for t, grad in grads.values():
            t.grad = grad
        for optimizer, state, groups in states.values():
            optimizer.state.clear()
            optimizer.state.update(state)
            for group, old in zip(optimizer.param_groups, groups, strict=True):
                group.update(old)
