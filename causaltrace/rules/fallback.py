"""What to do with an op that no rule covers: say so, and assume that everything flowed."""

from __future__ import annotations

import torch

from causaltrace.rules.call import OpCall, Result


def nothing(op: OpCall) -> Result:
    """The values depend on no tensor value (factories, shapes, random numbers)."""
    return [None] * len(op.out) if isinstance(op.out, (tuple, list)) else None


def opaque(op: OpCall) -> Result:
    """Union of all inputs into all outputs and all written arguments (used on the ``possible`` plane)."""
    whole = op.lattice.join(*[op.lattice.everything(op.of(t)) for t in op.inputs()])
    if whole is None:
        return None
    return [op.lattice.reshaped(whole, (1,) * t.ndim) for t in op.outputs()]


def pointwise_tag(func: torch._ops.OpOverload) -> bool:
    """Is the op element-wise? Some ``out=`` and scalar overloads lack the tag that their siblings have."""
    if torch.Tag.pointwise in func.tags:
        return True
    packet = func.overloadpacket
    return any(torch.Tag.pointwise in getattr(packet, name).tags for name in packet.overloads())
