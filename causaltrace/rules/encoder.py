"""Fused inference kernels of nn.TransformerEncoderLayer and nn.MultiheadAttention.

Both attend within ``src``/``query`` rows; the mask is bool (True: not visible) or additive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.attention import visible
from causaltrace.rules.call import OpCall, Result


def _seen(mask: Tensor | None, kind: int | None, batch: int) -> Tensor | None:
    """Visible keys as ``[batch | 1, queries | 1, keys]``. kind 0: [L, L], 1: padding [B, L], 2: [B, H, L, L]."""
    if mask is None:
        return None
    seen = ~mask if mask.dtype == torch.bool else visible(mask)
    assert seen is not None
    if kind == 1 or (kind is None and seen.shape[0] == batch and seen.ndim == 2 and seen.shape[0] != seen.shape[1]):
        return seen[:, None, :]
    return seen.any(1) if seen.ndim == 4 else seen[None] if seen.ndim == 2 else seen


def _attended(op: OpCall, query: Cells | None, keys: Cells | None, mask: Tensor | None, kind: int | None, batch: int) -> Cells | None:
    lattice = op.lattice
    seen = _seen(mask, kind, batch)
    through = lattice.reduce(keys, [1]) if seen is None else lattice.contract(seen, keys)
    masked = None if mask is None else lattice.everything(op.of(mask))
    return lattice.join(query, through, None if masked is None else lattice.reshaped(masked, (1, 1, 1)))


def _weights(op: OpCall, names: list[str], ndim: int) -> Cells | None:
    whole = op.lattice.join(*[op.lattice.everything(op.cells(n)) for n in names])
    return None if whole is None else op.lattice.reshaped(whole, (1,) * ndim)


def encoder_layer(op: OpCall) -> Result:
    """_transformer_encoder_layer_fwd: attention over the row's visible positions, all else position by position."""
    src = op.tensor("src")
    weights = [n for n, v in op.args.items() if isinstance(v, Tensor) and n not in ("src", "mask")]
    lattice = op.lattice
    row = lattice.join(lattice.reduce(op.cells("src"), [2]), _weights(op, weights, 3))
    return _attended(op, row, row, op.get("mask"), op.get("mask_type"), src.shape[0])


def multi_head(op: OpCall) -> Result:
    """_native_multi_head_attention: (out, attention weights or None)."""
    query = op.tensor("query")
    weights = ["qkv_weight", "qkv_bias", "proj_weight", "proj_bias"]
    lattice = op.lattice
    shared = _weights(op, weights, 3)
    q = lattice.join(lattice.reduce(op.cells("query"), [2]), shared)
    kv = lattice.join(lattice.reduce(lattice.join(op.cells("key"), op.cells("value")), [2]), shared)
    out = _attended(op, q, kv, op.get("mask"), op.get("mask_type"), query.shape[0])
    extra = op.out[1] if isinstance(op.out, (tuple, list)) else None
    weights_cells = None
    if isinstance(extra, Tensor) and extra.numel() and out is not None:
        whole = lattice.everything(out)
        assert whole is not None
        weights_cells = lattice.reshaped(whole, (1,) * extra.ndim)
    return [out, weights_cells]
