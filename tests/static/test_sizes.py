"""Exported programs with dynamic shapes, in memory and as files, at more sizes than that of the export."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from causaltrace.report.json import from_json
from causaltrace.report.model import Report
from causaltrace.static.sizes import Size, Sizes
from tests.static.test_archive import rewritten

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
            "for any weights and tokens at (ids.shape[0], ids.shape[1]) = (2, 8), (2, 64), (3, 2), (13, 11), "
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


def ahead(x: Tensor) -> Tensor:
    return x.roll(-1, 1)


def test_findings_of_several_sizes_are_one(tmp_path: Path) -> None:
    for target in both(export(Net(ahead), ids(2, 8), dynamic_shapes=({1: AUTO},)), tmp_path):
        report, alone = causaltrace.audit(target), causaltrace.audit(target, ids(2, 8))
        assert report.violations == alone.violations and not noted(report)
        assert "ids.shape[1] = 2, 8, 13, 17" in proved(report)


def test_a_finding_of_another_size_is_added() -> None:
    """Each size has a leak of its own: what is not there at the first one is named with its size."""

    def two(x: Tensor) -> Tensor:
        n = x.shape[1]
        first, last = torch.arange(n)[:, None] < 1, torch.arange(n) == n - 1
        x = causal(x) + (first & last & (torch.full((), n) < 6)).to(x.dtype) @ x
        return x + (first & last & (torch.full((), n) >= 16)).to(x.dtype) @ x

    report = causaltrace.audit(export(Net(two), ids(1, 8), dynamic_shapes=({1: AUTO},)))
    assert "violation at 2, 17, clean at 8, 13; positions and paths are those at 2" in noted(report)
    assert [(f.stream, f.source) for f in report.violations] == [("ids", 1), ("ids at 17", 16)]
    for text in (report.to_text(), report.to_markdown(), report.to_html(), report.to_sarif()):
        assert "ids at 17:" in text
    assert from_json(report.to_json()) == report


def test_inputs_with_a_symbol_in_common_have_one_size(tmp_path: Path) -> None:
    def masked(x: Tensor, mask: Tensor) -> Tensor:
        return causal(x * mask[..., None])

    dims = {"ids": {1: AUTO}, "more": ({1: AUTO},)}
    for target in both(export(Net(masked), ids(2, 8), torch.ones(2, 8), dynamic_shapes=dims), tmp_path):
        assert "at ids.shape[1] = 2, 8, 13, 17, of 2 and more" in proved(causaltrace.audit(target))
        one = causaltrace.audit(target, ids(2, 5))  # the mask follows
        assert one.status == "clean" and "of these shapes" in proved(one) and one.labels == 10


def test_sizes_made_of_others(tmp_path: Path) -> None:
    def continued(x: Tensor, past: Tensor, mask: Tensor) -> Tensor:
        return (torch.cat((past, x), 1) * mask[..., None]).cumsum(1)[:, past.shape[1] :]

    def chunks(x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 4)).cumsum(2).flatten(1, 2)

    dims: Any = {"ids": {1: AUTO}, "more": ({1: AUTO}, {1: AUTO})}
    example = (ids(2, 8), torch.ones(2, 5, 8), torch.ones(2, 13))
    for target in both(export(Net(continued), *example, dynamic_shapes=dims), tmp_path):
        note = proved(causaltrace.audit(target))
        assert "(ids.shape[1], more_0.shape[1]) = (2, 3), (8, 5), (13, 11), (17, 11), of" in note
    dims = ({1: 4 * Dim("blocks", min=1, max=100)},)
    for target in both(export(Net(chunks), ids(2, 8), dynamic_shapes=dims), tmp_path):
        assert "at ids.shape[1] = 8, 52, 400, of" in proved(causaltrace.audit(target))


def test_numbers_stay_as_they_are(tmp_path: Path) -> None:
    def scaled(x: Tensor, n: int) -> Tensor:
        return causal(x) * n

    dims: Any = {"ids": {1: AUTO}, "more": (AUTO,)}
    for target in both(export(Net(scaled), ids(2, 8), 3, dynamic_shapes=dims), tmp_path):
        assert "at ids.shape[1] = 2, 8, 13, 17, of" in proved(causaltrace.audit(target))


def test_sizes_that_the_program_cannot_have_are_named(tmp_path: Path) -> None:
    class Table(Net):
        def __init__(self) -> None:
            super().__init__(causal)
            self.register_buffer("past", torch.ones(12, 12).tril())

        def forward(self, ids: Tensor, *more: Any) -> Tensor:
            at = torch.arange(ids.shape[1])
            return self.head(self.past[at][:, at] @ self.embedding(ids))

    for target in both(export(Table(), ids(2, 8), dynamic_shapes=({1: AUTO},)), tmp_path):
        report = causaltrace.audit(target)
        assert report.status == "clean"
        assert "at ids.shape[1] = 2, 8, 9, of 2 and more; not at 13, 17, 16 (" in proved(report)
        assert "out of bounds for dimension 0 with size 12)" in proved(report)


def test_sizes_that_an_export_denies_are_named(tmp_path: Path) -> None:
    def even(x: Tensor) -> Tensor:
        return causal(x) if x.shape[1] % 2 == 0 else ahead(x)

    def wide(x: Tensor) -> Tensor:
        torch._check(x.shape[1] >= 2 * x.shape[0])
        return causal(x)

    for target in both(export(Net(even), ids(2, 8), dynamic_shapes=({1: AUTO},)), tmp_path):
        note = proved(causaltrace.audit(target))
        assert "at ids.shape[1] = 2, 8, 16, of 2 and more; not at 13, 17 (the export asks for" in note
        assert "ids.shape[1] % 2 == 0" in note
    for target in both(export(Net(wide), ids(2, 8), dynamic_shapes=({0: AUTO, 1: AUTO},)), tmp_path):
        assert "= (2, 4), (2, 8), (5, 17), of" in proved(causaltrace.audit(target))


def test_shapes_that_are_fixed(tmp_path: Path) -> None:
    def fixed(x: Tensor) -> Tensor:
        return causal(x.view(2, 8, 8))

    for target in both(export(Net(fixed), ids(2, 8), dynamic_shapes=({0: AUTO, 1: AUTO},)), tmp_path):
        report = causaltrace.audit(target)
        assert report.status == "clean" and proved(report).endswith("of these shapes")


def edited(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def change_all(data: bytes) -> bytes:
        model = json.loads(data)
        change(model)
        return json.dumps(model).encode()

    return change_all


def test_a_program_that_runs_at_one_size_only(tmp_path: Path) -> None:
    path = list(both(export(GPT(), ids(2, 8), dynamic_shapes=({1: AUTO},)), tmp_path))[1]

    def specialised(model: Any) -> None:
        for node in model["graph_module"]["graph"]["nodes"]:
            if node["target"] == "torch.ops.aten.arange.default":
                node["inputs"][0]["arg"] = {"as_int": 8}

    rewritten(path, edited(specialised))
    report = causaltrace.audit(path)
    assert report.status == "clean"
    assert "at ids.shape[1] = 8 only, of 2 and more; not at" in proved(report)


BAD: tuple[Any, ...] = (
    {"min_val": "2", "max_val": None},
    {"min_val": True, "max_val": None},
    {"min_val": 9, "max_val": 4},
    {"min_val": 9, "max_val": None},
    {"min_val": 2, "max_val": 7},
    [2, 7],
    None,
)


@pytest.mark.parametrize("bounds", BAD)
def test_ranges_that_are_none(bounds: Any, tmp_path: Path) -> None:
    path = list(both(export(Net(causal), ids(2, 8), dynamic_shapes=({1: AUTO},)), tmp_path))[1]
    rewritten(
        path, edited(lambda m: m["range_constraints"].update(dict.fromkeys(m["range_constraints"], bounds)))
    )
    with pytest.raises(causaltrace.AuditError, match=r"is no range of sizes|its range does not allow"):
        causaltrace.audit(path)


HARM = "__import__('pathlib').Path('HARM').touch()"
UNREAD = (HARM, f"s1.{HARM}", "s0**2", "Max(", "-" * 3000 + "1", "(" * 300, "9" * 300, "lambda: 8", "")


@pytest.mark.parametrize("text", UNREAD)
def test_expressions_of_a_file_are_no_code(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be worked out stays as it is, and the report says so."""
    monkeypatch.chdir(tmp_path)
    path = list(both(export(Net(ahead), ids(2, 8), dynamic_shapes=({1: AUTO},)), tmp_path))[1]

    def size(model: Any) -> None:
        for value in model["graph_module"]["graph"]["tensor_values"]["ids"]["sizes"]:
            if "as_expr" in value:
                value["as_expr"]["expr_str"] = text

    def guard(model: Any) -> None:
        model["guards_code"] = [f"L['ids'].size()[1] == {text}"]

    for change in (size, guard):
        rewritten(path, edited(change))
        report = causaltrace.audit(path)
        assert report.labels == 16 and "of these shapes" in proved(report)
        assert "stay" in proved(report) or not text
    assert not Path("HARM").exists()


