"""Labels in bytes: saved, pickled, copied, loaded again."""

from __future__ import annotations

import copy
import io
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import causaltrace
from tests.small import Toy, nll, stream, targets

Through = Callable[[nn.Module, Path], nn.Module]


def by_save(model: nn.Module, folder: Path) -> nn.Module:
    torch.save(model.state_dict(), folder / "m.pt")
    fresh = Toy(seed=5)
    fresh.load_state_dict(torch.load(folder / "m.pt"))
    return fresh


def by_assignment(model: nn.Module, folder: Path) -> nn.Module:
    torch.save(model.state_dict(), folder / "m.pt")
    fresh = Toy(seed=5)
    fresh.load_state_dict(torch.load(folder / "m.pt"), assign=True)
    return fresh


def by_map(model: nn.Module, folder: Path) -> nn.Module:
    torch.save(model.state_dict(), folder / "m.pt")
    fresh = Toy(seed=5)
    fresh.load_state_dict(torch.load(folder / "m.pt", mmap=True))
    return fresh


def by_whole_module(model: nn.Module, folder: Path) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # type: ignore[no-any-return]


def by_pickle(model: nn.Module, folder: Path) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # type: ignore[no-any-return]


def by_packed_pickle(model: nn.Module, folder: Path) -> nn.Module:
    state = pickle.loads(lzma.decompress(lzma.compress(pickle.dumps(model.state_dict()))))
    fresh = Toy(seed=5)
    fresh.load_state_dict(state)
    return fresh


def by_state(model: nn.Module, folder: Path) -> nn.Module:
    fresh = Toy(seed=5)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    return fresh


def by_deepcopy(model: nn.Module, folder: Path) -> nn.Module:
    return copy.deepcopy(model)


def by_old_format(model: nn.Module, folder: Path) -> nn.Module:
    torch.save(model.state_dict(), folder / "m.pt", _use_new_zipfile_serialization=False)
    fresh = Toy(seed=5)
    fresh.load_state_dict(torch.load(folder / "m.pt"))
    return fresh


def quantised(model: nn.Module, folder: Path) -> nn.Module:
    """int8 values and a scale, as compressed bytes."""
    fresh = Toy(seed=5)
    for (name, p), q in zip(model.named_parameters(), fresh.parameters(), strict=True):
        scale = p.detach().abs().max() / 127
        packed = lzma.compress((p.detach() / scale).round().to(torch.int8).numpy().tobytes())
        (folder / name).write_bytes(packed)
        raw = bytearray(lzma.decompress((folder / name).read_bytes()))
        value = torch.frombuffer(raw, dtype=torch.int8).view(p.shape).float()
        q.data.copy_(value * scale.item())
    return fresh


def as_arrays(model: nn.Module, folder: Path) -> nn.Module:
    fresh = Toy(seed=5)
    for (name, p), q in zip(model.named_parameters(), fresh.parameters(), strict=True):
        np.save(folder / f"{name}.npy", p.detach().numpy())
        q.data.copy_(torch.from_numpy(np.load(folder / f"{name}.npy")))
    return fresh


def by_torch_file(model: nn.Module, folder: Path) -> nn.Module:
    fresh = Toy(seed=5)
    for (name, p), q in zip(model.named_parameters(), fresh.parameters(), strict=True):
        (folder / name).write_bytes(bytes(p.detach().flatten().view(torch.uint8).tolist()))
        q.data.copy_(torch.from_file(str(folder / name), size=p.numel()).view(p.shape))
    return fresh


FOLLOWED = [
    by_save,
    by_assignment,
    by_map,
    by_whole_module,
    by_pickle,
    by_packed_pickle,
    by_state,
    by_deepcopy,
]
NOTICED = [by_old_format, quantised, as_arrays, by_torch_file]


