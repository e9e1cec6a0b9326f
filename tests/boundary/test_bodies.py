"""Evals with flex_attention, cond, loops and scans: the verdicts of flips, the bits of an unwatched run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops import scan, while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import causaltrace
from tests.probe import CLASSES, LENGTH, Eval, Seen, flips, stream, watched

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")

DIM = 4
SEP = 3  #: the token that ends a document


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TABLE, HEAD = random(CLASSES, DIM, seed=1), random(DIM, CLASSES, seed=2)
QUERY, KEY, VALUE = (random(DIM, DIM, seed=s) for s in (3, 4, 5))
SLOPES = torch.tensor([0.5, 0.25])


def attention(
    mask: Callable[[Tensor], Callable[..., Tensor]],
    score: Callable[..., Tensor] | None = None,
    call: Callable[..., Any] = flex_attention,
    heads: int = 2,
) -> Eval:
    """One layer; ``mask`` makes a mask function of the input tokens."""

    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        ids = tokens[:-1]
        h = TABLE[ids]
        q, k, v = ((h @ w).view(1, LENGTH, -1, 2).transpose(1, 2) for w in (QUERY, KEY, VALUE))
        k, v = k[:, :heads], v[:, :heads]
        blocks = create_block_mask(mask(ids), None, None, LENGTH, LENGTH, device="cpu")
        out = call(q, k, v, score_mod=score, block_mask=blocks, enable_gqa=heads == 1)
        return out.transpose(1, 2).reshape(LENGTH, DIM) @ HEAD, torch.arange(1, LENGTH + 1)

    return run


def causal(ids: Tensor) -> Callable[..., Tensor]:
    return lambda b, h, i, j: i >= j


def window(ids: Tensor) -> Callable[..., Tensor]:
    return lambda b, h, i, j: (i >= j) & (i - j < 3)


def prefix(ids: Tensor) -> Callable[..., Tensor]:
    return lambda b, h, i, j: (i >= j) | (j < 3)


def documents(ids: Tensor) -> Callable[..., Tensor]:
    """Numbers of documents, from separators that came before."""
    number = (ids == SEP).cumsum(0)
    return lambda b, h, i, j: (number[i] == number[j]) & (i >= j)


def counted(ids: Tensor) -> Callable[..., Tensor]:
    """Keys are hidden by how many separators are still to come."""
    number = (ids == SEP).flip(0).cumsum(0).flip(0)
    return lambda b, h, i, j: (number[j] % 2 == 0) & (i >= j) | (i == j)


def ahead(steps: int) -> Callable[[Tensor], Callable[..., Tensor]]:
    """A key that looks at a token after it; its own query sees it anyway."""
    return lambda ids: lambda b, h, i, j: (i >= j) & (ids[(j + steps) % LENGTH] != SEP) | (i == j)


def alibi(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return score - SLOPES[h] * (i - j)


LAYERS: dict[str, tuple[Eval, bool]] = {
    "causal": (attention(causal), True),
    "sliding window": (attention(window), True),
    "prefix": (attention(prefix), False),
    "documents": (attention(documents), True),
    "separators still to come": (attention(counted), False),
    "looks at the next token": (attention(ahead(1)), True),
    "looks at the token after": (attention(ahead(2)), False),
    "slopes": (attention(causal, alibi), True),
    "one head of keys": (attention(causal, heads=1), True),
    "compiled": (attention(causal, alibi, torch.compile(flex_attention, backend="eager")), True),
    "compiled, prefix": (attention(prefix, None, torch.compile(flex_attention, backend="eager")), False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_attention_verdicts(name: str) -> None:
    run, legal = LAYERS[name]
    tokens = stream(seed=4)
    tokens[[2, 5]] = SEP
    with torch.no_grad():
        found, truth = watched(run, tokens), flips(run, tokens)
        with causaltrace.watch(tokens):
            again = run(tokens)[0]
        assert torch.equal(again, run(tokens)[0])
    assert found.report.status == ("clean" if legal else "violation"), found.report
    assert bool(truth.violating) != legal
    assert found.seen | truth == found.seen  # covers the truth
    if not name.startswith(("documents", "separators", "looks")):  # comparing ids loses which of them differ
        assert found.seen == truth


# -- conditions and loops ---------------------------------------------------------------------------------


def branching(start: int) -> Eval:
    """Rows from ``start`` on are computed by a branch that the token at 4 chooses."""

    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        h = TABLE[tokens[:-1]].cumsum(0)
        late = torch.cond(tokens[4] > 5, lambda h: h.sin() * SLOPES[0], lambda h: h.cos(), (h[start:],))
        return torch.cat((h[:start], late)) @ HEAD, torch.arange(1, len(tokens))

    return run


def looping(start: int) -> Eval:
    """Rows from ``start`` on are halved as often as the token at 4 says."""

    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        h = TABLE[tokens[:-1]].cumsum(0)
        late = while_loop(
            lambda n, h: n > 0, lambda n, h: (n - 1, h * 0.5), (tokens[4].clone(), h[start:].clone())
        )[1]
        return torch.cat((h[:start], late)) @ HEAD, torch.arange(1, len(tokens))

    return run


@pytest.mark.parametrize("make", [branching, looping])
def test_conditions_reach_what_they_choose(make: Callable[[int], Eval]) -> None:
    tokens = stream(seed=4)
    with torch.no_grad():
        found, truth = watched(make(2), tokens), flips(make(2), tokens)
    assert found.report.status == "violation"
    assert found.seen == truth == Seen({3, 4}, [0, 1, 4, 4, 4, 5, 6, 7])


@pytest.mark.parametrize("make", [branching, looping])
def test_conditions_reach_nothing_else(make: Callable[[int], Eval]) -> None:
    """Scores before the token that decides are proved, although they are fixed after it was read."""
    tokens = stream(seed=4)
    with torch.no_grad():
        report = watched(make(5), tokens).report
    assert report.status == "clean" and not report.escapes, report


def writing(start: int) -> Eval:
    """A branch that would write to rows before ``start``, had it been taken."""

    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        h = TABLE[tokens[:-1]].cumsum(0)
        torch.cond(tokens[4] > 99, lambda h: h.mul_(2).sum(), lambda h: h.sum(), (h[:start],))
        return h @ HEAD, torch.arange(1, len(tokens))

    return run


def test_a_branch_that_could_have_written() -> None:
    tokens = stream(seed=4)
    with torch.no_grad():
        assert watched(writing(2), tokens).report.status == "unverified"
        assert watched(writing(2), tokens).report.escapes


def recurrent(reverse: bool) -> Eval:
    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        def step(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            new = torch.tanh(state @ QUERY + x)
            return new, new.clone()

        states = scan(step, torch.zeros(DIM), TABLE[tokens[:-1]], reverse=reverse)[1]
        return states @ HEAD, torch.arange(1, len(tokens))

    return run


@pytest.mark.parametrize("reverse", [False, True])
def test_scans(reverse: bool) -> None:
    tokens = stream(seed=4)
    with torch.no_grad():
        found, truth = watched(recurrent(reverse), tokens), flips(recurrent(reverse), tokens, 1)
    assert found.report.status == ("violation" if reverse else "clean") and found.seen == truth


# -- the same bits ----------------------------------------------------------------------------------------


def branch_gradients() -> list[Tensor | None]:
    x, w = random(3, seed=7).requires_grad_(), random(3, seed=8).requires_grad_()
    out = torch.cond(x.sum() > 0, lambda x: x * w.sin(), lambda x: x.cos() + w, (x,))
    out.sum().backward()
    return [out.detach(), x.grad, w.grad]


def scan_gradients() -> list[Tensor | None]:
    xs, w = random(4, DIM, seed=7).requires_grad_(), random(DIM, seed=8).requires_grad_()
    last, out = scan(lambda s, x: (s * w + x, s * x), torch.zeros(DIM), xs)
    (last.sum() + out.sum()).backward()
    return [last.detach(), out.detach(), xs.grad, w.grad]


def loop_gradients() -> list[Tensor | None]:
    x = random(3, seed=7).requires_grad_()
    out = while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x.sin()), (torch.tensor(0), x))[1]
    out.sum().backward()
    return [out.detach(), x.grad]


def attention_gradients() -> list[Tensor | None]:
    """Through the operation: the public function has no gradients on the host."""
    q, k, v = (random(1, 1, 4, 2, seed=s).requires_grad_() for s in (1, 2, 3))
    slope = random(1, seed=4).requires_grad_()
    blocks = create_block_mask(causal(q), None, None, 4, 4, device="cpu").as_tuple()

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, slope: Tensor) -> Tensor:
        return s * slope[0]

    op = torch.ops.higher_order.flex_attention
    out, lse, _ = op(q, k, v, score, blocks, 0.5, {}, (slope,))
    (out.sum() + lse.sum()).backward()
    return [out.detach(), lse.detach(), q.grad, k.grad, v.grad, slope.grad]


@pytest.mark.parametrize("run", [branch_gradients, scan_gradients, loop_gradients, attention_gradients])
def test_gradients_are_the_same(run: Callable[[], list[Tensor | None]]) -> None:
    plain = run()
    with causaltrace.watch(torch.arange(9)):
        seen = run()
    for a, b in zip(plain, seen, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)
    assert all(
        torch.equal(a, b) for a, b in zip(plain, run(), strict=True) if a is not None and b is not None
    )


def test_the_line_of_the_program_is_named() -> None:
    tokens = stream(seed=4)
    with torch.no_grad():
        report = watched(branching(2), tokens).report
    path = report.violations[0].path
    assert any(hop.site.op == "cond" and hop.site.file.endswith("test_bodies.py") for hop in path), path


def test_nothing_stays_patched() -> None:
    from torch._higher_order_ops import utils
    from torch.nn.attention import flex_attention as module

    before = utils.setup_compilation_env
    with causaltrace.watch(stream()):
        assert utils.setup_compilation_env is not before
    assert utils.setup_compilation_env is before and module.setup_compilation_env is before
