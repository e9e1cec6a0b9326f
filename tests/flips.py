"""The ground truth: flip every label, run the whole eval again, and see which scored rows moved.

Independent of causaltrace, on purpose. A spy on the loss functions keeps the log-probability rows of a run;
``Case.schedule`` says, by loop arithmetic alone, which row of which call scored which position. Schedules are
checked too: the scored rows must carry the right targets and add up to the number that the eval returns.

Caches and mixers need not make rows at all. There a spy keeps what each position is charged, and a position
depends on its own label if its probabilities, over the runs with each class in its place, do not add up to 1.

Runs are float64, single-threaded and deterministic, so rows are compared exactly.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from examples import (
    blend_target,
    byte_mixer,
    lora_documents,
    mean_loss,
    ngram_dict,
    ngram_full,
    ngram_hashed,
    oracle_min,
    plain_sliding,
    slot_context,
    slot_per_sample,
    slot_standard,
    tilt_gated,
    tilt_hint,
    ttt_multi_epoch,
    ttt_saved,
    ttt_score_first,
    ttt_train_first,
    two_pass,
    warmup_restored,
)
from examples.common import GPT, ModelConfig, build_model

Evaluate = Callable[[Any, Tensor, Any], float]
MakeModel = Callable[[], torch.nn.Module]
Pair = tuple[int, int]


class ScoredRow(NamedTuple):
    """Row ``row`` of the ``call``-th spied loss call is the distribution that scored ``position``."""

    call: int
    row: int
    position: int


Schedule = Callable[[Any, int], list[ScoredRow]]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One eval at a size that can be flipped exhaustively. ``make_model`` gives a fresh float64 copy.

    ``charged``: the schedule speaks of calls that add up charges, and of charges instead of rows.
    """

    name: str
    evaluate: Evaluate
    make_model: MakeModel
    tokens: Tensor
    config: Any
    vocab: int
    schedule: Schedule
    legal: bool
    charged: bool = False

    @property
    def scored(self) -> list[int]:
        """Scored positions, in scoring order."""
        return [row.position for row in self.schedule(self.config, len(self.tokens))]


# ---------------------------------------------------------------------------------------------- one run


