"""Caches as they are written: totals are read at earlier labels, and divide the counts of rows.

Score first, then count: clean. Count first: a violation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.report.model import Report

C, LENGTH, CHUNK, BUCKETS = 8, 72, 16, 64
WEIGHTS = torch.randn(C, C, generator=torch.Generator().manual_seed(9))


class Cache:
    """Counts of pairs, of contexts and of classes, in numpy and in torch."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self.ids = tokens, tokens.numpy()
        self.pairs, self.contexts, self.classes = np.zeros((C, C)), np.zeros(C), np.zeros(C)
        self.whole, self.whole_contexts = np.zeros((C, C), np.int64), np.zeros(C, np.int64)
        self.hashed, self.hashed_contexts = np.zeros((BUCKETS, C)), np.zeros(BUCKETS)
        self.t_pairs, self.t_contexts, self.t_classes = torch.zeros(C, C), torch.zeros(C), torch.zeros(C)

    def hash(self, at: Any) -> Any:
        keys = self.ids[at - 1].astype(np.uint64) * np.uint64(11) % np.uint64(BUCKETS)
        return keys.astype(np.int64)

    def count(self, at: Any) -> None:
        x, y = self.ids[at - 1], self.ids[at]
        for pairs, contexts in ((self.pairs, self.contexts), (self.whole, self.whole_contexts)):
            np.add.at(pairs, (x, y), 1)
            np.add.at(contexts, x, 1)
        np.add.at(self.classes, y, 1)
        np.add.at(self.hashed, (self.hash(at), y), 1)
        np.add.at(self.hashed_contexts, self.hash(at), 1)
        before, after = self.both(at)
        self.t_pairs.index_put_((before, after), torch.ones(()), accumulate=True)
        self.t_contexts.index_add_(0, before, torch.ones(len(before)))
        self.t_classes.index_add_(0, after, torch.ones(len(after)))

    def both(self, at: Any) -> tuple[Tensor, Tensor]:
        first, last = int(at[0]), int(at[-1])
        return self.tokens[first - 1 : last], self.tokens[first : last + 1]

    def model(self, at: Any) -> Tensor:
        return torch.log_softmax(WEIGHTS[self.both(at)[0]], -1)


Score = Callable[[Cache, Any], float]
CHUNKS: dict[str, Score] = {}
TOKENS: dict[str, Score] = {}


def chunk(score: Score) -> Score:
    CHUNKS[score.__name__] = score
    return score


def token(score: Score) -> Score:
    TOKENS[score.__name__] = score
    return score


def charged(p: Any, s: Cache, at: Any) -> float:
    return float(-np.log(p[np.arange(len(at)), s.ids[at]]).sum())


@chunk
def smoothed(s: Cache, at: Any) -> float:
    x = s.ids[at - 1]
    return charged((s.pairs[x] + 0.1) / (s.contexts[x] + 0.1 * C)[:, None], s, at)


@chunk
def interpolated(s: Cache, at: Any) -> float:
    x = s.ids[at - 1]
    n = s.contexts[x]
    trust = n / (n + 3)
    rows = trust[:, None] * s.pairs[x] / np.maximum(n, 1)[:, None] + (1 - trust)[:, None] / C
    return charged(rows, s, at)


@chunk
def discounted(s: Cache, at: Any) -> float:
    x = s.ids[at - 1]
    high = np.maximum(s.pairs[x] - 0.75, 0) / np.maximum(s.contexts[x], 1)[:, None]
    low = (s.classes + 1) / (s.classes.sum() + C)
    return charged(high + (1 - high.sum(1))[:, None] * low, s, at)


@chunk
def one_distribution(s: Cache, at: Any) -> float:
    p = (s.classes + 1) / (s.classes.sum() + C)
    return float(-np.log(p[s.ids[at]]).sum())


@chunk
def one_distribution_at_labels(s: Cache, at: Any) -> float:
    return float(-np.log((s.classes[s.ids[at]] + 1) / (s.classes.sum() + C)).sum())


@chunk
def under_a_mask(s: Cache, at: Any) -> float:
    counts, n = s.hashed[s.hash(at)], s.hashed_contexts[s.hash(at)]
    seen, rows = n >= 2, np.full((len(at), C), 1 / C)
    rows[seen] = counts[seen] / n[seen][:, None]
    return charged(0.5 * rows + 0.5 * s.model(at).exp().numpy(), s, at)


