"""Fused inference kernels of nn.TransformerEncoderLayer and nn.MultiheadAttention.

Position i of a batch row: S(x_i) | S(mask_i) | union of S(x_j) over the positions j that i sees | S(weights).
"""

from __future__ import annotations

from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result

#: ``mask_type`` of a key padding mask ``[B, L]``; 0 is ``[L, L]``, 2 is ``[B, H, L, L]``.
PADDING = 1


def _attended(op: OpCall, query: Cells | None, keys: Cells | None) -> Cells | None:
    """Rows ``[B, L, 1]`` after attention. The kernels make the mask a bool: whatever is not 0 is hidden."""
    lattice = op.lattice
    mask = op.get("mask")
    if not isinstance(mask, Tensor):
        return lattice.join(query, lattice.reduce(keys, [1]))
    seen, masked = mask == 0, op.of(mask)
    if mask.ndim == 4:
        seen = seen.any(1)
        masked = lattice.reduce(masked, [1], keepdim=False)
    elif op.get("mask_type") == PADDING:
        seen = seen.unsqueeze(1)
        masked = None if masked is None else lattice.unsqueeze(masked, 1)
    masked = None if masked is None else lattice.reduce(masked, [len(masked.dims) - 1])
    return lattice.join(query, lattice.contract(seen, keys), masked)


def _weights(op: OpCall, *others: str) -> Cells | None:
    """All parameters, as one value for a result of three dims."""
    weights = [v for n, v in op.args.items() if isinstance(v, Tensor) and n not in (*others, "mask")]
    return op.lattice.join(*[op.lattice.everything(op.of(w), 3) for w in weights])


def encoder_layer(op: OpCall) -> Result:
    """_transformer_encoder_layer_fwd: all but the attention is position by position."""
    row = op.lattice.join(op.lattice.reduce(op.cells("src"), [2]), _weights(op, "src"))
    return _attended(op, row, row)


def multi_head(op: OpCall) -> Result:
    """_native_multi_head_attention: (out, attention weights ``[B, L, L]`` or ``[B, H, L, L]`` or None)."""
    lattice = op.lattice
    shared = _weights(op, "query", "key", "value")
    query = lattice.join(lattice.reduce(op.cells("query"), [2]), shared)
    keys = lattice.join(lattice.reduce(lattice.join(op.cells("key"), op.cells("value")), [2]), shared)
    out = _attended(op, query, keys)
    weights = op.out[1]
    if not isinstance(weights, Tensor) or out is None:
        return [out, None]
    return [out, out if weights.ndim == 3 else lattice.unsqueeze(out, 1) if weights.ndim == 4 else None]