def adapted(through: Through, folder: Path, start: int, stop: int) -> causaltrace.Watch:
    """Score up to 12, train on ``start:stop``, go through bytes, score the rest."""
    tokens, model = stream(), Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with causaltrace.watch(tokens) as trace:
        with torch.no_grad():
            nll(model, tokens, 0, 13).sum()
        nll(model, tokens, start, stop).mean().backward()
        optimizer.step()
        model.zero_grad()
        model = through(model, folder)  # type: ignore[assignment]
        with torch.no_grad():
            nll(model, tokens, 12).sum()
    return trace


@pytest.mark.parametrize("through", [*FOLLOWED, *NOTICED])
def test_training_on_scored_labels_is_legal(through: Through, tmp_path: Path) -> None:
    assert adapted(through, tmp_path, 0, 13).report.status == "clean"


@pytest.mark.parametrize("through", FOLLOWED)
def test_labels_are_found_behind_bytes(through: Through, tmp_path: Path) -> None:
    trace = adapted(through, tmp_path, 12, None)  # type: ignore[arg-type]
    assert trace.report.status == "violation", trace.report
    assert targets(trace, "CT003") == set(range(13, 24))
    path = trace.report.violations[0].path
    phases = [hop.site.phase for hop in path]
    assert "backward" in phases and "update" in phases, path


@pytest.mark.parametrize("through", NOTICED)
def test_other_bytes_are_never_clean(through: Through, tmp_path: Path) -> None:
    trace = adapted(through, tmp_path, 12, None)  # type: ignore[arg-type]
    assert trace.report.status == "unverified" and trace.report.escapes, trace.report


def test_the_load_is_on_the_path(tmp_path: Path) -> None:
    report = adapted(by_save, tmp_path, 12, None).report  # type: ignore[arg-type]
    ops = [hop.site.op for hop in report.violations[0].path]
    assert "load" in ops, ops


@pytest.mark.parametrize("through", [copy.deepcopy, copy.copy, lambda t: pickle.loads(pickle.dumps(t))])
def test_labels_stay_apart(through: Callable[[Tensor], Tensor]) -> None:
    """Each element of a copy has its own support."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        h = through(model(tokens[:-1]).detach())
        assert trace._tracer.memory.read(h) is not None
        nn.functional.cross_entropy(h, tokens[1:], reduction="none").sum()
    assert not trace.report.violations


def test_a_copy_of_the_stream_is_the_stream() -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        nll(model, copy.deepcopy(tokens)).sum()
    assert trace.report.status == "clean" and len(trace.report.positions) == 23


def test_bytes_that_were_changed_are_not_believed(tmp_path: Path) -> None:
    """What was saved before an update is loaded after it: the old support; other bytes: whatever had left."""
    tokens, model = stream(), Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with causaltrace.watch(tokens) as trace:
        torch.save(model.state_dict(), tmp_path / "m.pt")
        nll(model, tokens, 12).mean().backward()
        optimizer.step()
        model.load_state_dict(torch.load(tmp_path / "m.pt"))
        with torch.no_grad():
            nll(model, tokens).sum()
    assert trace.report.status == "clean", trace.report


def test_optimizers_are_copied_with_their_state() -> None:
    tokens, model = stream(), Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with causaltrace.watch(tokens) as trace:
        nll(model, tokens, 12).mean().backward()
        optimizer.step()
        fresh = Toy()
        second = torch.optim.AdamW(fresh.parameters(), lr=0.1)
        second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for p in fresh.parameters():
            p.grad = torch.zeros_like(p)
        second.step()
        with torch.no_grad():
            nll(fresh, tokens).sum()
    assert trace.report.status == "violation"


def test_bits_are_the_same(tmp_path: Path) -> None:
    def state() -> dict[str, Any]:
        model = by_deepcopy(by_pickle(by_save(Toy(), tmp_path), tmp_path), tmp_path)
        return model.state_dict()

    plain = state()
    with causaltrace.watch(stream()):
        seen = state()
    assert all(torch.equal(plain[name], seen[name]) for name in plain)
