"""Operators that call functions (cond, while_loop, scan) in audits of functions, programs and files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import associative_scan, map, scan, while_loop

import causaltrace
from tests.probe import CLASSES, LENGTH, flips, stream, watched
from tests.static.test_archive import rewritten
from tests.static.test_audit import latest

pytestmark = pytest.mark.filterwarnings("ignore")
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]
MIXES: dict[str, tuple[Mix, bool]] = {}


def mix(legal: bool) -> Callable[[Mix], Mix]:
    """``fn(x, ids, past)`` mixes positions: may it be between an embedding and a head?"""

    def add(fn: Mix) -> Mix:
        MIXES[fn.__name__] = fn, legal
        return fn

    return add


@mix(True)
def one_of_two(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    return torch.cond(ids[0] > 3, lambda x: past @ x, lambda x: x.cumsum(0) * past[0, 0], (x,))


@mix(False)
def one_looks_ahead(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    return torch.cond(ids[0] > 3, lambda x: past @ x, lambda x: x.flip(0), (x,))


@mix(False)
def a_condition_on_a_later_label(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    return torch.cond(ids[4] > 3, lambda x: x.sin(), lambda x: x.cos(), (x,))


@mix(True)
def a_condition_in_a_branch(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    def inner(x: Tensor) -> Tensor:
        return torch.cond(x[0].sum() > 0, lambda x: x.cumsum(0), lambda x: x * 2, (x,))

    return torch.cond(ids[0] > 3, inner, lambda x: past @ x, (x,))


@mix(True)
def a_branch_that_skips(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    return torch.cond(ids[0] > 3, lambda x: past @ x, lambda x: x.clone(), (x,))


@mix(True)
def a_scan(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    return scan(lambda c, x: (torch.tanh(c + x), c * 2 + x), x[0] * 0, x, dim=0)[1]


@mix(False)
def a_scan_from_the_end(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    return scan(lambda c, x: (torch.tanh(c + x), c + x), x[0] * 0, x, dim=0, reverse=True)[1]


@mix(True)
def rows_by_themselves(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    return map(lambda row, past: row.cumsum(0) * past[0, 0], x, past)


@mix(False)
def rows_with_all(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    return map(lambda row, total: row * total, x, x.sum(0))


@mix(True)
def a_known_number_of_rounds(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    def body(i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return i + 1, x + past @ x

    return while_loop(lambda i, x: i < 3, body, (torch.zeros((), dtype=torch.int64), x))[1]


@mix(True)
def rounds_until_it_is_large(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    return while_loop(lambda x: x[0].abs().sum() < 30, lambda x: (2 * past @ x,), (x,))[0]


@mix(False)
def rounds_that_later_labels_end(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    return while_loop(lambda x: x.abs().sum() < 3000, lambda x: (2 * past @ x,), (x,))[0]


@mix(False)
def at_most_two_rounds(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
    def body(i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return i + 1, torch.cat((x[1:], x[-1:]))

    start = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda i, x: (i < 2) & (x[0].abs().sum() < 1e9), body, (start, x))[1]


class Net(nn.Module):
    def __init__(self, fn: Mix) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head, self.fn = nn.Embedding(CLASSES, 8), nn.Linear(8, CLASSES), fn
        self.register_buffer("past", torch.ones(LENGTH, LENGTH).tril())

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.fn(self.embedding(ids), ids, self.past))


IDS = torch.zeros(LENGTH, dtype=torch.long)


def scoring(net: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return net(tokens[:-1]), torch.arange(1, len(tokens))

    return run


@pytest.mark.parametrize("name", MIXES)
def test_supports_are_those_of_all_that_a_watch_may_see(name: str, tmp_path: Path) -> None:
    fn, legal = MIXES[name]
    net = Net(fn)
    program = torch.export.export(net, (IDS,))
    torch.export.save(program, tmp_path / "net.pt2")
    reports = [
        causaltrace.audit(net, IDS),
        causaltrace.audit(program),
        causaltrace.audit(tmp_path / "net.pt2"),
    ]
    assert [r.status for r in reports] == ["clean" if legal else "violation"] * 3
    assert not any(r.opaque for r in reports)
    seen, truth = [], []
    for first in (0, CLASSES - 1):
        tokens = stream()
        tokens[0] = first
        seen.append(watched(scoring(net), tokens).seen.latest[: LENGTH - 1])
        truth.append(flips(scoring(net), tokens, 2).latest[: LENGTH - 1])
    both = [max(latest) for latest in zip(*seen, strict=True)]
    for report in reports:
        assert latest(report) == both
        assert all(a >= max(b) for a, b in zip(latest(report), zip(*truth, strict=True), strict=True))


@pytest.mark.parametrize("legal", [True, False])
def test_associative_scans(legal: bool, tmp_path: Path) -> None:
    def fn(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
        return associative_scan(torch.add, x, 0, reverse=not legal, combine_mode="generic")

    net = Net(fn)
    report = causaltrace.audit(net, IDS)
    assert report.status == ("clean" if legal else "violation")
    assert latest(report) == watched(scoring(net), stream()).seen.latest[: LENGTH - 1]
    program = torch.export.export(net, (IDS,))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(causaltrace.AuditError, match="run_decompositions"):
        causaltrace.audit(program)
    with pytest.raises(causaltrace.AuditError, match="no operation of this torch"):
        causaltrace.audit(tmp_path / "net.pt2")
    assert causaltrace.audit(program.run_decompositions()).status == report.status


def test_lines_in_branches() -> None:
    """An export keeps the lines of modules."""
    program = torch.export.export(Net(one_looks_ahead), (IDS,))
    for target, line in ((Net(one_looks_ahead), "x.flip(0)"), (program, "self.fn(")):
        hops = causaltrace.audit(target, IDS).violations[0].path
        flip = next(hop.site for hop in hops if hop.site.op == "aten.flip.default")
        assert flip.file == __file__ and line in flip.source


def test_a_region_without_gradients(tmp_path: Path) -> None:
    class Region(Net):
        def forward(self, ids: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.embedding(ids).cumsum(0)
            with torch.autocast("cpu", enabled=False):
                x = x.roll(-1, 0) if self.training else x.sin()
            return self.head(x)

    for train in (False, True):
        program = torch.export.export(Region(one_of_two).train(train), (IDS,))
        torch.export.save(program, tmp_path / "net.pt2")
        for target in (program, tmp_path / "net.pt2"):
            assert causaltrace.audit(target).status == ("violation" if train else "clean")


# -- readouts ---------------------------------------------------------------------------------------------


def either_loss(ids: Tensor, late: bool, reduction: str = "none") -> Tensor:
    x, y = Net(one_of_two).embedding(ids[:-1]), ids[1:]
    heads = [nn.Linear(8, CLASSES) for _ in range(2)]
    losses = [
        lambda x, y, head=head: F.cross_entropy(head(x), y, reduction=reduction)
        for head in heads  # type: ignore[misc]
    ]
    return torch.cond(ids[3 if late else 0] > 3, *losses, (x, y)).sum()


@pytest.mark.parametrize("late", [False, True])
def test_losses_of_the_same_labels(late: bool) -> None:
    """Whichever is taken scores each label once."""
    tokens = stream()
    with torch.no_grad():
        report = causaltrace.audit(lambda ids: either_loss(ids, late), tokens)
        with causaltrace.watch(tokens) as trace:
            either_loss(tokens, late)
    seen = trace.report
    assert report.status == seen.status == ("violation" if late else "clean")
    assert (report.positions, report.lags) == (seen.positions, seen.lags)
    kinds = [{(f.kind, f.target, f.source) for f in r.violations} for r in (report, seen)]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("bound", [3, 10**9])
def test_losses_that_a_loop_adds_up(bound: int) -> None:
    net = Net(one_of_two)

    def evaluate(ids: Tensor) -> Tensor:
        x, y = net.embedding(ids[:-1]), ids[1:]

        def body(i: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
            return i + 1, losses + F.cross_entropy(net.head(x * i), y, reduction="none")

        start = torch.zeros((), dtype=torch.int64), torch.zeros(len(y))
        return while_loop(lambda i, losses: (i < bound) & (ids[0] > i), body, start)[1].sum()

    tokens = stream()
    tokens[0] = 5
    with torch.no_grad():
        report = causaltrace.audit(evaluate, tokens)
        with causaltrace.watch(tokens) as trace:
            evaluate(tokens)
    assert report.status == "clean" and not trace.report.violations
    assert (report.positions, report.lags) == (trace.report.positions, trace.report.lags)


def test_labels_are_labels_in_either_branch() -> None:
    net = Net(one_of_two)

    def evaluate(ids: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.cond(ids[0] > 3, lambda y: y.clone(), lambda y: y.flip(0).flip(0), (ids,))
            return F.cross_entropy(net.head(net.embedding(ids[:-1])), y[1:], reduction="sum")

    report = causaltrace.audit(evaluate, stream())
    assert report.status == "clean" and sorted(report.positions) == list(range(1, LENGTH + 1))


# -- gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["cond", "while_loop", "scan"])
@pytest.mark.parametrize("score_first", [True, False])
def test_weights_that_functions_close_over_learn(operator: str, score_first: bool) -> None:
    """No label reaches a score but through the weight in a branch."""
    ids = stream()

    def evaluate(ids: Tensor) -> Tensor:
        weight, table = torch.zeros(8, CLASSES, requires_grad=True), torch.zeros(CLASSES, 8)

        def logits(ids: Tensor) -> Tensor:
            x = table[ids] + torch.ones(8)
            if operator == "cond":
                return torch.cond(ids[0] > 3, lambda x: x @ weight, lambda x: (2 * x) @ weight, (x,))
            if operator == "scan":
                return scan(lambda c, x: (c + 1, x @ weight), torch.zeros(()), x, dim=0)[1]
            start = torch.zeros(len(x), CLASSES)
            return while_loop(
                lambda y, x: y[0].sum() < ids[0], lambda y, x: (y + x @ weight, x + 1), (start, x)
            )[0]

        def train() -> None:
            F.cross_entropy(logits(ids[:-1]), ids[1:]).backward()
            with torch.no_grad():
                weight.sub_(weight.grad)

        if not score_first:
            train()
        with torch.no_grad():
            total = F.cross_entropy(logits(ids[:-1]), ids[1:], reduction="sum")
        if score_first:
            train()
        return total

    report = causaltrace.audit(evaluate, ids)
    assert report.status == ("clean" if score_first else "violation")
    assert {f.kind for f in report.violations} == (set() if score_first else {"CT003"})


# -- what is refused --------------------------------------------------------------------------------------

OUTSIDE: list[Tensor] = []


def written(x: Tensor) -> Tensor:
    x.add_(1)
    return x.sin()


def effect(x: Tensor) -> Tensor:
    OUTSIDE.append(x)
    return x.sin()


def buffer(x: Tensor, past: Tensor) -> Tensor:
    past.mul_(0)
    return x.sin()


def _written_later(x: Tensor, result: Tensor) -> Tensor:
    result.add_(1)
    return x + result


REFUSED: dict[str, tuple[Mix, str]] = {
    "writes": (lambda x, i, p: torch.cond(i[0] > 3, written, torch.cos, (x,)), "writes to what"),
    "writes to a buffer": (
        lambda x, i, p: torch.cond(i[0] > 3, lambda x: buffer(x, p), torch.cos, (x,)),
        "writes to what",
    ),
    "effects": (lambda x, i, p: torch.cond(i[0] > 3, effect, torch.cos, (x,)), "changes Python objects"),
    "shapes": (lambda x, i, p: torch.cond(i[0] > 3, lambda x: x[:1], torch.cos, (x,)), "differ"),
    "types": (lambda x, i, p: torch.cond(i[0] > 3, torch.Tensor.double, torch.cos, (x,)), "differ"),
    "kinds": (lambda x, i, p: torch.cond(i[0] > 3, lambda x: (x + 1,), torch.cos, (x,)), "different kinds"),
    "loops that write": (
        lambda x, i, p: while_loop(lambda x: x.sum() < 3, lambda x: (written(x),), (x,))[0],
        "writes to what",
    ),
    "loops that grow": (
        lambda x, i, p: while_loop(lambda x: x.sum() < 3, lambda x: (torch.cat((x, x)),), (x,))[0],
        "differ",
    ),
    "a result that may be the input": (
        lambda x, i, p: _written_later(x, torch.cond(i[0] > 3, torch.cos, lambda x: x, (x,))),
        "which may be what",
    ),
    "a result of a loop that may be the input": (
        lambda x, i, p: _written_later(x, while_loop(lambda x: x.sum() < 3, lambda x: (x,), (x,))[0]),
        "which may be what",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_line_and_the_watch(name: str) -> None:
    fn, words = REFUSED[name]
    with pytest.raises(
        causaltrace.AuditError, match=rf"test_branches\.py:\d+: .*{words}.*causaltrace\.watch"
    ):
        causaltrace.audit(Net(fn), IDS)


def test_branches_that_score_are_refused() -> None:
    """Which labels are scored would depend on data."""
    with torch.no_grad(), pytest.raises(causaltrace.AuditError, match=r"scores labels.*causaltrace\.watch"):
        causaltrace.audit(lambda ids: either_loss(ids, False, "sum"), stream())


def test_own_tensors_may_be_written_to() -> None:
    def own(x: Tensor) -> Tensor:
        y = x.sin()
        y[0] = 1
        return y.add_(x)

    assert (
        causaltrace.audit(Net(lambda x, i, p: torch.cond(i[0] > 3, own, torch.cos, (x,))), IDS).status
        == "clean"
    )


def test_a_round_too_many_is_not_run() -> None:
    """An index that is known only while the loop could run; and a loop that nothing known ends."""

    def fn(bound: int) -> Mix:
        def fn(x: Tensor, ids: Tensor, past: Tensor) -> Tensor:
            def body(i: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
                return i + 1, out.index_put((i[None],), x.index_select(0, i[None]))

            start = torch.zeros((), dtype=torch.int64), torch.zeros_like(x)
            return while_loop(lambda i, out: (i < bound) & (ids[0] > 3), body, start)[1]

        return fn

    assert causaltrace.audit(Net(fn(LENGTH)), IDS).status == "clean"
    assert causaltrace.audit(Net(fn(10**9)), IDS).status == "violation"


# -- files of others --------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.export.save(torch.export.export(Net(one_of_two), (IDS,)), tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def changed(path: Path, change: Callable[[dict[str, Any], list[Any]], Any]) -> None:
    """The file after ``change(inner graph, arguments of cond)``."""

    def fn(data: bytes) -> bytes:
        module = json.loads(data)
        node = next(n for n in module["graph_module"]["graph"]["nodes"] if n["target"].endswith(".cond"))
        change(node["inputs"][1]["arg"]["as_graph"]["graph"], node["inputs"])
        return json.dumps(module).encode()

    rewritten(path, fn)


MALFORMED: dict[str, Callable[[dict[str, Any], list[Any]], Any]] = {
    "no functions": lambda inner, given: given.__setitem__(slice(1, 3), [given[0]] * 2),
    "one function": lambda inner, given: given.__setitem__(1, given[0]),
    "functions by name": lambda inner, given: given[1].update(name="true_fn", kind=2),
    "no operands": lambda inner, given: given.pop(),
    "other operands": lambda inner, given: given[3]["arg"]["as_tensors"].pop(),
    "a function as an operand": lambda inner, given: given.__setitem__(3, given[1]),
    "no graph": lambda inner, given: inner.clear(),
    "no nodes": lambda inner, given: inner["nodes"].clear(),
    "other nodes": lambda inner, given: inner["inputs"].clear(),
    "results of no node": lambda inner, given: inner["outputs"][0]["as_tensor"].update(name="nobody"),
    "more results": lambda inner, given: inner["outputs"].extend(inner["outputs"]),
    "another kind of result": lambda inner, given: inner.update(is_single_tensor_return=True),
    "other code": lambda inner, given: inner["nodes"][0].update(target="os.system"),
    "objects": lambda inner, given: inner.update(custom_obj_values={"x": 1}),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_functions_of_a_file(saved: Path, name: str) -> None:
    changed(saved, MALFORMED[name])
    with pytest.raises(causaltrace.AuditError):
        causaltrace.audit(saved)


def test_an_operator_without_its_functions(saved: Path) -> None:
    def change(data: bytes) -> bytes:
        return data.replace(b"torch.ops.aten.embedding.default", b"torch.ops.higher_order.cond")

    rewritten(saved, change)
    with pytest.raises(causaltrace.AuditError, match=r"cond is given other functions than it takes"):
        causaltrace.audit(saved)


def test_names_in_functions_of_a_file_are_no_code(saved: Path, tmp_path: Path) -> None:
    harm = f"open({str(tmp_path / 'harm')!r}, 'w')"

    def change(inner: dict[str, Any], given: list[Any]) -> None:
        text = json.dumps(inner).replace('"b_past"', json.dumps(f"x={harm}"))
        new = json.loads(text)
        inner.clear()
        inner.update(copy.deepcopy(new))
        given[1]["arg"]["as_graph"]["name"] = f"forward({harm})"

    changed(saved, change)
    assert causaltrace.audit(saved).status == "clean"
    assert not (tmp_path / "harm").exists()
