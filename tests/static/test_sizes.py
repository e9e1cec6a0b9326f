"""Exported programs with dynamic shapes, in memory and as files, at more sizes than that of the export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from causaltrace.report.model import Report

Dim, AUTO = torch.export.Dim, torch.export.Dim.AUTO


class Net(nn.Module):
    """Embedding, a mixing of positions, head."""

    def __init__(self, mix: Callable[..., Tensor]) -> None:
        super().__init__()
        self.embedding, self.head, self.mix = nn.Embedding(11, 8), nn.Linear(8, 11), mix

    def forward(self, ids: Tensor, *more: Any) -> Tensor:
        return self.head(self.mix(self.embedding(ids), *more))


def ids(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


def causal(x: Tensor) -> Tensor:
    return x.cumsum(-2)


def export(net: nn.Module, *args: Any, **dims: Any) -> torch.export.ExportedProgram:
    return torch.export.export(net, args, **dims)


def both(program: torch.export.ExportedProgram, folder: Path) -> Iterator[Any]:
    """The program, and a file of it."""
    yield program
    torch.export.save(program, folder / "net.pt2")
    yield folder / "net.pt2"


def proved(report: Report) -> str:
    (note,) = [n.message for n in report.notes if n.kind == "CT097"]
    return note


def noted(report: Report) -> str:
    return "\n".join(n.message for n in report.notes if n.kind == "CT095")


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 8), nn.Embedding(64, 8)
        self.mixed, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        x = self.tokens(ids) + self.places(torch.arange(length))
        q, k, v = (y.view(batch, length, 2, 4).transpose(1, 2) for y in self.mixed(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.out(y.transpose(1, 2).reshape(batch, length, 8)))


def test_a_causal_model_is_clean_at_several_sizes(tmp_path: Path) -> None:
    dims = ({0: AUTO, 1: Dim("length", min=2, max=64)},)
    for target in both(export(GPT(), ids(2, 8), dynamic_shapes=dims), tmp_path):
        report = causaltrace.audit(target)
        assert report.status == "clean" and len(report.positions) == 14
        assert (
            "for any weights and tokens at (ids.shape[0], ids.shape[1]) = (2, 8), (3, 2), (5, 64), (13, 11), "
            "of (2 and more, 2 … 64)"
        ) in proved(report)
        assert "i64[2, 8]" in report.listing
        assert causaltrace.audit(target, ids(1, 16)).positions == list(range(1, 16))


def short(x: Tensor) -> Tensor:
    """Reaches ahead where there are less than 6."""
    n = x.shape[1]
    late = torch.arange(n)[:, None] >= torch.arange(n) - torch.clamp(6 - torch.full((), n), min=0)
    return late.to(x.dtype) @ x


def only_long(x: Tensor) -> Tensor:
    n = x.shape[1]
    late = torch.arange(n)[:, None] >= torch.arange(n) - (torch.arange(n) >= 16).long()
    return late.to(x.dtype) @ x


@pytest.mark.parametrize(
    ("mix", "sizes", "others"), [(only_long, "17", "2, 8, 13"), (short, "2", "8, 13, 17")]
)
def test_a_leak_at_another_size(mix: Any, sizes: str, others: str, tmp_path: Path) -> None:
    for target in both(export(Net(mix), ids(2, 8), dynamic_shapes=({1: AUTO},)), tmp_path):
        report = causaltrace.audit(target)
        assert report.status == "violation"
        assert f"ids.shape[1]: violation at {sizes}, clean at {others}" in noted(report)
        assert report.orders == {"stream": "violation", "scored": "violation"}
        assert report.conditions["C1"] == "fail"
        assert report.labels == 2 * int(sizes) and report.listing.count("[2, 8") > 2
        assert causaltrace.audit(target, ids(2, 8)).status == "clean"