@chunk
def where_there_is_any(s: Cache, at: Any) -> float:
    counts, n = s.hashed[s.hash(at)], s.hashed_contexts[s.hash(at)]
    rows = np.where((n >= 2)[:, None], counts / np.maximum(n, 1)[:, None], 1 / C)
    share = np.where(n >= 2, 0.3, 0.0)[:, None]
    return charged(share * rows + (1 - share) * s.model(at).exp().numpy(), s, at)


@chunk
def divided_where(s: Cache, at: Any) -> float:
    x = s.ids[at - 1]
    n, counts = s.contexts[x], s.pairs[x]
    rows = np.divide(counts, n[:, None], out=np.full(counts.shape, 1 / C), where=n[:, None] > 0)
    return charged(0.5 * rows + 0.5 / C, s, at)


@chunk
def whole_numbers(s: Cache, at: Any) -> float:
    x = s.ids[at - 1]
    return charged((s.whole[x] + 0.5) / (s.whole_contexts[x] + 0.5 * C)[:, None], s, at)


@chunk
def added_to_logits(s: Cache, at: Any) -> float:
    x = s.ids[at - 1]
    logits = WEIGHTS.numpy()[x] + np.log1p(s.pairs[x]) - np.log1p(s.contexts[x])[:, None]
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return float(-logp[np.arange(len(at)), s.ids[at]].sum())


@chunk
def einsum(s: Cache, at: Any) -> float:
    x = s.ids[at - 1]
    return charged(np.einsum("nc,n->nc", s.pairs[x] + 0.1, 1 / (s.contexts[x] + 0.1 * C)), s, at)


@chunk
def clipped(s: Cache, at: Any) -> float:
    x = s.ids[at - 1]
    share = (s.contexts[x].clip(1) / 4).clip(max=1)[:, None]
    rows = (s.pairs[x] + 0.1) / (s.pairs[x] + 0.1).sum(1, keepdims=True)
    return charged(share * rows + (1 - share) / C, s, at)


@chunk
def charges_under_a_mask(s: Cache, at: Any) -> float:
    n, places = s.contexts[s.ids[at - 1]], (np.arange(len(at)), s.ids[at])
    p = s.model(at).exp().numpy()[places].astype(np.float64)
    cached = ((s.pairs[s.ids[at - 1]] + 0.1) / (n + 0.1 * C)[:, None])[places]
    hit = n >= 2
    p[hit] = 0.6 * p[hit] + 0.4 * cached[hit]
    return float(-np.log(p).sum())


@chunk
def charges_with_weights(s: Cache, at: Any) -> float:
    n, places = s.contexts[s.ids[at - 1]], (np.arange(len(at)), s.ids[at])
    share, p = np.where(n >= 2, 0.4, 0.0), s.model(at).exp().numpy()[places].astype(np.float64)
    cached = ((s.pairs[s.ids[at - 1]] + 0.1) / (n + 0.1 * C)[:, None])[places]
    return float(-np.log((1 - share) * p + share * cached).sum())


PRIOR = np.arange(1.0, C + 1) / np.arange(1.0, C + 1).sum()


@chunk
def rare_words_count_more(s: Cache, at: Any) -> float:
    x = s.ids[at - 1]
    logits = (0.1 / (0.1 + PRIOR[x]))[:, None] * (WEIGHTS.numpy()[x] @ WEIGHTS.numpy())
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return charged(np.exp(logp) * 0.5 + 0.5 * (s.pairs[x] + 1) / (s.contexts[x] + C)[:, None], s, at)


@chunk
def in_torch(s: Cache, at: Any) -> float:
    x, y = s.both(at)
    n = s.t_contexts[x]
    trust = (n / (n + 3))[:, None]
    p = trust * s.t_pairs[x] / n.clamp(min=1)[:, None] + (1 - trust) * s.model(at).exp()
    return F.nll_loss(p.log(), y, reduction="sum").item()


@chunk
def gathered_in_torch(s: Cache, at: Any) -> float:
    x, y = s.both(at)
    p = (s.t_pairs[x] + 0.1) / (s.t_contexts.gather(0, x) + 0.1 * C).unsqueeze(1)
    return -p.gather(1, y[:, None]).log().sum().item()


