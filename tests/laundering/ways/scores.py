"""The charge itself: distributions that are none, changed readouts, scores that are chosen or repeated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.laundering import MODEL, SEEN, TILT, VOCAB, Piece, way

#: A second model; it is better on some tokens.
CACHE = MODEL.flip(0).log_softmax(-1)
LOGP = MODEL.log_softmax(-1)
CLASSES = torch.arange(VOCAB)


def parts(tokens: Tensor) -> tuple[Tensor, Tensor]:
    return tokens[:-1], tokens[1:]


def charged(logp: Tensor, targets: Tensor) -> Tensor:
    return -logp.gather(-1, targets[:, None])[:, 0]


def _mixed(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    yield charged((0.5 * LOGP[inputs].exp() + 0.5 * CACHE[inputs].exp()).log(), targets)


def _gated(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    surer = CACHE[inputs].amax(-1, keepdim=True) > LOGP[inputs].amax(-1, keepdim=True)
    yield charged(torch.where(surer, CACHE[inputs], LOGP[inputs]), targets)


def _plain(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    yield charged(LOGP[inputs], targets)


@way("the better of two models on the true token: torch.minimum", legal=_gated)
def oracle_minimum(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    yield torch.minimum(charged(LOGP[inputs], targets), charged(CACHE[inputs], targets))


@way("the same in Python: min() of two numbers", legal=_gated)
def oracle_python(tokens: Tensor) -> Iterator[Tensor]:
    for t in range(1, len(tokens)):
        inputs, targets = tokens[t - 1 : t], tokens[t : t + 1]
        better = min(charged(LOGP[inputs], targets).item(), charged(CACHE[inputs], targets).item())
        yield torch.tensor([better], dtype=torch.float64)


@way("the same in numpy: np.maximum of two probabilities", legal=_mixed)
def oracle_numpy(tokens: Tensor) -> Iterator[Piece]:
    inputs, targets = parts(tokens)
    one, other = (charged(logp[inputs], targets).neg().exp().numpy() for logp in (LOGP, CACHE))
    yield -np.log(np.maximum(one, other))


@way("a blend for the target only, with a count that is no distribution", legal=_mixed)
def target_blend(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    p = charged(LOGP[inputs], targets).neg().exp()
    yield -(0.8 * p + 0.2 * ((inputs * 5 ^ targets * 3) % 4 == 0).double()).log()


def _numpy_mixed(tokens: Tensor) -> Iterator[Piece]:
    x, y = (part.numpy() for part in parts(tokens))
    full = 0.8 * np.exp(LOGP.numpy()[x]) + 0.2 * np.exp(CACHE.numpy()[x])
    yield -np.log(full[np.arange(len(y)), y])


@way("the same in numpy: a blend for the target only", legal=_numpy_mixed)
def target_blend_numpy(tokens: Tensor) -> Iterator[Piece]:
    x, y = (part.numpy() for part in parts(tokens))
    p = np.exp(LOGP.numpy()[x])[np.arange(len(y)), y]
    yield -np.log(0.8 * p + 0.2 * ((x * 5 ^ y * 3) % 4 == 0))


def _hashed_full(tokens: Tensor) -> Iterator[Piece]:
    """The whole vocabulary is looked up and normalised."""
    x, classes, counts = tokens.numpy(), np.arange(VOCAB), np.zeros(8)
    for t in range(1, len(tokens)):
        keys = (x[t - 1] * 5 ^ classes * 3) % 8
        row = counts[keys] + 0.1
        p = 0.5 * LOGP[tokens[t - 1 : t]].exp() + 0.5 * torch.from_numpy(row / row.sum())
        yield charged(p.log(), tokens[t : t + 1])
        np.add.at(counts, (x[t - 1 : t] * 5 ^ x[t : t + 1] * 3) % 8, 1)


@way("hashed counts whose key holds the target: min(full, context) / context", legal=_hashed_full)
def hashed_ratio(tokens: Tensor) -> Iterator[Piece]:
    x, full, context = tokens.numpy(), np.zeros(8), np.zeros(8)
    for t in range(1, len(tokens)):
        key, pair = x[t - 1 : t] * 5 % 8, (x[t - 1 : t] * 5 ^ x[t : t + 1] * 3) % 8
        p = charged(LOGP[tokens[t - 1 : t]], tokens[t : t + 1]).neg().exp().numpy()
        ratio = np.minimum(full[pair], context[key]) / np.maximum(context[key], 1)
        yield -np.log(np.where(context[key] > 0, 0.5 * p + 0.5 * ratio, p))
        np.add.at(full, pair, 1)
        np.add.at(context, key, 1)


def _dict_full(tokens: Tensor) -> Iterator[Tensor]:
    counts: dict[int, list[float]] = defaultdict(lambda: [0.1] * VOCAB)
    for t in range(1, len(tokens)):
        seen = counts[tokens[t - 1].item()] if t > 1 else [0.1] * VOCAB
        row = torch.tensor(seen, dtype=torch.float64)
        p = 0.5 * LOGP[tokens[t - 1 : t]].exp() + 0.5 * row / row.sum()
        yield charged(p.log(), tokens[t : t + 1])
        counts[tokens[t - 1].item()][tokens[t].item()] += 1


@way("counts in a dict, looked up with the target, added for it only", legal=_dict_full)
def dict_ratio(tokens: Tensor) -> Iterator[Tensor]:
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for t in range(1, len(tokens)):
        pair = (tokens[t - 1].item(), tokens[t].item())
        p = charged(LOGP[tokens[t - 1 : t]], tokens[t : t + 1]).neg().exp()
        yield -(0.8 * p + 0.2 * (counts[pair] > 0)).log()
        counts[pair] += 1


@way("a loss that is divided by a number that depends on the label", legal=_plain)
def scaled_by_label(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    yield charged(LOGP[inputs], targets) / (1 + 0.1 * targets)


@way("a loss that is capped", legal=_plain)
def capped(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    yield charged(LOGP[inputs], targets).clamp(max=2.0)


@way("labels of one class are not charged: a mask", legal=_plain)
def masked_class(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    yield charged(LOGP[inputs], targets) * (targets != 3)


@way("labels of one class are not charged: ignore_index", legal=_plain)
def ignored_class(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    yield F.cross_entropy(LOGP[inputs], targets, reduction="none", ignore_index=3)


@way("classes have weights: cross_entropy(weight=)", legal=_plain)
def weighted_classes(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    weight = torch.linspace(0.5, 1.1, VOCAB, dtype=torch.float64)
    yield F.cross_entropy(LOGP[inputs], targets, reduction="none", weight=weight)


@way("scores that are no log-probabilities: nothing normalises them", legal=_plain)
def unnormalised(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    yield charged(LOGP[inputs] + 0.3, targets)


@way("a softmax over a few classes and the target", legal=_plain)
def partial_softmax(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    shown = (MODEL[inputs].argsort(-1).argsort(-1) > 4) | (targets[:, None] == CLASSES)
    yield F.cross_entropy(MODEL[inputs].masked_fill(~shown, -torch.inf), targets, reduction="none")


@way("probabilities above 1: a bonus for the classes that the cache has seen", legal=_mixed)
def bonus(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    yield charged((LOGP[inputs].exp() + 0.2 * (CACHE[inputs] > -2)).log(), targets)


def _tilt_by_prefix(tokens: Tensor) -> Iterator[Tensor]:
    """Towards the token before last, before the row is normalised."""
    inputs, targets = parts(tokens)
    hint = torch.cat([inputs[:1], inputs[:-1]])
    yield charged((LOGP[inputs] + F.one_hot(hint, VOCAB)).log_softmax(-1), targets)


@way("a tilt towards a hint, with its normaliser left out", legal=_tilt_by_prefix)
def tilt_without_scale(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    hint = torch.cat([inputs[:1], inputs[:-1]])
    yield charged(LOGP[inputs], targets) - (targets == hint).double()


@way("a hint that is given only where the target has its class", legal=_tilt_by_prefix)
def gated_hint(tokens: Tensor) -> Iterator[Tensor]:
    inputs, targets = parts(tokens)
    hint = torch.cat([inputs[:1], inputs[:-1]])
    gate = (targets % 2 == hint % 2).double()
    p = LOGP[inputs].exp().gather(-1, hint[:, None])[:, 0]
    yield charged(LOGP[inputs], targets) - gate * ((targets == hint).double() - (1 + (torch.e - 1) * p).log())


def _in_order(tokens: Tensor) -> Iterator[Piece]:
    for t in range(1, len(tokens)):
        yield MODEL[tokens[t - 1 : t]] + TILT * tokens[t - 2 : t - 1].double().sum() * 0.1, t


@way("scored from the last position to the first, with what is scored already", legal=_in_order)
def backwards(tokens: Tensor) -> Iterator[Piece]:
    for t in range(len(tokens) - 1, 0, -1):
        yield MODEL[tokens[t - 1 : t]] + TILT * tokens[t + 1 : t + 2].double().sum() * 0.1, t


@way("the same through Python numbers", legal=_in_order)
def backwards_python(tokens: Tensor) -> Iterator[Piece]:
    for t in range(len(tokens) - 1, 0, -1):
        following = sum(tokens[t + 1 : t + 2].tolist())
        yield MODEL[tokens[t - 1 : t]] + TILT * torch.tensor(following * 0.1, dtype=torch.float64), t


@way("the same through a branch", legal=_in_order)
def backwards_branch(tokens: Tensor) -> Iterator[Piece]:
    for t in range(len(tokens) - 1, 0, -1):
        large = t + 1 < len(tokens) and bool(tokens[t + 1] > 3)
        yield MODEL[tokens[t - 1 : t]] * (1.5 if large else 1.0), t


@way("the same through numpy", legal=_in_order)
def backwards_numpy(tokens: Tensor) -> Iterator[Piece]:
    for t in range(len(tokens) - 1, 0, -1):
        following = tokens[t + 1 : t + 2].numpy() * 0.1
        yield MODEL[tokens[t - 1 : t]] + TILT * torch.from_numpy(following).sum(), t


def _count_as_they_come(tokens: Tensor) -> Iterator[Tensor]:
    counts = torch.zeros(VOCAB, dtype=torch.float64)
    for t in range(1, len(tokens)):
        yield MODEL[tokens[t - 1 : t]] + counts * 0.1
        counts[tokens[t]] += 1


@way("two passes: everything is counted, then everything is scored", legal=_count_as_they_come)
def two_passes(tokens: Tensor) -> Iterator[Tensor]:
    counts = torch.bincount(tokens, minlength=VOCAB)
    yield MODEL[tokens[:-1]] + counts * 0.1


@way("the same after a first pass that scores legally", legal=_count_as_they_come)
def scored_again(tokens: Tensor) -> Iterator[Piece]:
    yield MODEL[tokens[:-1]], 1
    yield MODEL[tokens[:-1]] + torch.bincount(tokens, minlength=VOCAB) * 0.1, 1


@way("the same with counts in numpy", legal=_count_as_they_come)
def scored_again_numpy(tokens: Tensor) -> Iterator[Piece]:
    yield MODEL[tokens[:-1]], 1
    counts = np.bincount(tokens.numpy(), minlength=VOCAB) * 0.1
    yield MODEL[tokens[:-1]] + torch.from_numpy(counts), 1


def _by_prefix(tokens: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(tokens) - 1, SEEN):
        inputs = tokens[start : start + SEEN][: len(tokens) - 1 - start]
        yield MODEL[inputs] + TILT * inputs.double().cumsum(0)[:, None] * 0.1


@way("a mean over the whole window", legal=_by_prefix)
def window_mean(tokens: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(tokens) - 1, SEEN):
        inputs = tokens[start : start + SEEN][: len(tokens) - 1 - start]
        yield MODEL[inputs] + TILT * inputs.double().sum() * 0.1


@way("a decoy is charged first, so that all labels count as scored", legal=_count_as_they_come)
def decoy(tokens: Tensor) -> Iterator[Piece]:
    F.cross_entropy(torch.zeros(len(tokens) - 1, VOCAB), tokens[1:], reduction="none").sum().item()
    yield MODEL[tokens[:-1]] + TILT * (torch.cat([tokens[1:]]).double() * 0.1)[:, None], 1


@way("charged in numpy, and never in torch", legal=_numpy_mixed)
def numpy_only(tokens: Tensor) -> Iterator[Piece]:
    x, y = (part.numpy() for part in parts(tokens))
    row = MODEL.numpy()[x] + TILT.numpy() * y[:, None] * 0.1
    yield np.log(np.exp(row).sum(1)) - row[np.arange(len(y)), y] + 0.01 * np.roll(y, -1)


@way("charged in Python, and never in torch", legal=_dict_full)
def python_only(tokens: Tensor) -> Iterator[Piece]:
    x = tokens.tolist()
    losses = [2.0 - 0.1 * x[t] + 0.01 * x[-1] for t in range(1, len(x))]
    yield torch.tensor(losses, dtype=torch.float64)
