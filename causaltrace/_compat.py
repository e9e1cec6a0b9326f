"""Private torch names, in one place. Each has a contract test in ``tests/test_compat.py``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

#: The Python object of a tensor's storage: the same for all views, alive as long as any owner is.
storage_of = torch._C.TensorBase.untyped_storage


#: The autograd node that is running; None outside a backward pass.
current_node = torch._C._current_autograd_node

#: What ``torch.library.custom_op`` makes; ``_opoverload`` is its operator.
CustomOp = CustomOpDef


def has_composite_kernel(func: torch._ops.OpOverload) -> bool:
    """Would autograd have decomposed this op before it reached the dispatch mode?"""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return func.has_kernel_for_dispatch_key(key)


def is_fake(t: Tensor) -> bool:
    """A tensor without values (FakeTensor, FunctionalTensor, meta)."""
    kind = type(t)
    return kind is not Tensor and kind is not torch.nn.Parameter and hasattr(t, "fake_mode") or t.is_meta