@chunk
def logits_in_torch(s: Cache, at: Any) -> float:
    x, y = s.both(at)
    logits = WEIGHTS[x] + s.t_pairs[x].log1p() - s.t_contexts[x].log1p()[:, None]
    return F.cross_entropy(logits, y, reduction="none").double().sum().item()


@chunk
def temperature_in_torch(s: Cache, at: Any) -> float:
    x, y = s.both(at)
    return F.cross_entropy(WEIGHTS[x] / (1 + 0.1 * s.t_contexts[x])[:, None], y).item() * len(y)


@chunk
def under_a_mask_in_torch(s: Cache, at: Any) -> float:
    x, y = s.both(at)
    n, p = s.t_contexts[x], s.model(at).exp().clone()
    seen = n > 0
    p[seen] = 0.5 * p[seen] + 0.5 * s.t_pairs[x[seen]] / n[seen][:, None]
    return F.nll_loss(p.log(), y, reduction="sum").item()


@token
def a_number(s: Cache, t: int) -> float:
    a = s.ids[t - 1]
    return -math.log(((s.pairs[a] + 0.1) / (s.contexts[a] + 0.1 * C))[s.ids[t]])


@token
def a_branch(s: Cache, t: int) -> float:
    a = s.ids[t - 1]
    p = (s.pairs[a] + 0.1) / (s.contexts[a] + 0.1 * C) if s.contexts[a] > 2 else np.full(C, 1 / C)
    return -math.log(p[s.ids[t]])


@token
def with_a_model(s: Cache, t: int) -> float:
    a = s.ids[t - 1]
    p = s.model([t])[0].exp().numpy()
    if s.contexts[a] > 0:
        p = 0.6 * p + 0.4 * s.pairs[a] / s.contexts[a]
    return -math.log(p[s.ids[t]])


@token
def a_prior(s: Cache, t: int) -> float:
    a = s.ids[t - 1]
    share = 0.1 / (0.1 + PRIOR[a])
    p = share * (s.pairs[a] + 0.1) / (s.contexts[a] + 0.1 * C) + (1 - share) / C
    return -math.log(p[s.ids[t]])


@token
def one_row(s: Cache, t: int) -> float:
    return -math.log(((s.classes + 1) / (s.classes.sum() + C))[s.ids[t]])


@token
def row_in_torch(s: Cache, t: int) -> float:
    x = s.tokens[t - 1]
    n = s.t_contexts[x]
    trust = n / (n + 2)
    p = trust * (s.t_pairs[x] + 0.1) / (n + 0.1 * C) + (1 - trust) / C
    return -p[s.tokens[t]].log().item()


@token
def item_in_torch(s: Cache, t: int) -> float:
    x = s.tokens[t - 1]
    p = (s.t_pairs[x] + 0.1) / (s.t_contexts[x].item() + 0.1 * C)
    return -math.log(p[s.tokens[t]].item())


@token
def branch_in_torch(s: Cache, t: int) -> float:
    x, p = s.tokens[t - 1], torch.full((C,), 1 / C)
    if s.t_contexts[x] > 1:
        p = 0.5 * p + 0.5 * s.t_pairs[x] / s.t_contexts[x]
    return F.nll_loss(p.log()[None], s.tokens[t : t + 1]).item()


@token
def classes_in_torch(s: Cache, t: int) -> float:
    return -((s.t_classes[s.tokens[t]] + 1) / (s.t_classes.sum() + C)).log().item()


def judged(score: Score, step: int, first: bool) -> Report:
    tokens = torch.randint(0, C, (LENGTH,), generator=torch.Generator().manual_seed(0))
    with causaltrace.watch(tokens) as trace:
        cache, nats = Cache(tokens), 0.0
        for start in range(1, LENGTH, step):
            at = np.arange(start, min(start + step, LENGTH))
            if first:
                cache.count(at)
            nats += score(cache, at if step > 1 else start)
            if not first:
                cache.count(at)
    return trace.report


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHUNKS)
def test_chunk_by_chunk(name: str) -> None:
    assert judged(CHUNKS[name], CHUNK, False).status == "clean"
    assert judged(CHUNKS[name], CHUNK, True).status == "violation"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TOKENS)
def test_token_by_token(name: str) -> None:
    assert judged(TOKENS[name], 1, False).status == "clean"
    assert judged(TOKENS[name], 1, True).status == "violation"
