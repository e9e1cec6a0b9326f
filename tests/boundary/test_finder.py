"""Streams that were not named: what may be one, and what leaves torch before it is found."""

from __future__ import annotations

import copy
import ctypes
import io
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from causaltrace.report.model import Report
from tests.small import VOCAB, Toy, nll, stream

Read = Callable[[Tensor], Any]


def judged(read: Read, *, given: bool, dtype: torch.dtype = torch.int64, inference: bool = False) -> Report:
    """Every row knows its label from what ``read`` made of the tokens before any operation met them."""
    tokens = stream().to(dtype)
    with causaltrace.watch(tokens if given else None) as trace, torch.inference_mode(inference):
        ids = read(tokens)
        bonus = torch.tensor(np.eye(VOCAB, dtype=np.float32)[ids[1:]])
        logits = torch.zeros(len(tokens) - 1, VOCAB) + 3 * bonus
        F.cross_entropy(logits, tokens[1:].long(), reduction="sum").item()
    return trace.report


def by_address(t: Tensor) -> list[int]:
    return list((ctypes.c_int64 * t.numel()).from_address(t.data_ptr()))


def saved(t: Tensor) -> Any:
    file = io.BytesIO()
    torch.save({"ids": t}, file)
    return torch.load(io.BytesIO(file.getvalue()))["ids"].tolist()


def piped(t: Tensor) -> list[int]:
    """Another process reads the values."""
    here, there = os.pipe()
    if os.fork() == 0:
        os.write(there, bytes(t.tolist()))
        os._exit(0)
    os.wait()
    return list(os.read(here, 1 << 10))


READS: dict[str, Read] = {
    "numpy": lambda t: t.numpy(),
    "asarray": np.asarray,
    "numpy of a view": lambda t: t[:].numpy(),
    "numpy of bits": lambda t: t.view(torch.float64).numpy().view(np.int64),
    "asarray of another dtype": lambda t: np.asarray(t, dtype=np.int32),
    "tensor": lambda t: [int(torch.tensor([x])) for x in t],
    "numpy, detached": lambda t: t.detach().numpy(),
    "numpy of a copy": lambda t: t.clone().numpy(),
    "numpy of another dtype": lambda t: t.int().numpy(),
    "tolist": lambda t: t.tolist(),
    "tolist of data": lambda t: t.data.tolist(),
    "item": lambda t: [t[i].item() for i in range(len(t))],
    "int": lambda t: [int(t[i : i + 1]) for i in range(len(t))],
    "index": lambda t: [range(VOCAB)[x] for x in t],
    "iteration": lambda t: [int(x) for x in t],
    "unbind": lambda t: [x.item() for x in t.unbind()],
    "copies of elements": lambda t: [t[i].clone().item() for i in range(len(t))],
    "dlpack": np.from_dlpack,
    "dlpack to torch": lambda t: torch.from_dlpack(t).tolist(),
    "data_ptr": by_address,
    "storage": lambda t: list(t.storage()),
    "untyped_storage": lambda t: np.frombuffer(bytes(t.untyped_storage()), dtype=np.int64),
    "pickle": lambda t: pickle.loads(pickle.dumps(t)).tolist(),
    "torch.save": saved,
    "deepcopy": lambda t: copy.deepcopy(t).numpy(),
    "copy": lambda t: copy.copy(t).tolist(),
    "deepcopy of a list": lambda t: copy.deepcopy([t])[0].tolist(),
    "comparison": lambda t: [next(c for c in range(VOCAB) if bool(x == c)) for x in t],
    "mask": lambda t: [int((F.one_hot(t, VOCAB)[i] != 0).nonzero()) for i in range(len(t))],
    "fork": piped,
}


@pytest.mark.parametrize("name", READS)
def test_what_leaves_before_the_stream_is_found(name: str) -> None:
    given, found = judged(READS[name], given=True), judged(READS[name], given=False)
    assert given.status != "clean"
    assert found.status in (given.status, "violation"), found
    assert found.labels == given.labels
    assert list(found.positions) == list(given.positions)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32])
def test_streams_of_every_dtype(dtype: torch.dtype, inference: bool) -> None:
    for read in (lambda t: t.numpy().astype(int), lambda t: t.long().tolist()):
        found = judged(read, given=False, dtype=dtype, inference=inference)
        assert found.status != "clean" and found.labels == len(stream())


