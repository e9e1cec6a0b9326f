"""Memory that no operation filled: uninitialised, written by address, given by a kernel's rule."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.report.model import Report
from tests.small import VOCAB, Toy, nll, stream

Bias = Callable[[Tensor, Tensor], Tensor]


def judged(bias: Bias, position: int = 20) -> Report:
    """Scores after 12 get a bias made of ``model.embedding`` of the label at ``position``."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        nll(model, tokens, 0, 13).sum().item()
        row = F.embedding(tokens[position : position + 1], model.embedding)[0]
        logits = model(tokens[12:-1])
        F.cross_entropy(logits + bias(row, logits).sum(), tokens[13:], reduction="sum").item()
    return trace.report


def kinds(report: Report) -> set[str]:
    return {n.kind for n in report.notes}


# -- unwritten --------------------------------------------------------------------------------------------

BLANKS: dict[str, Callable[[Tensor], Tensor]] = {
    "empty": lambda like: torch.empty(8),
    "empty_like": torch.empty_like,
    "new_empty": lambda like: like.new_empty(8),
    "empty_strided": lambda like: torch.empty_strided((8,), (1,)),
    "resize_": lambda like: torch.zeros(0).resize_(8),
}


@pytest.mark.parametrize("blank", BLANKS)
def test_unwritten_memory_may_hold_anything(blank: str) -> None:
    report = judged(lambda row, _: BLANKS[blank](row) * 0.5, 5)
    assert report.status == "unverified" and "CT099" in kinds(report), report
    (note,) = [n for n in report.notes if n.kind == "CT099"]
    assert note.blocking and note.site is not None and note.site.file == __file__ and note.remedy


def filled_in_pieces(t: Tensor) -> None:
    for i in range(0, 8, 2):
        t[i : i + 2] = float(i)


FILLS: dict[str, Callable[[Tensor], object]] = {
    "zero_": Tensor.zero_,
    "fill_": lambda t: t.fill_(2.0),
    "copy_": lambda t: t.copy_(torch.ones(8)),
    "copy_ of one": lambda t: t.copy_(torch.ones(())),
    "normal_": Tensor.normal_,
    "uniform_": Tensor.uniform_,
    "random_": Tensor.random_,
    "exponential_": Tensor.exponential_,
    "init": torch.nn.init.ones_,
    "out": lambda t: torch.add(torch.ones(8), 1.0, out=t),
    "cat out": lambda t: torch.cat((torch.ones(4), torch.ones(4)), out=t),
    "view": lambda t: t.view(2, 4).T.fill_(1.0),
    "pieces": filled_in_pieces,
    "data": lambda t: t.data.fill_(1.0),
    "set item": lambda t: t.__setitem__(slice(None), 1.0),
}


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("fill", FILLS)
def test_memory_that_was_filled_is_known(fill: str, blank: str) -> None:
    def bias(row: Tensor, _: Tensor) -> Tensor:
        t = BLANKS[blank](row)
        FILLS[fill](t)
        return t * 0.5

    report = judged(bias)
    assert report.status == "clean" and "CT099" not in kinds(report), report


