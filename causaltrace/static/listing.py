"""The listing of an audited graph: one line a node, with the latest label that it may depend on.

    node       makes          latest label  operation               module     line
    embedding  f32[2, 8, 16]  t             aten.embedding.default  embedding  model.py:12  x = embed(ids)
    roll       f32[2, 8, 16]  t-7 … t+1     aten.roll.default                  model.py:15  x = x.roll(-1, 1)
    sum        f32[2, 16]     7             aten.sum.dim_IntList               model.py:16  x.sum(1)

``t`` is the index of an element along the one dim along which the label differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from causaltrace.site import Site
from causaltrace.static.exported import Program
from causaltrace.stream import Streams

HEADER = ("node", "makes", "latest label", "operation", "module", "line")
#: Characters of a column before it is cut.
WIDTHS = (32, 32, 24, 40, 40, 100)


def listing(module: fx.GraphModule | Program, streams: Streams) -> str:
    """The nodes of an audited graph, those of the graphs that it calls below them."""
    rows = [HEADER, *_rows(module, streams, "")]
    cut = [[_cut(text, width) for text, width in zip(row, WIDTHS, strict=True)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    lines = ("  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) for row in cut)
    return "\n".join(line.rstrip() for line in lines)


def _rows(module: fx.GraphModule | Program, streams: Streams, indent: str) -> Iterator[tuple[str, ...]]:
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        inner = getattr(module, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(inner, (fx.GraphModule, Program)):
            yield (f"{indent}{node.name}:", "", "", "", "", "")
            yield from _rows(inner, streams, indent + "  ")
            continue
        site: Site | None = node.meta.get("site")
        support = node.meta.get("support")
        yield (
            indent + node.name,
            node.meta.get("makes", ""),
            ", ".join(
                latest(t, streams)
                for t in (support if isinstance(support, list) else [support])
                if t is not None
            ),
            _operation(node),
            "" if site is None else site.module,
            "" if site is None or not site.line else f"{Path(site.file).name}:{site.line}  {site.source}",
        )


def _operation(node: fx.Node) -> str:
    if node.op == "call_module":
        assert isinstance(node.graph.owning_module, nn.Module)
        return type(node.graph.owning_module.get_submodule(str(node.target))).__name__
    if node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload):
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target) if node.op.startswith("call") else node.op


def latest(support: Tensor, streams: Streams) -> str:
    """The latest label of each element in short: ``t+1`` says that element t depends on label t + 1."""
    if not bool((support >= 0).any()):
        return "none"
    row, local = _located(support, streams)
    known = local[support >= 0]
    where = [d for d in range(local.ndim) if bool((local != local.narrow(d, 0, 1)).any())]
    if len(where) == 1:
        index = _indices(local, where[0], streams)[1]
        text = _span((local - index)[support >= 0], "t")
    else:
        text = _span(known, "")
    if len(streams.streams) == 1 or any(
        bool(((row == _indices(row, d, streams)[0]) | (support < 0)).all()) for d in range(row.ndim)
    ):
        return text
    rows = _span(row[support >= 0], "")
    return f"{text} of row{'' if rows.isdigit() else 's'} {rows}"


def _located(positions: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
    """The row that each position is in, and its place in the row; -1: none."""
    offsets = torch.tensor([s.offset for s in streams.streams])
    row = torch.bucketize(positions, offsets, right=True) - 1
    return row, torch.where(positions >= 0, positions - offsets[row.clamp(min=0)], -1)


def _indices(like: Tensor, dim: int, streams: Streams) -> tuple[Tensor, Tensor]:
    """The row and the place in it that an index along ``dim`` stands for: all rows may be in one dim."""
    index = torch.arange(like.shape[dim])
    row, local = _located(index, streams) if len(index) == streams.size else (index, index)
    shape = [-1 if d == dim else 1 for d in range(like.ndim)]
    return row.view(shape), local.view(shape)


def _span(numbers: Tensor, base: str) -> str:
    low, high = (int(n) for n in torch.aminmax(numbers))
    texts = [str(n) if not base else base if not n else f"{base}{n:+d}" for n in (low, high)]
    return texts[0] if low == high else " … ".join(texts)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