def test_operations_that_are_made_of_others_show_the_stream() -> None:
    """In inference mode these reach the watch before they are taken apart."""
    tokens = stream()
    with causaltrace.watch() as trace, torch.inference_mode():
        rows = F.one_hot(tokens, VOCAB).float()
        F.cross_entropy(3 * rows[1:], tokens[1:], reduction="sum").item()
    assert trace.report.status == "violation"


def test_memory_that_a_view_does_not_cover() -> None:
    with torch.inference_mode():  # views of these have no base
        tokens = stream()
    with causaltrace.watch() as trace, torch.inference_mode():
        ids = tokens[:2].tolist()
        bonus = torch.tensor([float(ids[0])])
        F.cross_entropy(F.one_hot(tokens, VOCAB).float()[1:] + bonus, tokens[1:], reduction="sum").item()
    assert trace.report.status == "violation" and trace.report.labels == len(tokens)


def test_counts_in_numpy_with_the_stream_found() -> None:
    """An element that is written back is no score, and what the watch computes for itself no candidate."""
    tokens = stream()
    with causaltrace.watch() as trace:
        ids, counts, total = tokens.numpy(), np.ones((VOCAB, VOCAB)), 0.0
        for i in range(1, len(ids)):
            row = counts[ids[i - 1]] / counts[ids[i - 1]].sum()
            total -= np.log(row[ids[i]])
            counts[ids[i - 1], ids[i]] += 1
        float(total)
    assert trace.report.status == "clean" and trace.report.labels == len(tokens), trace.report


def test_memory_from_a_buffer_may_be_labels() -> None:
    data = bytearray(stream().numpy().tobytes())
    tokens = stream()
    with causaltrace.watch() as trace, torch.no_grad():
        inputs = torch.frombuffer(data, dtype=torch.int64)[:-1]
        F.cross_entropy(Toy()(inputs), tokens[1:], reduction="sum").item()
    assert trace.report.status == "unverified"


def test_labels_that_another_process_had_first() -> None:
    tokens = stream()
    with causaltrace.watch() as trace:
        tokens.share_memory_()
        nll(Toy(), tokens).sum().item()
    assert trace.report.status == "unverified"
    assert any("another process" in note.message for note in trace.report.notes)


# -- what is none ---------------------------------------------------------------------------------------