class Spy:
    """Keeps the log-probability rows or charges that the schedule asks for, in the order of the calls."""

    def __init__(self, schedule: list[ScoredRow]) -> None:
        self.calls = 0
        self.wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for slot, (call, row, _) in enumerate(schedule):
            self.wanted[call].append((slot, row))
        self.rows: dict[int, Tensor] = {}
        self.targets: dict[int, int] = {}

    @contextlib.contextmanager
    def on_charges(self) -> Iterator[None]:
        """Examples without rows add ``nll.double()`` to their total, and call it nowhere else."""
        double = Tensor.double

        def spied_double(nll: Tensor) -> Tensor:
            self._keep(nll.detach().reshape(-1, 1), None)
            return double(nll)

        with mock.patch.object(Tensor, "double", spied_double):
            yield

    @contextlib.contextmanager
    def on_losses(self) -> Iterator[None]:
        cross_entropy, log_softmax = F.cross_entropy, F.log_softmax

        def spied_cross_entropy(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self._keep(log_softmax(input.detach(), dim=-1), target)
            return cross_entropy(input, target, *args, **kwargs)

        def spied_log_softmax(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            output = log_softmax(input, *args, **kwargs)
            self._keep(output.detach(), None)
            return output

        with (
            mock.patch.object(F, "cross_entropy", spied_cross_entropy),
            mock.patch.object(F, "log_softmax", spied_log_softmax),
        ):
            yield

    def _keep(self, rows: Tensor, targets: Tensor | None) -> None:
        rows = rows.flatten(0, -2)
        for slot, row in self.wanted.get(self.calls, ()):
            self.rows[slot] = rows[row].clone()
            if targets is not None:
                self.targets[slot] = int(targets.flatten()[row])
        self.calls += 1


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """One thread, so that equal inputs give equal bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def scored_rows(case: Case, tokens: Tensor) -> tuple[Tensor, float]:
    """Rows [scores, vocab] of log-probabilities, or charges [scores, 1], of one run over ``tokens``, and the
    number that the eval returns."""
    schedule = case.schedule(case.config, len(tokens))
    spy = Spy(schedule)
    with spy.on_charges() if case.charged else spy.on_losses():
        value = case.evaluate(case.make_model(), tokens, case.config)
    missing = set(range(len(schedule))) - set(spy.rows)
    assert not missing, f"{case.name}: the schedule names loss calls or rows that never happened"
    for slot, target in spy.targets.items():
        position = schedule[slot].position
        assert target == tokens[position], f"{case.name}: {schedule[slot]} scored another target"
    rows = torch.stack([spy.rows[slot] for slot in range(len(schedule))])
    assert rows.isfinite().all()
    return rows, float(value)


def check_schedule(case: Case) -> None:
    """The schedule scores every position once, and its rows add up to what the eval claims."""
    assert sorted(case.scored) == list(range(1, len(case.tokens)))
    with single_threaded():
        rows, value = scored_rows(case, case.tokens)
    targets = case.tokens[torch.tensor(case.scored)]
    charges = rows if case.charged else -rows.gather(-1, targets[:, None])
    mean = charges.mean().item()
    assert abs(mean - value) < 1e-9, f"{case.name}: scheduled rows give {mean}, the eval {value}"


# ------------------------------------------------------------------------------------------- the oracle


#: How far from 1 the probabilities of all classes may add up, for they are rounded.
ROUNDING = 1e-9


def _replacements(label: int, vocab: int, count: int) -> list[int]:
    """``count`` other ids, spread over the vocabulary."""
    step = max(1, (vocab - 1) // count)
    return [(label + 1 + index * step) % vocab for index in range(min(count, vocab - 1))]


def _moved(case: Case, label: int, runs: list[Tensor]) -> list[int]:
    """Slots that differ between runs with other classes as a label; its own charge, if they are no
    distribution's."""
    differ = (torch.stack(runs[1:]) != runs[0]).any(0).any(-1)
    if case.charged and label in case.scored:
        own = case.scored.index(label)
        total = torch.stack(runs)[:, own].neg().exp().sum()
        differ[own] = abs(total - 1) > ROUNDING
    return differ.nonzero().flatten().tolist()


@functools.cache
def dependencies(case: Case, replacements: int = 3) -> frozenset[Pair]:
    """All (label l, scored position t) pairs whose row moved when label l was flipped, legal ones too.

    Charges need all classes in the place of each label.
    """
    positions = case.scored
    replacements = case.vocab - 1 if case.charged else replacements
    found: set[Pair] = set()
    with single_threaded():
        base, _ = scored_rows(case, case.tokens)
        again, _ = scored_rows(case, case.tokens)
        assert torch.equal(base, again), f"{case.name} is not deterministic"
        for label, original in enumerate(case.tokens.tolist()):
            runs = [base]
            for other in _replacements(original, case.vocab, replacements):
                flipped = case.tokens.clone()
                flipped[label] = other
                runs.append(scored_rows(case, flipped)[0])
            found.update((label, positions[slot]) for slot in _moved(case, label, runs))
    return frozenset(found)


def violating_pairs(case: Case, replacements: int = 3) -> set[Pair]:
    """Pairs (label l, scored position t) with l >= t: the row of t moved with its own or a later label."""
    return {(label, target) for label, target in dependencies(case, replacements) if label >= target}


def own_labels(case: Case, replacements: int = 3) -> set[int]:
    """Positions whose row moved with the label that it scores."""
    return {target for label, target in dependencies(case, replacements) if label == target}


def violating_positions(
    evaluate: Evaluate,
    make_model: MakeModel,
    tokens: Tensor,
    config: Any,
    vocab: int,
    schedule: Schedule,
    replacements: int = 3,
) -> set[int]:
    """Positions t whose scored distribution depends on a label l >= t. Needs no trace, only re-runs."""
    case = Case("eval", evaluate, make_model, tokens, config, vocab, schedule, legal=False)
    return {target for _, target in violating_pairs(case, replacements)}


# -------------------------------------------------------------------------------------------- schedules
# Which loss call and row scores which position, from the loops' arithmetic; written apart from the examples.


def _windows(n_tokens: int, window: int, stride: int) -> list[tuple[int, range]]:
    """(first input, newly scored positions) of every sliding window."""
    last = n_tokens - 1
    window = min(window, last)
    ends = [window]
    while ends[-1] < last:
        ends.append(min(ends[-1] + stride, last))
    starts = [1, *(end + 1 for end in ends[:-1])]
    return [(end - window, range(start, end + 1)) for start, end in zip(starts, ends, strict=True)]


def sliding_schedule(config: Any, n_tokens: int) -> list[ScoredRow]:
    """One call per window; row r of a window that starts at s predicts position s + r + 1."""
    return [
        ScoredRow(call, position - start - 1, position)
        for call, (start, fresh) in enumerate(_windows(n_tokens, config.window, config.stride))
        for position in fresh
    ]


def _batched_windows(
    config: Any, windows: list[tuple[int, range]], first_call: int, length: int
) -> list[ScoredRow]:
    rows = []
    for group, first in enumerate(range(0, len(windows), config.batch)):
        call = first_call + group * (config.steps + 1) + config.steps
        for row, (start, fresh) in enumerate(windows[first : first + config.batch]):
            rows += [ScoredRow(call, row * length + position - start - 1, position) for position in fresh]
    return rows


def slot_schedule(config: Any, n_tokens: int) -> list[ScoredRow]:
    """Per batch: one call per step of the fit, then the call that scores."""
    windows = _windows(n_tokens, config.window, config.stride)
    return _batched_windows(config, windows, 0, min(config.window, n_tokens - 1))


def slot_context_schedule(config: Any, n_tokens: int) -> list[ScoredRow]:
    """As ``slot_schedule``, after one unadapted call for the first window."""
    opening, *windows = _windows(n_tokens, config.window, config.stride)
    rows = [ScoredRow(0, position - 1, position) for position in opening[1]]
    return rows + _batched_windows(config, windows, 1, min(config.window, n_tokens - 1))


def chunk_schedule(config: Any, n_tokens: int) -> list[ScoredRow]:
    """One call per chunk, which scores all of it."""
    positions = range(1, n_tokens)
    return [ScoredRow((t - 1) // config.chunk, (t - 1) % config.chunk, t) for t in positions]


def token_schedule(config: Any, n_tokens: int) -> list[ScoredRow]:
    """One call per position."""
    return [ScoredRow(t - 1, 0, t) for t in range(1, n_tokens)]


def saved_schedule(config: Any, n_tokens: int) -> list[ScoredRow]:
    """``epochs`` training calls per chunk, all of them before the calls that score."""
    chunks = -(-(n_tokens - 1) // config.chunk)
    return [
        ScoredRow(config.epochs * chunks + call, row, t) for call, row, t in chunk_schedule(config, n_tokens)
    ]


def warmup_schedule(config: Any, n_tokens: int) -> list[ScoredRow]:
    """The calls of the warm-up; then per chunk one that scores and one that trains."""
    return [
        ScoredRow(config.warmup_steps + 2 * call, row, t) for call, row, t in chunk_schedule(config, n_tokens)
    ]


def train_first_schedule(config: Any, n_tokens: int) -> list[ScoredRow]:
    """Per chunk: ``epochs`` training calls, then the call that scores."""
    per_chunk = config.epochs + 1
    return [
        ScoredRow(call * per_chunk + config.epochs, row, t)
        for call, row, t in chunk_schedule(config, n_tokens)
    ]


def multi_epoch_schedule(config: Any, n_tokens: int) -> list[ScoredRow]:
    """Per epoch and chunk: a scoring call and a training call. Only the last epoch is reported."""
    chunks = -(-(n_tokens - 1) // config.chunk)
    skipped = (config.epochs - 1) * chunks * 2
    return [ScoredRow(skipped + call * 2, row, t) for call, row, t in chunk_schedule(config, n_tokens)]


def score_first_schedule(config: Any, n_tokens: int) -> list[ScoredRow]:
    """Per chunk: one scoring call per sequence, then ``epochs`` training calls per sequence."""
    rows, call, last = [], 0, n_tokens - 1
    for chunk in range(0, last, config.chunk):
        size = min(config.chunk, last - chunk)
        sequences = -(-size // config.sequence)
        for offset in range(size):
            sequence, row = divmod(offset, config.sequence)
            rows.append(ScoredRow(call + sequence, row, chunk + offset + 1))
        call += sequences * (1 + config.epochs)
    return rows


def lora_schedule(config: Any, n_tokens: int) -> list[ScoredRow]:
    """One call per chunk of a batch of documents; its rows are document-major."""
    rows: list[ScoredRow] = []
    call, first, last = 0, 0, n_tokens - 1
    while first < last:
        length = min(config.document, last - first)
        documents = min(config.batch, (last - first) // length)
        for begin in range(0, length, config.chunk):
            width = min(config.chunk, length - begin)
            rows += [
                ScoredRow(call, document * width + offset, first + document * length + begin + offset + 1)
                for document in range(documents)
                for offset in range(width)
            ]
            call += 1
        first += documents * length
    return rows


# ------------------------------------------------------------------------------------------------ cases

VOCAB = 16
FEW = 8  # classes of the evals that are charged: all of them are tried at each position
N_TOKENS = 44  # 43 scores, a prime: every loop below has a short tail


def _make_model(norm: str, tied: bool, vocab: int = VOCAB) -> MakeModel:
    config = ModelConfig(vocab=vocab, context=16, layers=1, heads=2, dim=8, norm=norm, tied=tied)
    model: GPT = build_model(config, seed=1).double()
    return lambda: copy.deepcopy(model)


def _tokens(vocab: int = VOCAB) -> Tensor:
    return torch.randint(vocab, (N_TOKENS,), generator=torch.Generator().manual_seed(2))


def _case(
    name: str,
    module: Any,
    schedule: Schedule,
    config: Any,
    *,
    legal: bool | None = None,
    norm: str = "rms",
    tied: bool = True,
) -> Case:
    legal = module.LEGAL if legal is None else legal
    return Case(name, module.evaluate, _make_model(norm, tied), _tokens(), config, VOCAB, schedule, legal)


def _charged(module: Any, schedule: Schedule, config: Any) -> Case:
    name = module.__name__.rpartition(".")[2]
    model, tokens = _make_model("rms", True, FEW), _tokens(FEW)
    return Case(name, module.evaluate, model, tokens, config, FEW, schedule, module.LEGAL, charged=True)


def _cases() -> Iterator[Case]:
    slot: dict[str, Any] = {"window": 16, "stride": 4, "steps": 3, "lr": 0.05}
    yield _case("plain_sliding", plain_sliding, sliding_schedule, plain_sliding.Config(16, 4))
    yield _case("mean_loss", mean_loss, chunk_schedule, mean_loss.Config(chunk=16), norm="layer")

    standard = slot_standard.Config(**slot, batch=4)
    yield _case("slot_standard", slot_standard, slot_schedule, standard)
    per_sample = slot_per_sample.Config(**slot, batch=4)
    yield _case("slot_per_sample", slot_per_sample, slot_schedule, per_sample, tied=False)
    for batch in (1, 4, 32):
        context = slot_context.Config(**slot, batch=batch)
        name = f"slot_context_batch{batch}"
        yield _case(name, slot_context, slot_context_schedule, context, legal=batch == 1)

    for optimizer, lr in (("sgd", 0.1), ("adamw", 0.01)):
        score_first = ttt_score_first.Config(chunk=18, sequence=10, optimizer=optimizer, lr=lr)
        yield _case(f"ttt_score_first_{optimizer}", ttt_score_first, score_first_schedule, score_first)
    train_first = ttt_train_first.Config(chunk=12, lr=0.1)
    yield _case("ttt_train_first", ttt_train_first, train_first_schedule, train_first)
    multi_epoch = ttt_multi_epoch.Config(chunk=12, lr=0.01)
    yield _case("ttt_multi_epoch", ttt_multi_epoch, multi_epoch_schedule, multi_epoch, norm="layer")
    documents = lora_documents.Config(batch=3, document=15, chunk=4, rank=2, lr=0.05)
    yield _case("lora_documents", lora_documents, lora_schedule, documents)
    yield _case("ttt_saved", ttt_saved, saved_schedule, ttt_saved.Config(chunk=12, lr=0.01))
    yield _case(
        "warmup_restored", warmup_restored, warmup_schedule, warmup_restored.Config(chunk=12, lr=0.01)
    )

    yield _charged(ngram_dict, token_schedule, ngram_dict.Config(chunk=12, order=2))
    hashed = ngram_hashed.Config(chunk=12, order=2, buckets=4, seen_at_least=1)  # all contexts collide
    yield _charged(ngram_hashed, chunk_schedule, hashed)
    yield _charged(ngram_full, chunk_schedule, ngram_full.Config(chunk=12, order=2, buckets=31))
    yield _charged(tilt_gated, chunk_schedule, tilt_gated.Config(chunk=12, class_bits=1))
    for module in (oracle_min, blend_target, two_pass, tilt_hint, byte_mixer):
        yield _charged(module, chunk_schedule, module.Config(chunk=12))


CASES: dict[str, Case] = {case.name: case for case in _cases()}
