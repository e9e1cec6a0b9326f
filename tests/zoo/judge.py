"""One model: what the watch reports for a batch of two documents, and what flipping every token finds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from tests.zoo.models import Unbuilt
from tests.zoo.shrink import VOCABULARY

#: Documents in the batch, and tokens that each one feeds to the model.
BATCH, LENGTH = 2, 10
#: Other values for each token; the first is 0, which is padding where a model has any.
VALUES = 3
#: Other documents in which a reported pair may show that did not show in this one.
ELSEWHERE = 6
#: Changes of logits, next to the largest logit, that are rounding: how many rows a matrix product has decides
#: in which order it adds.
ROUNDING = 1e-5


class Verdict(NamedTuple):
    """What was found. ``expected`` is the status that the flips ask for. bool ``[scored, labels]``:
    ``reported``; ``moved`` by some flip; ``rounding``, moved by no more than that; ``elsewhere``, reported
    and moved only in other documents (a comparison that came out otherwise there)."""

    status: str
    expected: str
    reported: Tensor
    moved: Tensor
    rounding: Tensor
    elsewhere: Tensor
    opaque: list[str]
    escapes: list[str]

    @property
    def missed(self) -> Tensor:
        return self.moved & ~self.rounding & ~self.reported

    @property
    def larger(self) -> Tensor:
        return self.reported & ~self.moved & ~self.elsewhere

    @property
    def sound(self) -> bool:
        """Nothing missed; a violation where a label that was not known yet reaches a score."""
        return not self.missed.any() and (self.expected == "clean" or self.status == "violation")

    @property
    def exact(self) -> bool:
        return not self.missed.any() and not self.larger.any()


def roughen(model: nn.Module) -> None:
    """Weights so large that every dependence shows: no norm at 1, no bias at 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point():
                continue
            noise = torch.randn(p.shape, generator=generator).to(p)
            if p.ndim < 2 or "A_log" in name:
                p += 0.1 * noise
            else:
                p.copy_(noise if "embed" in name else noise / p.shape[-1] ** 0.5)


def documents(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (BATCH, LENGTH + 1), generator=generator)


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        out: Tensor = model(ids).logits
    return out


def judge(model: nn.Module, values: int = VALUES) -> Verdict:
    """Score two documents inside a watch, and flip every one of their tokens outside.

    Raises:
        Unbuilt: the model does not run by itself, or does not give a distribution for each token.
    """
    roughen(model)
    ids = documents(seed=1)
    try:
        plain = logits(model, ids[:, :-1])
    except Exception as error:
        raise Unbuilt(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    if plain.shape[:2] != (BATCH, LENGTH):
        raise Unbuilt(f"logits of shape {list(plain.shape)} for {BATCH} x {LENGTH} tokens")
    with causaltrace.watch(ids, precision="exact") as trace:
        out = logits(model, ids[:, :-1])
        with torch.no_grad():
            F.cross_entropy(out.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")
    assert torch.equal(out, plain), "the watch changed the logits, or they are random"
    report, size = trace.report, ids.numel()
    scored = torch.arange(size).view(ids.shape)[:, 1:].flatten()
    assert sorted(report.positions) == scored.tolist()
    reported = torch.zeros(size, size, dtype=torch.bool)
    reported[report.positions] = trace.matrix()
    change = torch.zeros(size, size)
    change[scored] = changes(model, ids, range(size), values)
    moved, firm = change > 0, change > ROUNDING
    elsewhere = torch.zeros_like(moved)
    doubtful = reported & ~moved
    for seed in range(2, 2 + ELSEWHERE):
        if not (doubtful & ~elsewhere).any():
            break
        labels = (doubtful & ~elsewhere).any(0).nonzero()[:, 0].tolist()
        elsewhere[scored] |= changes(model, documents(seed), labels, values) > ROUNDING
    late = torch.arange(size) >= torch.arange(size)[:, None]
    return Verdict(
        report.status,
        "violation" if bool((firm & late).any()) else "clean",
        reported,
        moved,
        moved & ~firm,
        elsewhere & doubtful,
        [f"{n.message.split()[0]} ({n.site})" for n in report.opaque],
        [str(n.site) for n in report.escapes],
    )


def changes(model: nn.Module, ids: Tensor, labels: Iterable[int], values: int) -> Tensor:
    """``[scores, labels]``: the largest change of a distribution for some other value of a label, next to the
    largest logit."""
    base = logits(model, ids[:, :-1])
    scale = base[base.isfinite()].abs().max()
    found = torch.zeros(BATCH * LENGTH, ids.numel())
    for label in labels:
        row, column = divmod(label, LENGTH + 1)
        if column == LENGTH:
            continue  # is scored, and goes into nothing
        for value in others(int(ids[row, column]), values):
            flipped = ids[:, :-1].clone()
            flipped[row, column] = value
            out = logits(model, flipped)
            change = torch.where(out == base, 0, (out - base).abs() / scale).nan_to_num(1.0, 1.0)
            found[:, label] = found[:, label].maximum(change.amax(-1).flatten())
    return found


def others(value: int, count: int) -> list[int]:
    """0, and other ids spread over the vocabulary."""
    step = VOCABULARY // (count + 1)
    return [0, *[(value + 1 + k * step) % VOCABULARY for k in range(1, count)]]