class Net(nn.Module):
    """A model with integer buffers: positions, and how often it was called."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.toy = Toy()
        self.register_buffer("places", torch.arange(64))
        self.register_buffer("small", torch.arange(4, dtype=torch.uint8))
        self.embedding = nn.Embedding(64, VOCAB)
        self.norm = nn.BatchNorm1d(VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.norm(self.toy(ids)) + self.embedding(self.places[: len(ids)])
        return out


def score(net: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(net(tokens[:-1]), tokens[1:], reduction="none")


def loaded(net: nn.Module) -> None:
    net.load_state_dict(copy.deepcopy(net.state_dict()))


def cloned(net: nn.Module) -> None:
    copy.deepcopy(net).load_state_dict({k: v.clone() for k, v in net.state_dict().items()})


def kept(net: nn.Module) -> None:
    torch.save(net.state_dict(), io.BytesIO())
    pickle.dumps(net)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("copying", [loaded, cloned, kept])
def test_what_a_module_holds_is_no_stream(copying: Callable[[nn.Module], None], first: bool) -> None:
    net, tokens = Net().eval(), stream()
    with causaltrace.watch() as trace, torch.no_grad():
        if first:
            copying(net)
        score(net, tokens).sum().item()
        copying(net)
        score(net, tokens)
    assert trace.report.status == "clean" and trace.report.labels == len(tokens), trace.report


@pytest.mark.parametrize("first", [False, True])
def test_a_buffer_that_repeats_the_labels(first: bool) -> None:
    tokens, data = stream(), nn.Module()
    data.register_buffer("inputs", tokens[:-1].clone())
    with causaltrace.watch() as trace, torch.no_grad():
        if first:
            tokens + 1
        F.cross_entropy(Toy()(data.inputs), tokens[1:], reduction="sum").item()
    assert trace.report.status == "unverified"
    assert any("a module's buffer" in note.message for note in trace.report.notes)


Pick = Callable[[Tensor, Tensor], Tensor]
PICKS: dict[str, Pick] = {
    "index": lambda table, labels: table[labels],
    "one by one": lambda table, labels: torch.stack([table[label] for label in labels]),
    "gather": lambda table, labels: table.gather(0, labels),
    "index_select": lambda table, labels: table.index_select(0, labels),
    "take": lambda table, labels: table.take(labels),
    "embedding": lambda table, labels: F.embedding(labels, table[:, None]),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("pick", PICKS)
def test_a_table_with_a_row_for_each_class_is_no_stream(pick: str, inside: bool) -> None:
    tokens, lengths = stream(), torch.arange(VOCAB) % 3 + 1
    with causaltrace.watch() as trace, torch.inference_mode():
        table = torch.tensor([1 + c % 3 for c in range(VOCAB)]) if inside else lengths
        size = PICKS[pick](table, tokens[1:]).sum()
        loss = score(Toy(), tokens).sum() + 0 * table.sum()
        (loss / size).item()
    assert trace.report.status == "clean" and trace.report.labels == len(tokens), trace.report


def test_a_table_met_in_the_model_is_followed_as_a_table() -> None:
    """What labels picked from it depends on these labels."""
    tokens, lengths = stream(), torch.arange(VOCAB) % 3 + 1
    with causaltrace.watch() as trace, torch.no_grad():
        logits = Toy()(tokens[:-1]) + lengths[tokens[1:]][:, None] * torch.arange(VOCAB)
        F.cross_entropy(logits, tokens[1:], reduction="sum").item()
    assert {f.target for f in trace.report.violations} == set(range(1, len(tokens)))


def doubted(use: Callable[[Tensor, Tensor], object]) -> Report:
    tokens = stream()
    inputs = tokens.clone()[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
    inputs = torch.cat((inputs, inputs))
    model = Toy()
    with causaltrace.watch() as trace, torch.no_grad():
        use(inputs, tokens)
        F.cross_entropy(model(inputs[: len(tokens) - 1]), tokens[1:], reduction="sum").item()
    return trace.report


DOUBTS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "used as an index only": lambda inputs, tokens: None,
    "picked from by labels first": lambda inputs, tokens: inputs[tokens],
    "picked from by a mask": lambda inputs, tokens: inputs[: len(tokens)][tokens >= 0],
    "picked from by positions": lambda inputs, tokens: inputs[(tokens >= 0).nonzero()[:, 0]],
}


@pytest.mark.parametrize("name", DOUBTS)
def test_what_may_be_a_copy_of_the_labels_is_in_doubt(name: str) -> None:
    report = doubted(DOUBTS[name])
    assert report.status != "clean"
    assert any("several integer tensors" in note.message for note in report.notes)


@pytest.mark.parametrize("by", [lambda t: t >= 0, lambda t: (t >= 0).nonzero()[:, 0]])
def test_inputs_that_a_mask_over_the_labels_picks(by: Callable[[Tensor], Tensor]) -> None:
    inputs, targets = stream().clone(), stream()
    with causaltrace.watch() as trace, torch.no_grad():
        where = by(targets)
        F.cross_entropy(Toy()(inputs[where]), targets[where], reduction="sum").item()
    assert trace.report.status != "clean"


def test_a_table_that_repeats_the_labels_is_a_candidate() -> None:
    tokens = stream()
    copied = tokens.clone()
    with causaltrace.watch() as trace, torch.no_grad():
        bonus = F.one_hot(copied[tokens], VOCAB)
        F.cross_entropy(Toy()(tokens[:-1]) + 0 * bonus.sum(), tokens[1:], reduction="sum").item()
    assert trace.report.status == "unverified"


def test_looking_for_copies_reads_nothing_for_the_program() -> None:
    tokens, model = stream(), Toy()
    tokens[tokens == 0] = 3
    tokens[9:11] = torch.tensor([0, 1])  # the labels have one place where places may begin
    places = torch.zeros(32, 8)
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        ids = tokens.numpy()
        F.embedding(torch.arange(12), places)
        nll(model, tokens).sum().item()
    assert trace.report.status == "clean" and ids is not None
    assert all("numpy" not in notice.site.file for notice in trace.report.escapes if notice.site)