def test_a_cache_is_filled_as_it_goes() -> None:
    """Only what was written is read."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        cache = torch.empty(24, 8)
        for i in range(23):
            cache[i] = F.embedding(tokens[i : i + 1], model.embedding)[0]
            logits = cache[: i + 1].mean(0, keepdim=True) @ model.head
            F.cross_entropy(logits, tokens[i + 1 : i + 2], reduction="sum").item()
    assert trace.report.status == "clean" and not kinds(trace.report), trace.report


def test_layers_that_are_made_inside() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        net = torch.nn.Sequential(
            torch.nn.Embedding(VOCAB, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, VOCAB)
        )
        F.cross_entropy(net(tokens[:-1]), tokens[1:], reduction="sum").item()
    assert trace.report.status == "clean" and not kinds(trace.report), trace.report


# -- written by address -----------------------------------------------------------------------------------


def moved(row: Tensor, _: Tensor) -> Tensor:
    out = torch.empty(8)
    ctypes.memmove(out.data_ptr(), row.data_ptr(), 32)
    return out * 1.0


def moved_first(row: Tensor, _: Tensor) -> Tensor:
    """The addresses are taken before the label is there."""
    source, out = torch.zeros(8), torch.zeros(8)
    addresses = out.data_ptr(), source.data_ptr()
    source.copy_(row)
    ctypes.memmove(*addresses, 32)
    return out * 1.0


def by_storage(row: Tensor, _: Tensor) -> Tensor:
    out = torch.zeros(8)
    ctypes.memmove(out.untyped_storage().data_ptr(), row.untyped_storage().data_ptr(), 32)
    return out * 1.0


def by_buffer(row: Tensor, _: Tensor) -> Tensor:
    raw = bytearray(32)
    out = torch.frombuffer(raw, dtype=torch.float32)
    raw[:] = ctypes.string_at(row.data_ptr(), 32)
    return out * 1.0


def by_alias(row: Tensor, _: Tensor) -> Tensor:
    return torch.from_dlpack(row) * 1.0


def by_late_alias(row: Tensor, _: Tensor) -> Tensor:
    """Written through one name, read through the other."""
    t = torch.zeros(8)
    other = torch.from_dlpack(t)
    t.copy_(row)
    return other * 1.0


@pytest.mark.parametrize("way", [moved, moved_first, by_storage, by_buffer, by_alias, by_late_alias])
def test_what_is_written_by_address(way: Bias) -> None:
    report = judged(way)
    assert report.status != "clean" and report.escapes, report
    legal = judged(way, 5)
    assert legal.status == "clean" and "CT099" not in kinds(legal), legal


# -- kernels ----------------------------------------------------------------------------------------------


def doubled(x: Tensor, out: Tensor) -> None:
    """A kernel in C, as it were."""
    values = (ctypes.c_float * x.numel()).from_address(x.data_ptr())
    result = (ctypes.c_float * x.numel()).from_address(out.data_ptr())
    for i in range(x.numel()):
        result[i] = 2 * values[i]


KNOWN = causaltrace.kernel_rule(lambda op: op.support("x"), writes=("out",))(doubled)


def forward(kernel: Callable[[Tensor, Tensor], None], reverse: bool) -> Report:
    """The kernel is in the forward pass."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        logits = model(tokens[:-1])
        logits = logits.flip(0).contiguous() if reverse else logits
        out = torch.empty_like(logits)
        kernel(logits, out)
        F.cross_entropy(out, tokens[1:], reduction="sum").item()
    return trace.report


def test_a_kernel_without_a_rule_is_not_proved() -> None:
    report = forward(doubled, False)
    assert report.status == "unverified" and report.escapes


def test_a_kernel_by_its_rule() -> None:
    legal = forward(KNOWN, False)
    assert legal.status == "clean" and kinds(legal) == {"CT096"}, legal
    assert all("data_ptr" not in e.message for e in legal.escapes)
    assert any(use.handled == "registered" and "doubled" in use.op for use in legal.ops)
    assert forward(KNOWN, True).status == "violation"


def test_a_number_from_a_kernel_has_left() -> None:
    @causaltrace.kernel_rule(lambda op: [])
    def largest(x: Tensor) -> float:
        return (ctypes.c_float * 8).from_address(x.data_ptr())[0]

    report = judged(lambda row, _: torch.tensor(largest(row)))
    assert report.status == "unverified" and any("largest" in e.message for e in report.escapes)


def test_kernels_outside_a_watch() -> None:
    x, out = torch.arange(3.0), torch.empty(3)
    KNOWN(x, out)
    assert out.tolist() == [0.0, 2.0, 4.0]
    with pytest.raises(ValueError, match="no argument y"):
        causaltrace.kernel_rule(lambda op: [], writes=("y",))(doubled)


IN_PARTS = {
    "a permutation": lambda x: torch.empty_like(x).index_put_((torch.arange(len(x)).flip(0),), x),
    "two halves": lambda x: _halves(x),
    "a draw with the default probability": lambda x: torch.empty_like(x).bernoulli_(0.5) + 1,
}


def _halves(x: Tensor) -> Tensor:
    out = x.new_empty(*x.shape[:-1], 2 * x.shape[-1])
    out[..., : x.shape[-1]] = x
    out[..., x.shape[-1] :] = x
    return out[..., : x.shape[-1]]


@pytest.mark.parametrize("way", IN_PARTS)
def test_memory_that_was_filled_bit_by_bit_is_written(way: str) -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        logits = IN_PARTS[way](model(tokens[:-1]))
        F.cross_entropy(logits, tokens[1:], reduction="sum").item()
    assert not any(note.kind == "CT099" for note in trace.report.notes)
    assert trace.report.status == ("violation" if way == "a permutation" else "clean")
