"""What scripted functions do that no operation tells of: lists, texts, files, and kernels that run several
operations."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.report.model import Report

Reading = Callable[[Tensor], Any]


def run(reading: Reading, ahead: int) -> Report:
    """Scores, one by one; each depends on what ``reading`` makes of labels up to ``ahead`` of its own."""
    tokens = torch.tensor([3, 1, 4, 1, 5, 2, 6, 0, 3, 5, 2, 1])
    weights = torch.randn(7, 7)
    with causaltrace.watch(tokens) as trace:
        for t in range(4, 9):
            hint = reading(tokens[t - 4 + ahead : t + ahead])
            F.cross_entropy(weights[tokens[t - 1 : t]] + hint * torch.arange(7), tokens[t : t + 1]).item()
    return trace.report


def listed(x: Tensor) -> list[int]:
    found: list[int] = x.tolist()
    return found


def made_again(x: Tensor) -> Tensor:
    found: list[int] = x.tolist()
    return torch.tensor(found)


def text(x: Tensor) -> str:
    return str(x)


def formatted(x: Tensor) -> str:
    return f"{x} {x.size(0)}"


def percent(x: Tensor) -> str:
    return "%s" % x  # noqa: UP031


def printed(x: Tensor) -> int:
    print(x)
    return 0


def saved(x: Tensor, path: str) -> int:
    torch.save(x, path)
    return 0


def in_a_branch(x: Tensor, n: int) -> str:
    if n > 2:
        for _ in range(n):
            return str(x)
    return ""


def raising(x: Tensor) -> Tensor:
    if int(x.sum()) > 0:
        raise ValueError(str(x))
    return x


def steady(x: Tensor) -> Tensor:
    assert x.size(0) > 2, str(x)
    print("now", x.size(0), 3)
    return (x * torch.tensor([1, 2, 3, 4]) + torch.tensor([1.0, 2.0])[0]).sum()


def blank(x: Tensor) -> Tensor:
    return torch.empty(4) * 0 + torch.empty(4)


class Keeping(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(4, dtype=torch.long))
        self.other = torch.zeros(4, dtype=torch.long)

    def forward(self, x: Tensor) -> int:
        self.other.copy_(x)
        return 0

    @torch.jit.export
    def listed(self) -> list[int]:
        found: list[int] = self.other.tolist()
        return found


class Around(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Keeping()

    def forward(self, x: Tensor) -> int:
        return int(self.inner(x))


@pytest.fixture(autouse=True)
def no_advice() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of newer versions, to export instead
        yield


def scripted(fn: Any) -> Any:
    return torch.jit.script(fn)


def caught(x: Tensor) -> int:
    try:
        return int(scripted(raising)(x).sum())
    except torch.jit.Error as error:
        return len(str(error))


def kept(x: Tensor) -> int:
    module = scripted(Keeping())
    module(x)
    return int(module.listed()[0])


def module_saved(x: Tensor) -> int:
    module, file = scripted(Around()), io.BytesIO()
    module(x)
    torch.jit.save(module, file)
    return len(file.getvalue()) + len(module.save_to_buffer())


def file_saved(x: Tensor, at: Path) -> int:
    scripted(saved)(x, str(at / "x.pt"))
    return int(torch.load(at / "x.pt").sum())


def module_file(x: Tensor, at: Path) -> int:
    module = scripted(Around())
    module(x)
    module.save(str(at / "m.pt"))
    return len((at / "m.pt").read_bytes())


WAYS: dict[str, Callable[..., Any]] = {
    "tolist": lambda x: scripted(listed)(x)[0],
    "a tensor of a list": lambda x: scripted(made_again)(x)[0],
    "str": lambda x: len(scripted(text)(x)),
    "format": lambda x: len(scripted(formatted)(x)),
    "percent": lambda x: len(scripted(percent)(x)),
    "print": lambda x: scripted(printed)(x),
    "in a branch": lambda x: len(scripted(in_a_branch)(x, 3)),
    "an error": caught,
    "what a module keeps": kept,
    "a module in a buffer": module_saved,
    "torch.save": file_saved,
    "a module in a file": module_file,
}


def reading(name: str, at: Path) -> Reading:
    way = WAYS[name]
    return (lambda x: way(x, at)) if way in (file_saved, module_file) else way


@pytest.mark.parametrize("name", WAYS)
def test_what_leaves_is_told(name: str, tmp_path: Path) -> None:
    report = run(reading(name, tmp_path), ahead=1)
    assert report.status == "unverified" and any(
        "TorchScript" in e.message or "jit.save" in e.message for e in report.escapes
    )


@pytest.mark.parametrize("name", WAYS)
def test_what_was_scored_may_leave(name: str, tmp_path: Path) -> None:
    assert run(reading(name, tmp_path), ahead=0).status == "clean"


def test_what_is_no_value_of_a_tensor_is_not_told() -> None:
    function = scripted(steady)
    report = run(function, ahead=0)
    assert report.status == "clean" and not any("TorchScript" in e.message for e in report.escapes)
    assert run(function, ahead=1).status == "violation"


def test_memory_that_a_function_does_not_fill_is_still_unwritten() -> None:
    function = scripted(blank)
    assert run(lambda x: function(x).sum(), ahead=0).status == "unverified"


@pytest.fixture
def fused() -> Iterator[Callable[[Tensor], Tensor]]:
    """A function of which torch has made one kernel."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("nothing fuses on this CPU")
    torch.jit.enable_onednn_fusion(True)
    layer = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 1), torch.nn.ReLU()).eval()
    x = torch.ones(1, 1, 4)
    with torch.no_grad():
        module = torch.jit.freeze(torch.jit.trace(layer, (x,)))
        for _ in range(4):
            module(x)
    yield lambda x: module(x.float().view(1, 1, 4)).sum()
    torch.jit.enable_onednn_fusion(False)


def test_operations_are_not_fused_in_a_watch(fused: Callable[[Tensor], Tensor]) -> None:
    with torch.no_grad():
        assert run(fused, ahead=0).status == "clean"
        assert run(fused, ahead=1).status == "violation"


def test_everything_is_as_it_was() -> None:
    kinds = (torch._C.ScriptFunction, torch._C.ScriptMethod, torch._C.ScriptModule)
    before = [dict(vars(kind)) for kind in kinds]
    optimized = torch._C._get_graph_executor_optimize()
    run(WAYS["tolist"], ahead=0)
    assert [dict(vars(kind)) for kind in kinds] == before
    assert torch._C._get_graph_executor_optimize() == optimized
