"""The context manager: arguments, streams, scores, orders, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import causaltrace
from tests.small import VOCAB, Toy, nll, stream, targets


def score_all(model: torch.nn.Module, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        nll(model, tokens).sum().item()


# -- streams --------------------------------------------------------------------------------------------


def test_clean_and_counts() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        score_all(Toy(), tokens)
    report = trace.report
    assert trace.ok and report.status == "clean" and report.exit_code == 0
    assert list(report.positions) == list(range(1, len(tokens)))
    assert report.conditions == dict.fromkeys(("C1", "C2", "C3", "C4"), "pass")
    assert report.orders == {"stream": "clean", "scored": "clean"}
    trace.raise_if_violation()


def test_stream_found_by_itself() -> None:
    tokens = stream()
    with causaltrace.watch() as trace:
        score_all(Toy(), tokens)
    assert trace.ok and trace.report.labels == len(tokens)


def test_two_unnamed_candidates_are_never_clean() -> None:
    tokens = stream()
    inputs, labels = tokens[:-1].clone(), tokens[1:].clone()
    with causaltrace.watch() as trace, torch.no_grad():
        F.cross_entropy(Toy()(inputs), labels, reduction="none").sum().item()
    assert trace.report.status == "unverified"
    assert any("several integer tensors" in note.message for note in trace.report.notes)


def test_inputs_copied_before_the_watch_are_noticed() -> None:
    tokens = stream()
    inputs = tokens[:-1].clone()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        F.cross_entropy(Toy()(inputs), tokens[1:], reduction="none").sum().item()
    assert trace.report.status == "unverified"
    assert any("not sliced from them" in note.message for note in trace.report.notes)


def test_declared_copy_is_followed() -> None:
    tokens = stream()
    inputs = tokens.clone()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        causaltrace.label(inputs, positions=torch.arange(len(tokens)))
        F.cross_entropy(Toy()(inputs)[:-1].flip(0), tokens[1:], reduction="none").sum().item()
    # position t is scored by the row that has read labels up to n - 1 - t
    assert targets(trace) == {t for t in range(1, len(tokens)) if len(tokens) - 1 - t >= t}


def test_batch_of_sequences() -> None:
    tokens = torch.stack([stream(9, 1), stream(9, 2), stream(9, 3)])
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        logits = Toy()(tokens[:, :-1])
        F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="sum").item()
    assert trace.ok and trace.report.scored == 24
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        logits = Toy()(tokens[:, :-1])
        logits = logits - logits.mean(0)  # rows see each other, later rows too
        F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="sum").item()
    assert targets(trace) == {9 * row + t for row in (0, 1) for t in range(1, 9)}


def test_several_named_streams() -> None:
    first, second = stream(10, 1), stream(12, 2)
    with causaltrace.watch({"a": first, "b": second}) as trace:
        score_all(Toy(), first)
        score_all(Toy(), second)
    assert trace.ok and trace.report.labels == 22
    with causaltrace.watch({"a": first, "b": second}) as trace, torch.no_grad():
        x = Toy()(first[:-1]) + Toy()(second[:-1])[-1]
        F.cross_entropy(x, first[1:], reduction="sum").item()
    finding = trace.report.violations[0]
    assert (finding.stream, finding.source_stream, finding.source) == ("a", "b", 10)


def test_negative_ids_are_no_labels() -> None:
    tokens = stream()
    tokens[5] = -100
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        logits = Toy()(tokens[:-1].clamp(min=0))
        F.cross_entropy(logits, tokens[1:], reduction="sum").item()
    assert trace.ok and 5 not in trace.report.positions


# -- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        (torch.zeros(0, dtype=torch.int64), ValueError, "empty"),
        (torch.zeros(4), TypeError, "integer dtype"),
        ([1, 2, 3], TypeError, "torch tensor"),
        ({}, ValueError, "no token tensors"),
    ],
)
def test_bad_tokens(tokens: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        causaltrace.watch(tokens)  # type: ignore[arg-type]


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="order"):
        causaltrace.watch(stream(), order="time")
    with pytest.raises(ValueError, match="precision"):
        causaltrace.watch(stream(), precision="bits")
    with pytest.raises(ValueError, match="documents"):
        causaltrace.watch(stream(), documents=[99])


def test_nested_watch_is_refused_and_the_outer_one_goes_on() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        with pytest.raises(RuntimeError, match="do not nest"), causaltrace.watch(tokens):
            pass
        score_all(Toy(), tokens)
    assert trace.ok


def test_a_watch_is_used_once() -> None:
    tokens = stream()
    trace = causaltrace.watch(tokens)
    with trace:
        score_all(Toy(), tokens)
    with pytest.raises(RuntimeError, match="over"), trace:
        pass


def test_exception_travels_on_and_leaves_a_report() -> None:
    tokens = stream()
    trace = causaltrace.watch(tokens)

    def stopped() -> None:
        with trace:
            score_all(Toy(), tokens)
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        stopped()
    report = trace.report
    assert report.scored == len(tokens) - 1
    assert report.status == "unverified" and report.error is not None and "stop" in report.error
    with causaltrace.watch(tokens) as again:  # nothing is left switched on
        score_all(Toy(), tokens)
    assert again.ok


def test_no_score_is_not_clean() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        Toy()(tokens[:-1])
    assert trace.report.status == "unverified"
    assert any("no score" in note.message for note in trace.report.notes)


def test_outside_a_watch_nothing_happens() -> None:
    tokens = stream()
    values = torch.randn(3)
    assert causaltrace.label(tokens) is tokens and causaltrace.score(values) is values


# -- what is a score ------------------------------------------------------------------------------------


def test_objective_is_not_a_score_and_its_log_neither() -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace:
        for start in (0, 8, 16):
            with torch.no_grad():
                nll(model, tokens, start, start + 9).sum().item()
            loss = nll(model, tokens, start, start + 9).mean()
            loss.backward()
            assert loss.item() > 0  # logging what was scored costs nothing
            with torch.no_grad():
                model.head -= 0.1 * model.head.grad
            model.zero_grad()
    assert trace.report.status == "clean", trace.report


def test_item_of_the_only_loss_is_the_score() -> None:
    tokens, model = stream(), Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with causaltrace.watch(tokens) as trace:
        for start in (0, 8, 16):
            loss = nll(model, tokens, start, start + 9).mean()
            loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert trace.ok and trace.report.scored == len(tokens) - 1


def test_returned_values_are_scores() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        values = nll(Toy(), tokens)
    assert trace.ok and trace.report.scored == len(values)


def test_only_what_is_added_is_scored() -> None:
    tokens, total = stream(), torch.zeros(())
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        for start in range(0, 16, 4):
            total += nll(Toy(), tokens, start, start + 9)[-4:].sum()
    assert list(trace.report.positions) == list(range(5, 21)) and trace.ok


def test_zero_weights_take_positions_out() -> None:
    tokens = stream()
    weights = torch.zeros(len(tokens) - 1)
    weights[:10] = 1
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        values = nll(Toy(), tokens)
        (values * weights).sum().item()
        assert trace.report.scored == 10
        values[10:].sum().item()
    assert trace.ok and list(trace.report.positions) == list(range(1, len(tokens)))


PADDED: dict[str, Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]] = {
    "mul": lambda nll, y, pad: (nll * (y != pad)).sum(),
    "where": lambda nll, y, pad: torch.where(y == pad, 0.0, nll).sum(),
    "select": lambda nll, y, pad: nll[y != pad].sum(),
    "masked_select": lambda nll, y, pad: nll.masked_select(y.ne(torch.tensor(pad))).mean(),
    "sign": lambda nll, y, pad: (nll * (y >= 0) if pad < 0 else nll * (y > pad)).sum(),
    "numpy": lambda nll, y, pad: nll.numpy()[y.numpy() != pad].sum(),
}


@pytest.mark.parametrize("form", PADDED)
def test_padding_is_told_from_labels_by_its_sign(form: str) -> None:
    tokens = stream()
    for pad, expected in ((-100, "clean"), (3, "violation")):  # no class, and one
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            y = F.pad(tokens[1:], (0, 4), value=pad)
            logits = F.pad(Toy()(tokens[:-1]), (0, 0, 0, 4))
            values = F.cross_entropy(logits, y, reduction="none", ignore_index=-100)
            float(PADDED[form](values, y, pad))
        assert trace.report.status == expected, trace.report


@pytest.mark.parametrize("spelling", ["gather", "index", "take_along_dim", "onehot", "eq", "nll_loss"])
def test_spellings_of_a_readout(spelling: str) -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        logp = Toy()(tokens[:-1]).log_softmax(-1)
        y = tokens[1:]
        if spelling == "gather":
            value = logp.gather(-1, y[:, None])[:, 0]
        elif spelling == "take_along_dim":
            value = logp.take_along_dim(y[:, None], -1)[:, 0]
        elif spelling == "index":
            value = logp[torch.arange(len(y)), y]
        elif spelling == "onehot":
            value = (logp * F.one_hot(y, VOCAB)).sum(-1)
        elif spelling == "eq":
            value = (logp * (y[:, None] == torch.arange(VOCAB))).sum(-1)
        else:
            value = -F.nll_loss(logp, y, reduction="none")
        (-value).mean().item()
    assert trace.report.status == "clean", trace.report
    assert trace.report.scored == len(tokens) - 1


def test_scored_twice() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        score_all(Toy(), tokens)
        score_all(Toy(), tokens[5:])
    assert targets(trace) == targets(trace, "CT006") == set(range(6, len(tokens)))
    assert trace.report.conditions["C4"] == "fail" and trace.report.conditions["C1"] == "pass"


def test_one_readout_used_twice_is_one_score() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        values = nll(Toy(), tokens)
        values.sum().item()
        values.mean().item()
        values.tolist()
    assert trace.ok


def test_score_depends_on_its_label_after_the_readout() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        values = nll(Toy(), tokens) * (tokens[1:] % 3 + 1)
        values.sum().item()
    assert targets(trace, "CT004") == set(range(1, len(tokens)))
    assert trace.report.conditions["C2"] == "fail" and trace.report.conditions["C1"] == "pass"


def test_explicit_score_replaces_the_others() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        leaky = Toy()(tokens[1:])
        F.cross_entropy(leaky, tokens[1:]).item()  # not the metric
        trace.score(nll(Toy(), tokens))
    assert trace.ok and trace.report.scored == len(tokens) - 1
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        row = Toy()(tokens[1:]).softmax(-1)
        cost = 1 - row.max(-1).values
        trace.score(cost, targets=tokens[1:], distribution=row)
    assert targets(trace, "CT002") == set(range(1, len(tokens)))


# -- orders ---------------------------------------------------------------------------------------------


def documents_out_of_order(order: str) -> causaltrace.Watch:
    tokens, model = stream(24), Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with causaltrace.watch(tokens, order=order, documents=[0, 8, 16]) as trace:
        for start in (16, 0, 8):
            values = nll(model, tokens, start, start + 8)
            with torch.no_grad():
                values.sum().item()
            optimizer.zero_grad()
            values.mean().backward()
            optimizer.step()
    return trace


def test_documents_scored_out_of_order() -> None:
    trace = documents_out_of_order("both")
    assert trace.report.orders == {"stream": "violation", "scored": "clean"}, trace.report
    assert trace.report.status == "violation"
    assert all(f.orders == ("stream",) for f in trace.report.violations)
    assert documents_out_of_order("scored").report.status == "clean"
    assert documents_out_of_order("stream").report.orders == {"stream": "violation"}


# -- opaque ---------------------------------------------------------------------------------------------


@torch.library.custom_op("causaltrace_tests::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def test_opaque_op_is_named_and_unverified() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        logits = mystery(Toy()(tokens[:-1]))
        F.cross_entropy(logits, tokens[1:], reduction="sum").item()
    assert trace.report.status == "unverified"
    (notice,) = trace.report.opaque
    assert "mystery" in notice.message and notice.remedy and notice.site is not None and notice.blocking
    assert trace.report.conditions["C1"] == "not covered"


def test_strict_raises_on_the_first_opaque_op() -> None:
    tokens = stream()
    with pytest.raises(RuntimeError, match=r"mystery.*no rule"), causaltrace.watch(tokens, strict=True):
        mystery(Toy()(tokens[:-1]))


def test_violation_error_carries_the_report() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        F.cross_entropy(Toy()(tokens[1:]), tokens[1:], reduction="sum").item()
    assert targets(trace, "CT002") == set(range(1, len(tokens)))
    with pytest.raises(causaltrace.ViolationError, match="CT002"):
        trace.raise_if_violation()


def test_label_that_is_the_ignored_class_is_not_lost() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        values = F.cross_entropy(
            Toy()(tokens[:-1]), tokens[1:], ignore_index=int(tokens[12]), reduction="none"
        )
        bias = (
            values[tokens[1:] == tokens[12]][-1:].detach() * 0.5 + values[10:12].max()
        )  # 0 because of a label
        trace.score(F.cross_entropy(Toy()(tokens[:5]) + bias, tokens[1:6], reduction="none"))
    assert targets(trace) == set(range(1, 6))


def test_the_report_says_when_and_with_what_it_was_made():
    with causaltrace.watch(torch.arange(5)) as trace:
        pass
    run = trace.report.run
    assert run.time.endswith("Z") and dict(run.versions)["torch"] == str(torch.__version__)
    assert (run.command, run.revision) == ("", ""), "the command line knows these"


def test_a_watch_can_be_followed_while_it_runs():
    tokens = torch.randint(0, 7, (9,))
    emb = torch.nn.Embedding(7, 7)
    seen = []
    trace = causaltrace.watch(tokens)
    trace.follow(lambda watch: seen.append(watch.standing))
    with trace, torch.no_grad():
        for i in range(0, 8, 4):
            x, y = tokens[i : i + 4], tokens[i + 1 : i + 5]
            F.cross_entropy(emb(x) + emb(y), y, reduction="sum").item()
    assert [(s.scored, s.labels, s.findings, s.opaque) for s in seen] == [(4, 9, 4, 0), (8, 9, 8, 0)]


@pytest.mark.parametrize(
    "number",
    [
        lambda t: t.float(),
        lambda t: t.to(torch.float64).clone(),
        lambda t: torch.empty(t.shape).copy_(t),
        lambda t: torch.zeros(t.shape).index_put((torch.arange(len(t)),), t.float()),
        lambda t: torch.stack([t, t])[0].double(),
        lambda t: torch.where(t >= 0, t, torch.zeros(())),
        lambda t: torch.cat([t, torch.zeros(1)])[:-1],
        lambda t: t.half().flip(0).flip(0).float(),
    ],
    ids=["float", "to", "copy_", "index_put", "stack", "where", "cat", "flip"],
)
def test_a_label_as_a_number_is_not_lost(number: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A copy in a floating dtype is no verbatim label, but its value depends on the label all the same."""
    tokens = stream(9)
    with causaltrace.watch(tokens) as trace:
        logits = torch.randn(8, VOCAB) + number(tokens[1:]).flip(0)[:, None]
        F.cross_entropy(logits, tokens[1:], reduction="none").sum()
    assert {(f.target, f.source) for f in trace.report.violations} >= {(1, 8), (2, 7), (3, 6), (4, 5)}