def test_which_sizes_are_chosen() -> None:
    def chosen(*sizes: Size, **ranges: Any) -> list[list[list[int]]]:
        found = Sizes({"x": sizes}, ranges).trials()
        return [[list(values.values()) for values in plan] for plan in found]

    def s(hint: int, text: str = "s0") -> Size:
        return Size.read(hint, text)

    assert chosen(s(8)) == [[[2], [4]], [[13]], [[17], [16], [9]]]
    assert chosen(s(8), s0=(3, 20)) == [[[3], [4]], [[13]], [[20], [17], [16], [9]]]
    assert chosen(s(2), s0=(2, 4)) == [[[3]], [[4]]]
    assert chosen(s(4096), s0=(0, None)) == [[[2]], [[13]]]
    assert chosen(s(13)) == [[[2], [6]], [[11]], [[27], [26], [14]]]
    assert chosen(s(5), s(5, "s1"), s(10, "s0 + s1"))[0][0] == [2, 3]
    assert chosen(s(7, "2*s0 + 1")) == [[[2]], [[13]], [[7], [6], [4]]]
    found = chosen(s(4), s(128, "s1"), s0=(2, 64), s1=(2, 256))
    assert found == [[[2, 3], [2, 64]], [[13, 11]], [[5, 129]]]
    assert chosen(s(8), s(4, "8//(s0 - 6)")) == [[[13]], [[17], [16], [9]]]  # no size at 2 and 4
    assert chosen(s(2), s(1024, "*".join(["s0"] * 10))) == [[[4], [3]]]  # 13 and 5 are too large
    assert chosen(Size(4)) == []
