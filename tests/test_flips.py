"""The oracle is right: legal evals give nothing, the others exactly the pairs that their loops imply."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import flips
from tests.flips import CASES, Case, Pair

LEGAL = [name for name, case in CASES.items() if case.legal]
LAST = flips.N_TOKENS - 1


def up_to(ends: dict[int, int]) -> set[Pair]:
    """Pairs (l, t) with t <= l <= ends[t]."""
    return {(label, target) for target, end in ends.items() for label in range(target, end + 1)}


def window_ends(config: Any) -> list[range]:
    """The positions that each sliding window scores."""
    return [fresh for _, fresh in flips._windows(flips.N_TOKENS, config.window, config.stride)]


def per_batch(windows: list[range], batch: int) -> list[list[range]]:
    return [windows[first : first + batch] for first in range(0, len(windows), batch)]


def knows_context(case: Case, t: int) -> bool:
    """Did another token that was counted by then follow the same one? With hashes that collide, any one."""
    tokens = case.tokens.tolist()
    counted = tokens[: (t - 1) // case.config.chunk * case.config.chunk]
    return bool(counted) if case.name == "ngram_hashed" else tokens[t - 1] in counted


def expected_pairs(name: str) -> set[Pair]:
    """What follows from the loop: how far ahead the state that scored a position had looked."""
    config = CASES[name].config
    if name == "slot_standard":  # one delta saw every target of the batch
        groups = per_batch(window_ends(config), config.batch)
        return up_to({t: group[-1][-1] for group in groups for fresh in group for t in fresh})
    if name == "slot_per_sample":  # one delta saw every target of its window
        return up_to({t: fresh[-1] for fresh in window_ends(config) for t in fresh})
    if name.startswith(
        "slot_context"
    ):  # one delta saw the batch's contexts; the last ends before its new labels
        groups = per_batch(window_ends(config)[1:], config.batch)
        return up_to({t: group[-1][0] - 1 for group in groups for fresh in group for t in fresh})
    if name == "ttt_train_first":
        size = config.chunk
        return up_to({t: min((t - 1) // size * size + size, LAST) for t in range(1, LAST + 1)})
    if name in ("ttt_multi_epoch", "ttt_saved", "two_pass"):
        return up_to(dict.fromkeys(range(1, LAST + 1), LAST))
    if name == "oracle_min":  # the label chooses, everywhere
        return {(t, t) for t in range(1, LAST + 1)}
    if name in ("blend_target", "tilt_gated", "ngram_hashed"):  # where the cache knows the context
        return {(t, t) for t in range(1, LAST + 1) if knows_context(CASES[name], t)}
    raise KeyError(name)


@pytest.mark.parametrize("name", CASES)
def test_the_schedule_names_the_scored_rows(name: str) -> None:
    flips.check_schedule(CASES[name])


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_eval_has_no_violating_pair(name: str) -> None:
    pairs = flips.dependencies(CASES[name])
    assert all(label < target for label, target in pairs)
    assert {(target - 1, target) for target in range(1, LAST + 1)} <= pairs  # it does see the prefix


@pytest.mark.parametrize("name", [name for name in CASES if name not in LEGAL])
def test_a_leak_reaches_exactly_as_far_as_the_loop_implies(name: str) -> None:
    assert flips.violating_pairs(CASES[name]) == expected_pairs(name)


@pytest.mark.parametrize(
    "name",
    ["slot_standard", "slot_per_sample", "ttt_train_first", "ttt_multi_epoch", "ttt_saved", "two_pass"],
)
def test_fitting_on_what_is_scored_spoils_every_position(name: str) -> None:
    assert flips.own_labels(CASES[name]) == set(range(1, LAST + 1))


@pytest.mark.parametrize("batch", [4, 32])
def test_a_shared_context_delta_spares_only_the_last_window_of_each_batch(batch: int) -> None:
    case = CASES[f"slot_context_batch{batch}"]
    opening, *windows = window_ends(case.config)
    spared = {t for group in per_batch(windows, batch) for t in group[-1]} | set(opening)
    positions = flips.violating_positions(
        case.evaluate, case.make_model, case.tokens, case.config, case.vocab, case.schedule
    )
    assert positions == set(range(1, LAST + 1)) - spared


def test_plain_windows_see_their_own_inputs_and_nothing_else() -> None:
    case = CASES["plain_sliding"]
    windows = flips._windows(flips.N_TOKENS, case.config.window, case.config.stride)
    seen = {(label, t) for start, fresh in windows for t in fresh for label in range(start, t)}
    assert flips.dependencies(case) == seen


def test_documents_do_not_touch_each_other() -> None:
    case = CASES["lora_documents"]
    for label, target in flips.dependencies(case):
        document = (target - 1) // case.config.document
        assert label >= document * case.config.document


def test_a_peek_at_the_own_label_is_seen() -> None:
    """A logit bonus for the realised token moves only the row that it scores."""

    def peek(model: torch.nn.Module, tokens: Tensor, config: Any) -> float:
        with torch.no_grad():
            logits = model(tokens[None, :-1])[0]
            logits = logits + 1e-6 * F.one_hot(tokens[1:], flips.VOCAB)
            return F.cross_entropy(logits, tokens[1:]).item()

    case = short(peek)
    assert flips.violating_pairs(case) == {(t, t) for t in range(1, len(case.tokens))}


def test_charges_that_add_up_to_a_distribution_are_no_dependence() -> None:
    """The charge of a position moves with its label in any case; the sum over all classes tells."""

    def charge(model: torch.nn.Module, tokens: Tensor, weight: Tensor) -> float:
        with torch.no_grad():
            nll = F.cross_entropy(model(tokens[None, :-1])[0], tokens[1:], reduction="none")
            nll = nll * weight[tokens[1:]]
            return nll.double().mean().item()

    def schedule(config: Any, n_tokens: int) -> list[flips.ScoredRow]:
        return [flips.ScoredRow(0, t - 1, t) for t in range(1, n_tokens)]

    case = CASES["tilt_hint"]
    case = dataclasses.replace(case, evaluate=charge, config=torch.ones(flips.FEW), schedule=schedule)
    case = dataclasses.replace(case, tokens=case.tokens[:9].clone())
    flips.check_schedule(case)
    assert not flips.violating_pairs(case)
    weighted = dataclasses.replace(case, config=torch.linspace(0.9, 1, flips.FEW))
    assert flips.violating_pairs(weighted) == {(t, t) for t in range(1, 9)}


def test_a_schedule_that_points_at_the_wrong_rows_is_refused() -> None:
    case = CASES["mean_loss"]

    def shifted(config: Any, n_tokens: int) -> list[flips.ScoredRow]:
        rows = case.schedule(config, n_tokens)
        return [
            row._replace(position=other.position) for row, other in zip(rows, reversed(rows), strict=True)
        ]

    with pytest.raises(AssertionError, match="another target"):
        flips.check_schedule(dataclasses.replace(case, schedule=shifted))


def short(evaluate: flips.Evaluate) -> Case:
    """A one-call eval over the first 9 tokens."""
    case = CASES["mean_loss"]
    return dataclasses.replace(case, evaluate=evaluate, tokens=case.tokens[:9].clone())
