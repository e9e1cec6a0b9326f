"""Static audits against watches of the same models, and against flips with several weights and tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from causaltrace.report import summary
from causaltrace.report.model import Report
from tests import attends
from tests.flips import CASES
from tests.mixers import CAUSAL, MAYBE_OPAQUE, NOT_CAUSAL, Mixer
from tests.probe import CLASSES, LENGTH, flips, stream, watched
from tests.static import AUDITED, IN_PYTHON
from tests.test_architectures import model, scoring

Mix = Callable[[Mixer, Tensor], Tensor]
MIXERS: dict[str, Mix] = {**CAUSAL, **NOT_CAUSAL, **{name: mix for name, (mix, _) in MAYBE_OPAQUE.items()}}


def latest(report: Report) -> list[int]:
    """The latest label that reached each score, -1 if none did, by position."""
    pairs = sorted(zip(report.positions, report.lags, strict=True))
    return [-1 if lag is None else position - lag for position, lag in pairs]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_has_the_support_that_a_watch_sees(name: str) -> None:
    net, tokens = model(MIXERS[name]), stream()
    static = causaltrace.audit(net, tokens[:-1])
    seen = watched(scoring(net), tokens)
    assert latest(static) == seen.seen.latest[: LENGTH - 1]
    assert not static.opaque
    assert static.status == ("violation" if name in NOT_CAUSAL or static.violations else "clean")
    assert (name not in CAUSAL) or static.status == "clean"


#: Scores that reach the size of a mask are assumed away where no value is known (``docs/static.md``).
BEYOND = "scores_beyond_minus_1e9"
MASKS = {**attends.LEGAL, **attends.LEAKING}


@pytest.mark.parametrize("name", [name for name in MASKS if name != BEYOND])
def test_a_mask_has_the_support_that_a_watch_sees(name: str) -> None:
    net, tokens = attends.model(MASKS[name], 2, torch.float32), stream()
    static = causaltrace.audit(net, tokens[:-1])
    assert latest(static) == watched(attends.scoring(net), tokens).seen.latest[: LENGTH - 1]
    assert static.status == ("clean" if name in attends.LEGAL else "violation")


@pytest.mark.parametrize("name", ["attention", "token_choice", "expert_choice", "recurrence", "roll_back"])
def test_no_weights_and_no_tokens_show_more(name: str) -> None:
    reported = latest(causaltrace.audit(model(MIXERS[name]), torch.empty(LENGTH, dtype=torch.long)))
    for seed in range(3):
        truth = flips(scoring(model(MIXERS[name], seed=seed)), stream(seed=seed))
        assert all(a >= b for a, b in zip(reported, truth.latest[: LENGTH - 1], strict=True))


#: What the label decides here depends on the counts in a table, of which an audit knows nothing.
BY_COUNTS = ("blend_target", "tilt_gated")


@pytest.mark.parametrize("name", AUDITED)
def test_an_example_is_judged_as_in_a_watch(name: str) -> None:
    case = CASES[name]
    net = case.make_model()

    def evaluate(tokens: Tensor) -> float:
        return case.evaluate(net, tokens, case.config)

    with causaltrace.watch(case.tokens) as trace:
        case.evaluate(copy.deepcopy(net), case.tokens, case.config)
    static = causaltrace.audit(evaluate, case.tokens)
    assert static.status == ("clean" if case.legal else "violation")
    assert not static.opaque
    found = [{(f.kind, f.target, f.source, f.orders) for f in r.violations} for r in (static, trace.report)]
    if name in BY_COUNTS:
        assert {t for _, t, _, _ in found[0]} >= {t for _, t, _, _ in found[1]}
        return
    assert static.positions == trace.report.positions and static.lags == trace.report.lags
    assert found[0] == found[1]


@pytest.mark.parametrize("name", IN_PYTHON)
def test_an_example_that_python_takes_part_in_is_one_for_a_watch(name: str) -> None:
    case = CASES[name]
    net = case.make_model()
    with pytest.raises(causaltrace.AuditError, match=rf"{name}\.py:\d+: .*causaltrace\.watch"):
        causaltrace.audit(lambda tokens: case.evaluate(net, tokens, case.config), case.tokens)


def test_context_slot_of_many_windows_leaks() -> None:
    assert not CASES["slot_context_batch32"].legal and CASES["slot_context_batch1"].legal


class Net(nn.Module):
    """Embedding, a mixing of positions, head."""

    def __init__(self, mix: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.embedding, self.head, self.mix = nn.Embedding(CLASSES, 8), nn.Linear(8, CLASSES), mix

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.embedding(ids)))


def status(target: object, shape: tuple[int, ...] = (8,)) -> str:
    return causaltrace.audit(target, torch.empty(shape, dtype=torch.long, device="meta")).status


def test_meta_modules_have_no_weights() -> None:
    with torch.device("meta"):
        net = Net(lambda x: x.cumsum(-2))
    assert status(net) == "clean"
    assert net.head.weight.is_meta


def test_fake_modules_are_taken_as_they_are() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        net = Net(lambda x: x.cumsum(-2))
        ids = torch.zeros(2, 8, dtype=torch.long)
    assert causaltrace.audit(net, ids).status == "clean"


@pytest.mark.parametrize("backwards", [False, True])
def test_rows_of_a_batch_are_kept_apart(backwards: bool) -> None:
    def shifted(x: Tensor) -> Tensor:
        y = x.flip(0) if backwards else x
        y = torch.cat((y[:1], y[1:] + y[:-1]))
        return y.flip(0) if backwards else y

    report = causaltrace.audit(Net(shifted), torch.zeros(3, 5, dtype=torch.long))
    assert report.status == "violation"
    finding = report.violations[0]
    rows = int(finding.source_stream[-2]), int(finding.stream[-2])
    assert abs(rows[0] - rows[1]) == 1 and (rows[0] > rows[1]) == backwards
    assert status(Net(), (3, 5)) == "clean"


def test_logits_are_found_in_an_output() -> None:
    class Wrapped(Net):
        def forward(self, ids: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            x = self.embedding(ids)
            return {"logits": self.head(x), "ahead": self.head(x.roll(-1, 0))}

    ids = torch.zeros(8, dtype=torch.long)
    assert causaltrace.audit(Wrapped(), ids).status == "clean"
    assert causaltrace.audit(Wrapped(), ids, scores="ahead").status == "violation"
    assert causaltrace.audit(Wrapped(), ids=ids, labels="ids").status == "clean"


def test_a_step_with_a_backward_pass() -> None:
    net = Net(lambda x: x.cumsum(0))

    def step(ids: Tensor, first: bool) -> Tensor:
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        losses = []
        for train in (first, not first):
            if train:
                F.cross_entropy(net(ids[:-1]), ids[1:]).backward()
                optimizer.step()
            else:
                with torch.no_grad():
                    losses.append(F.cross_entropy(net(ids[:-1]), ids[1:], reduction="sum"))
        return losses[0]

    before = [p.clone() for p in net.parameters()]
    ids = torch.zeros(9, dtype=torch.long)
    assert causaltrace.audit(lambda t: step(t, False), ids).status == "clean"
    leaks = causaltrace.audit(lambda t: step(t, True), ids)
    assert {f.kind for f in leaks.violations} == {"CT003"}
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_caches_of_modules_stay_real() -> None:
    class Cached(Net):
        table: Tensor | None = None

        def forward(self, ids: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.arange(len(ids)).float()
            return super().forward(ids) * self.table[:, None]

    net = Cached()
    assert status(net) == "clean"
    assert net.table is None
    net(torch.zeros(8, dtype=torch.long))
    assert type(net.table) is Tensor and status(net) == "clean"
    assert (
        ": float32 [8, 1] at test_audit.py:"
        in causaltrace.audit(net, torch.zeros(8, dtype=torch.long)).notes[0].message
    )


def test_copies_of_a_model_have_no_weights_either() -> None:
    class Held(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("past", torch.ones(8, 8).tril())
            self.mixing = nn.Parameter(torch.zeros(8, 8))

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids)
            return self.head(self.past @ x + (self.mixing.data @ x if self.training else 0))

    net = Held()
    for train, expected in ((False, "clean"), (True, "violation")):
        net.train(train)
        assert status(net) == expected
        assert status(lambda ids: copy.deepcopy(net)(ids)) == expected
        assert (
            status(lambda ids: F.linear(net.mixing.data @ net.embedding(ids), net.head.weight)) == "violation"
        )


def test_what_takes_the_place_of_weights_that_are_gone_has_values() -> None:
    net = Net()

    def evaluate(ids: Tensor) -> Tensor:
        for _ in range(100):
            nn.Linear(2, 2)(torch.zeros(2))
            assert float(torch.tensor(0.5)) == 0.5
        return net(ids)

    assert status(evaluate) == "clean"


def test_which_constants_a_proof_rests_on() -> None:
    past = torch.ones(8, 8).tril()
    plain = causaltrace.audit(Net(lambda x: x.cumsum(0)), torch.zeros(8, dtype=torch.long))
    masked = causaltrace.audit(Net(lambda x: past @ x), torch.zeros(8, dtype=torch.long))
    assert plain.notes[0].message.endswith("any weights and tokens of these shapes")
    assert masked.status == "clean"
    assert "given these constants: float32 [8, 8] at test_audit.py:" in masked.notes[0].message


# -- what is not known ------------------------------------------------------------------------------------


def ids_to_logits(fn: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    net = Net()
    return lambda ids: net.head(fn(net.embedding(ids), ids))


def sorted_and_back(x: Tensor, keys: Tensor) -> Tensor:
    """Something done to each token in the order of its key."""
    order = keys.argsort()
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return x[order].tanh()[back]


UNKNOWN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "own mask": (lambda x, i: torch.where((i > 3)[:, None], x, 0.0), "clean"),
    "next label's mask": (lambda x, i: torch.where((i > 3).roll(-1)[:, None], x, 0.0), "violation"),
    "a branch not taken": (lambda x, i: torch.where((i > 99)[:, None], x.roll(-1, 0), x), "violation"),
    "a branch for all": (lambda x, i: torch.where(i[0] > 3, x.cumsum(0), x), "clean"),
    "a leaking branch for all": (lambda x, i: torch.where(i[0] > 3, x.flip(0), x), "violation"),
    "a factor": (lambda x, i: x * (i > 3)[:, None] + 0 * x.roll(-1, 0), "clean"),
    "a float factor": (lambda x, i: x.roll(-1, 0) * x.mean(1, keepdim=True), "violation"),
    "an index": (lambda x, i: x.cumsum(0)[i % len(i)], "violation"),
    "an index into the first half": (lambda x, i: x + x[:1].expand(8, 8)[i % len(i)], "clean"),
    "an order": (lambda x, i: x[x.sum(1).argsort()], "violation"),
    "an order that cancels out": (lambda x, i: sorted_and_back(x, x.sum(1)), "clean"),
    "an order that does not": (lambda x, i: sorted_and_back(x, x.sum(1)).flip(0), "violation"),
    "a place to write": (lambda x, i: torch.zeros(CLASSES, 8).index_add(0, i, x)[i], "violation"),
    "a cache by label": (lambda x, i: x + torch.zeros(CLASSES, 8).index_put((i,), x)[:1], "violation"),
    "dropout": (lambda x, i: F.dropout(x, 0.5, True), "clean"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_values_that_depend_on_labels(name: str) -> None:
    fn, expected = UNKNOWN[name]
    assert status(ids_to_logits(fn)) == expected


def test_masks_that_are_known_in_part() -> None:
    past = torch.ones(8, 8, dtype=torch.bool).tril()

    def attend(x: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x[None], x[None], x[None], attn_mask=mask[None])[0]

    def eager(x: Tensor, mask: Tensor) -> Tensor:
        scores = x @ x.T + torch.where(mask, 0.0, torch.finfo(x.dtype).min)
        return scores.softmax(-1) @ x

    for mix in (attend, eager):
        for mask, expected in (
            (lambda i: past & (i != 0), "clean"),
            (lambda i: ~(~past | (i == 0)), "clean"),
            (lambda i: past | (i != 0), "violation"),
            (lambda i: (i != 0).expand(8, 8), "violation"),
        ):
            fn = ids_to_logits(lambda x, i, mix=mix, mask=mask: mix(x, mask(i)))  # type: ignore[misc]
            assert status(fn) == expected


READOUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, y: F.cross_entropy(logits, y, reduction="sum"),
    "gather": lambda logits, y: -logits.log_softmax(-1).gather(-1, y[:, None]).sum(),
    "index": lambda logits, y: -logits.log_softmax(-1)[torch.arange(len(y)), y].sum(),
    "one_hot": lambda logits, y: -(logits.log_softmax(-1) * F.one_hot(y, CLASSES)).sum(-1).sum(),
    "clamp": lambda logits, y: F.cross_entropy(logits, y.clamp(min=0), reduction="sum"),
}


@pytest.mark.parametrize("name", READOUTS)
def test_readouts_at_labels_that_are_not_known(name: str) -> None:
    for shift, expected in ((0, "clean"), (-1, "violation")):
        net = Net(lambda x, shift=shift: x.roll(shift, 0))  # type: ignore[misc]
        report = causaltrace.audit(
            lambda ids, net=net: READOUTS[name](net(ids[:-1]), ids[1:]), torch.zeros(9, dtype=torch.long)
        )
        assert report.status == expected and sorted(report.positions) == list(range(1, 9))


def test_labels_in_an_unknown_order_are_no_targets() -> None:
    net = Net()

    def shuffled(ids: Tensor) -> Tensor:
        return F.cross_entropy(net(ids[:-1]), ids[1:][ids[:-1] % 8], reduction="sum")

    assert status(shuffled, (9,)) == "unverified"


def test_a_score_that_its_label_weighs() -> None:
    net = Net()

    def weighed(ids: Tensor) -> Tensor:
        nll = F.cross_entropy(net(ids[:-1]), ids[1:], reduction="none")
        return (nll * (ids[1:] != 3)).sum()

    report = causaltrace.audit(weighed, torch.zeros(9, dtype=torch.long))
    assert {f.kind for f in report.violations} == {"CT004"}


def test_what_is_not_followed_is_never_clean() -> None:
    def pooled(x: Tensor, ids: Tensor) -> Tensor:
        best, where = F.max_pool2d(x[None], 2, return_indices=True)
        return F.max_unpool2d(best, where, 2)[0]

    report = causaltrace.audit(ids_to_logits(pooled), torch.zeros(8, dtype=torch.long))
    assert report.status == "unverified"
    assert "on values that are not known" in report.opaque[0].message


# -- errors -----------------------------------------------------------------------------------------------


BAD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "branch": lambda x, i: x if i.sum() > 3 else -x,
    "item": lambda x, i: x * i.sum().item(),
    "float": lambda x, i: x * float(x.sum()),
    "number in a product": lambda x, i: x * x.sum().item(),
    "number in a tensor": lambda x, i: x + torch.tensor(x.sum().item()),
    "number that fills": lambda x, i: x + torch.full((8,), x.sum().item()),
    "number": lambda x, i: x if x.sum().item() > 0 else -x,
    "tolist": lambda x, i: x * torch.tensor(i.tolist())[:, None],
    "numpy": lambda x, i: x * torch.from_numpy(x.detach().numpy()),
    "mask": lambda x, i: x[i > 3],
}


@pytest.mark.parametrize("name", BAD)
def test_what_needs_data_names_the_line(name: str) -> None:
    with pytest.raises(causaltrace.AuditError, match=r"test_audit\.py:\d+: .*causaltrace\.watch"):
        status(ids_to_logits(BAD[name]))


LEAKS: dict[str, Callable[[Tensor], Tensor]] = {}


def leak(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    LEAKS[fn.__name__] = fn
    return fn


@leak
def through_memory_from_outside(x: Tensor) -> Tensor:
    held = OUTSIDE.clone()
    held.copy_(x.detach().roll(-1, 0))
    return x + held


@leak
def through_data(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.data = x.data.roll(-1, 0)
    return y


@leak
def through_a_part(x: Tensor) -> Tensor:
    matrix = torch.zeros(8, 8)
    matrix[2:5].copy_(x.detach()[:3] @ x.detach().T)
    return matrix @ x


@leak
def through_bools(x: Tensor) -> Tensor:
    mask = torch.zeros(8, 8, dtype=torch.bool).tril().clone()
    mask[:, :] = (x.sum(1) > 0)[None]
    return torch.where(mask[:, :1], x, x.roll(-1, 0))


@leak
def through_foreach(x: Tensor) -> Tensor:
    made = [torch.zeros(8, 8), torch.zeros(8, 8)]
    torch._foreach_add_(made, [x.detach(), x.detach().roll(-1, 0)])
    return made[1]


@leak
def through_out(x: Tensor) -> Tensor:
    out = torch.empty(8, 8)
    torch.add(x.detach(), x.detach().roll(-1, 0), out=out)
    return out


@leak
def through_a_matrix_that_was_zero(x: Tensor) -> Tensor:
    matrix = torch.zeros(8, 8)
    matrix[0, 7] = 1.0
    return matrix @ x


@leak
def through_signs(x: Tensor) -> Tensor:
    return x.roll(-1, 0) * x.sign() * x.nan_to_num() * x.relu()


OUTSIDE = torch.zeros(8, 8)


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_found(name: str) -> None:
    assert status(ids_to_logits(lambda x, _: LEAKS[name](x))) == "violation"
    assert not OUTSIDE.any()


def test_a_matrix_that_is_zero_again() -> None:
    def again(x: Tensor, _: Tensor) -> Tensor:
        matrix = torch.zeros(8, 8)
        matrix.add_(x.detach() @ x.detach().T)
        matrix.zero_()
        matrix += torch.eye(8)
        return matrix @ x

    assert status(ids_to_logits(again)) == "clean"


def test_usage() -> None:
    net, ids = Net(), torch.zeros(8, dtype=torch.long)
    with pytest.raises(ValueError, match="no input holds labels"):
        causaltrace.audit(net, torch.zeros(8))
    with pytest.raises(ValueError, match="labels='x' names no tensor among the inputs: ids"):
        causaltrace.audit(net, ids, labels="x")
    with pytest.raises(ValueError, match="names no output"):
        causaltrace.audit(net, ids, scores="x")
    with pytest.raises(ValueError, match="do not fit the labels"):
        causaltrace.audit(lambda ids: net(ids)[1:], ids)
    with pytest.raises(TypeError, match="int cannot be audited"):
        causaltrace.audit(3, ids)
    with pytest.raises(ValueError, match="order must be"):
        causaltrace.audit(net, ids, order="x")


def test_a_report_says_that_it_is_an_audit(tmp_path: Path) -> None:
    report = causaltrace.audit(Net(lambda x: x.roll(-1, 0)), torch.zeros(8, dtype=torch.long))
    for text in (report.to_text(), report.to_markdown(), report.to_json()):
        assert "any weights and tokens" in text
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert summary.AUDITED in page and summary.SCOPE not in page
    assert summary.SCOPE not in report.to_text()
    assert "CT097" in report.to_sarif()
