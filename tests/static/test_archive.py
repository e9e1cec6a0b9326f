"""Graphs, exported programs and ``.pt2`` files, also ones that mean harm."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from typer.testing import CliRunner

import causaltrace
from causaltrace.cli import app


class Net(nn.Module):
    def __init__(self, ahead: bool) -> None:
        super().__init__()
        self.embedding, self.head, self.ahead = nn.Embedding(11, 8), nn.Linear(8, 11), ahead
        self.register_buffer("past", torch.ones(16, 16).tril())

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        n = input_ids.shape[1]
        mixed = self.past[:n, :n] @ x
        return {"logits": self.head(mixed), "other": self.head(x.roll(-1, 1) if self.ahead else x)}


IDS = torch.zeros(2, 8, dtype=torch.long)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Net(True), (IDS,)), path)
    return path


def test_a_program_and_its_file(saved: Path) -> None:
    program = torch.export.export(Net(True), (IDS,))
    for target in (program, saved, str(saved)):
        assert causaltrace.audit(target).status == "clean"
        assert "constants: float32 [8, 8] at test_archive.py:" in causaltrace.audit(target).notes[0].message
        leak = causaltrace.audit(target, labels="input_ids", scores="other")
        assert leak.status == "violation"
        hop = leak.violations[0].path[0]
        assert hop.site.file == __file__ and "self.embedding(input_ids)" in hop.site.source
        assert hop.site.module == "embedding"


def test_other_sizes(tmp_path: Path) -> None:
    auto = torch.export.Dim.AUTO
    program = torch.export.export(Net(True), (IDS,), dynamic_shapes=({0: auto, 1: auto},))
    torch.export.save(program, tmp_path / "net.pt2")
    for target in (program, tmp_path / "net.pt2"):
        assert len(causaltrace.audit(target).positions) == 14
        assert len(causaltrace.audit(target, torch.zeros(1, 16, dtype=torch.long)).positions) == 15


def test_nodes_of_a_graph_get_supports() -> None:
    net = Net(True)
    graph = make_fx(lambda ids: net(ids)["logits"])(IDS)
    assert causaltrace.audit(graph, IDS).status == "clean"
    supports = {n.name: n.meta.get("support") for n in graph.graph.nodes}
    assert supports["embedding"].shape == (2, 8, 1)
    assert supports["bmm"][0, :, 0].tolist() == list(range(8))
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11)))
    assert causaltrace.audit(traced, IDS).status == "clean"


def test_the_listing_of_a_graph(saved: Path) -> None:
    for target in (saved, torch.export.export(Net(True), (IDS,))):
        rows = causaltrace.audit(target).listing.splitlines()
        found = {cells[0]: cells[1:] for cells in (re.split("  +", row) for row in rows)}
        assert found["input_ids"][:3] == ["i64[2, 8]", "t", "placeholder"]
        assert found["embedding"][:4] == ["f32[2, 8, 8]", "t", "aten.embedding.default", "embedding"]
        assert re.fullmatch(r"test_archive\.py:\d+", found["embedding"][4])
        assert found["embedding"][5] == "x = self.embedding(input_ids)"
        assert found["roll"][1] == "t-7 … t+1" and found["slice_1"][1] == "none"
        assert "output" not in found and len({row.index("f32") for row in rows if "f32" in row}) == 1
    assert causaltrace.audit(Net(True), IDS).listing == ""


def test_latest_labels_in_short() -> None:
    graph = make_fx(
        lambda ids: (ids.sum(1), ids.sum(0), ids.view(-1).roll(8), ids[0].max(0), ids[..., None].float())
    )(IDS)
    rows = causaltrace.audit(graph, IDS, scores=4).listing.splitlines()[2:]
    assert [re.split("  +", row)[2] for row in rows] == [
        "7", "t of row 1", "t", "t of rows 0 … 1", "t of row 0", "7 of row 0, 7 of row 0", "7 of row 0",
        "7 of row 0", "t", "t"
    ]  # fmt: skip


def rewritten(path: Path, change: Callable[[Any], Any], name: str = "models/model.json") -> None:
    """The file with one member changed."""
    with zipfile.ZipFile(path) as old:
        members = {n: old.read(n) for n in old.namelist()}
    key = next(n for n in members if n.endswith(name))
    members[key] = change(members[key])
    with zipfile.ZipFile(path, "w") as new:
        for n, data in members.items():
            new.writestr(n, data)


def calling(target: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        module = json.loads(data)
        module["graph_module"]["graph"]["nodes"][0]["target"] = target
        return json.dumps(module).encode()

    return change


FOREIGN = (
    "torch.hub.load",
    "torch.load",
    "os.system",
    "_operator.attrgetter",
    "torch.ops.aten.from_file.default",
    "torch.ops.higher_order.flex_attention",
    "torch.ops.higher_order.__class__",
    "torch.ops.aten.no_such.default",
    "#mine:thing",
)


def test_names_of_a_file_are_no_code(saved: Path, tmp_path: Path) -> None:
    """Torch makes Python code of graphs, with the names in it."""
    harm = f"open({str(tmp_path / 'harm')!r}, 'w')"

    def keyword(data: bytes) -> bytes:
        module = json.loads(data)
        argument = {"name": f"sparse={harm}, y", "arg": {"as_bool": True}, "kind": 2}
        module["graph_module"]["graph"]["nodes"][0]["inputs"].append(argument)
        return json.dumps(module).encode()

    rewritten(saved, lambda data: data.replace(b'"input_ids"', json.dumps(f"x={harm}").encode()))
    assert causaltrace.audit(saved).status == "clean"
    rewritten(saved, keyword)
    with pytest.raises(causaltrace.AuditError):
        causaltrace.audit(saved)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("target", FOREIGN)
def test_functions_of_a_file_are_not_called(saved: Path, target: str) -> None:
    rewritten(saved, calling(target))
    with pytest.raises(causaltrace.AuditError, match="no operation of this torch"):
        causaltrace.audit(saved)


def test_pickles_are_not_opened(saved: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    import pickle

    rewritten(saved, lambda _: pickle.dumps(Harm()), "sample_inputs/model.pt")

    def pickled(data: bytes) -> bytes:
        config = json.loads(data)
        for entry in config["config"].values():
            entry["use_pickle"] = True
        return json.dumps(config).encode()

    rewritten(saved, pickled, "weights/model_weights_config.json")
    rewritten(saved, lambda _: pickle.dumps(Harm()), "weights/weight_0")
    assert causaltrace.audit(saved).status in ("clean", "violation")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"{",
        lambda data: b"[1, 2]",
        lambda data: data.replace(b'"nodes"', b'"knots"'),
        lambda data: data.replace(b"as_tensor", b"as_sensor"),
        lambda data: data.replace(b'"name": "embedding"', b'"name": "nobody"', 1),
    ],
)
def test_damaged_files(saved: Path, damage: Callable[[bytes], bytes]) -> None:
    rewritten(saved, damage)
    with pytest.raises(causaltrace.AuditError):
        causaltrace.audit(saved)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(causaltrace.AuditError, match=r"cannot read .*No such file"):
        causaltrace.audit(tmp_path / "none.pt2")
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(causaltrace.AuditError, match=r"no \.pt2 file"):
        causaltrace.audit(tmp_path / "text.pt2")


# -- the command ------------------------------------------------------------------------------------------

MODULE = """
import torch
def net(ids):
    return torch.nn.functional.embedding(ids, torch.zeros(11, 11, requires_grad=True))
def ahead(ids):
    return net(ids).roll(-1, 0)
def made():
    return ahead, torch.zeros(6, dtype=torch.long)
def branch(ids):
    return net(ids) if ids.sum() else None
def step(state, ids, late=False):
    nll = lambda: torch.nn.functional.cross_entropy(state[0](ids[:-1]), ids[1:], reduction="sum")
    score = None if late else nll().detach()
    nll().backward()
    state[1].step()
    return nll().detach() if late else score
def loop():
    table = torch.nn.Embedding(11, 11)
    return step, [table, torch.optim.SGD(table.parameters(), lr=0.1)]
def late():
    return lambda state, ids: step(state, ids, True), loop()[1], torch.zeros(9, dtype=torch.long)
"""


def test_the_command(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audited_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "report.json"
    for arguments, code, words in (
        (["net.pt2"], 0, "CLEAN"),
        (["net.pt2", "--labels", "input_ids", "--scores", "other", "--json", str(out)], 1, "VIOLATION"),
        (["audited_module:net", "-i", "8"], 0, "CLEAN"),
        (["net.pt2", "--listing"], 0, "aten.embedding.default"),
        (["audited_module:net", "-i", "8", "--listing"], 0, "the target is no graph"),
        (["audited_module:ahead", "--input", "8:int32"], 1, "VIOLATION"),
        (["audited_module:made"], 1, "VIOLATION"),
        (["audited_module:branch", "-i", "8"], 2, "audited_module.py:10"),
        (["audited_module:none"], 2, "no attribute"),
        (["nowhere:net"], 2, "No module named"),
        (["audited_module"], 2, "names no target"),
        (["audited_module:net", "-i", "8:int99"], 2, "give a shape"),
        (["none.pt2"], 2, "No such file"),
        (["audited_module:loop", "--loop", "-i", "9"], 0, "any number of steps"),
        (["audited_module:late", "--loop"], 1, "VIOLATION"),
        (["audited_module:loop", "--loop"], 2, "no input holds labels"),
        (["audited_module:made", "--loop", "-i", "9"], 2, "takes 1 positional argument"),
        (["audited_module:net", "--loop", "-i", "9"], 2, "returns a step and its state"),
        (["net.pt2", "--loop"], 2, "names no target"),
    ):
        result = CliRunner().invoke(app, ["audit", *arguments])
        assert result.exit_code == code and words in result.output, (arguments, result.output)
    assert json.loads(out.read_text())["status"] == "violation"
