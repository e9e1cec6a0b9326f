"""Is this architecture causal? Whole models against exhaustive flips, forward and through a fit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

import causaltrace
from tests.probe import CLASSES, LENGTH, Eval, flips, stream, watched

DIM, HEADS = 8, 2
PAST = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
LOWEST = torch.finfo(torch.float32).min


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------ mixing layers
# Each maps hidden states [B, L, DIM] to [B, L, DIM]; the model around it works position by position.


class Mixer(nn.Module):
    def __init__(self, mix: Callable[[Mixer, Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix
        self.qkv, self.gate, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.batch_norm = nn.BatchNorm1d(DIM)
        self.conv = nn.Conv1d(DIM, DIM, 3)
        self.lstm = nn.LSTM(DIM, DIM, batch_first=True)
        self.gru = nn.GRU(DIM, DIM, batch_first=True)
        self.experts = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(3))
        self.router = nn.Linear(DIM, 3)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        return q, k, v

    def join(self, x: Tensor) -> Tensor:
        return self.out(x.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self, x)


def attention(m: Mixer, x: Tensor) -> Tensor:
    return m.join(F.scaled_dot_product_attention(*m.heads(x), is_causal=True))


def masked_attention(mask: Tensor) -> Callable[[Mixer, Tensor], Tensor]:
    def mix(m: Mixer, x: Tensor) -> Tensor:
        given = mask.to(x) if mask.is_floating_point() else mask
        return m.join(F.scaled_dot_product_attention(*m.heads(x), attn_mask=given))

    return mix


def alibi(m: Mixer, x: Tensor) -> Tensor:
    distance = torch.arange(x.shape[1])[None, :] - torch.arange(x.shape[1])[:, None]
    slopes = 2.0 ** -torch.arange(1, HEADS + 1)
    bias = (slopes[:, None, None] * distance).masked_fill(distance > 0, -math.inf)
    return m.join(F.scaled_dot_product_attention(*m.heads(x), attn_mask=bias.to(x.dtype)))


def angles(length: int) -> Tensor:
    return torch.arange(length)[:, None] * torch.tensor([1.0, 0.1])


def rope_real(m: Mixer, x: Tensor) -> Tensor:
    def turn(t: Tensor) -> Tensor:
        cos, sin = angles(x.shape[1]).cos().to(t.dtype), angles(x.shape[1]).sin().to(t.dtype)
        a, b = t.chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

    q, k, v = m.heads(x)
    return m.join(F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True))


def rope_interleaved(m: Mixer, x: Tensor) -> Tensor:
    def turn(t: Tensor) -> Tensor:
        cos, sin = angles(x.shape[1]).cos().to(t.dtype), angles(x.shape[1]).sin().to(t.dtype)
        a, b = t[..., ::2], t[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    q, k, v = m.heads(x)
    return m.join(F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True))


def rope_complex(m: Mixer, x: Tensor) -> Tensor:
    def turn(t: Tensor) -> Tensor:
        z = torch.view_as_complex(t.float().reshape(*t.shape[:-1], -1, 2))
        turns = torch.polar(torch.ones(x.shape[1], 2), angles(x.shape[1]))
        return torch.view_as_real(z * turns).flatten(-2).type_as(t)

    q, k, v = m.heads(x)
    return m.join(F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True))


def smear(m: Mixer, x: Tensor) -> Tensor:
    g = torch.sigmoid(m.gate(x))
    return torch.cat((x[:, :1], x[:, 1:] + g[:, 1:] * x[:, :-1]), 1)


def shift_by_pad(m: Mixer, x: Tensor) -> Tensor:
    return m.gate(F.pad(x, (0, 0, 1, -1)))


def shift_in_place(m: Mixer, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:] = m.gate(x)[:, :-1]
    return y


def running_mean(m: Mixer, x: Tensor) -> Tensor:
    return m.gate(x).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


def recurrence(m: Mixer, x: Tensor) -> Tensor:
    state, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        state = torch.tanh(m.gate(state) + x[:, t])
        out.append(state)
    return torch.stack(out, 1)


def linear_attention(m: Mixer, x: Tensor) -> Tensor:
    q, k, v = (F.elu(t) + 1 for t in m.heads(x))
    kv = torch.einsum("bhld,bhle->bhlde", k, v).cumsum(2)
    return m.join(torch.einsum("bhld,bhlde->bhle", q, kv) / (q * k.cumsum(2)).sum(-1, keepdim=True))


def token_choice(m: Mixer, x: Tensor) -> Tensor:
    weights, chosen = m.router(x).softmax(-1).max(-1)
    out = torch.zeros_like(x)
    for i, expert in enumerate(m.experts):
        out = out + torch.where((chosen == i)[..., None], expert(x), 0.0)
    return out * weights[..., None]


def expert_choice(m: Mixer, x: Tensor) -> Tensor:
    """Each expert takes its three best positions of the sequence."""
    scores = m.router(x)[0].softmax(-1)
    out = torch.zeros_like(x[0])
    for i, expert in enumerate(m.experts):
        weights, where = scores[:, i].topk(3)
        out = out.index_add(0, where, expert(x[0, where]) * weights[:, None])
    return out[None]


def by_vmap(m: Mixer, x: Tensor) -> Tensor:
    q, k, v = m.heads(x)

    def head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.T).masked_fill(~PAST, -math.inf)
        return scores.softmax(-1) @ v

    return m.join(torch.vmap(torch.vmap(head))(q, k, v))


class Gated(torch.autograd.Function):
    """x * sigmoid(g), with the backward written by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor) -> Tensor:
        s = torch.sigmoid(g)
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, s = ctx.saved_tensors
        return grad * s, grad * x * s * (1 - s)


def custom_function(m: Mixer, x: Tensor) -> Tensor:
    return Gated.apply(attention(m, x), m.gate(x))


def checkpointed(reentrant: bool) -> Callable[[Mixer, Tensor], Tensor]:
    def mix(m: Mixer, x: Tensor) -> Tensor:
        return checkpoint(lambda y: attention(m, y), x, use_reentrant=reentrant)

    return mix


def convolution(left: int, right: int) -> Callable[[Mixer, Tensor], Tensor]:
    return lambda m, x: m.conv(F.pad(x.transpose(1, 2), (left, right))).transpose(1, 2)


CAUSAL: dict[str, Callable[[Mixer, Tensor], Tensor]] = {
    "attention": attention,
    "sliding_window": masked_attention(PAST.triu(-2)),
    "alibi": alibi,
    "rope_real": rope_real,
    "rope_interleaved": rope_interleaved,
    "rope_complex": rope_complex,
    "smear": smear,
    "shift_by_pad": shift_by_pad,
    "shift_in_place": shift_in_place,
    "running_mean": running_mean,
    "recurrence": recurrence,
    "linear_attention": linear_attention,
    "token_choice": token_choice,
    "vmap": by_vmap,
    "custom_function": custom_function,
    "checkpoint": checkpointed(False),
    "reentrant_checkpoint": checkpointed(True),
}

NOT_CAUSAL: dict[str, Callable[[Mixer, Tensor], Tensor]] = {
    "no_mask": lambda m, x: m.join(F.scaled_dot_product_attention(*m.heads(x))),
    "inverted_mask": masked_attention(~PAST | torch.eye(LENGTH, dtype=torch.bool)),
    "left_padding": masked_attention(
        torch.zeros(LENGTH, LENGTH).masked_fill(~PAST | (torch.arange(LENGTH) < 3), LOWEST)
    ),
    "mean_pooling": lambda m, x: m.gate(x).mean(1, keepdim=True).expand_as(x),
    "max_pooling": lambda m, x: m.gate(x).amax(1, keepdim=True).expand_as(x),
    "batch_norm": lambda m, x: m.batch_norm(x.transpose(1, 2)).transpose(1, 2),
    "roll": lambda m, x: m.gate(x.roll(1, 1)),
    "roll_back": lambda m, x: m.gate(x.roll(-1, 1)),
    "flip": lambda m, x: m.gate(x.flip(1)),
    "token_norm": lambda m, x: F.layer_norm(x, x.shape[1:]),
    "expert_choice": expert_choice,
    "softmax_over_time": lambda m, x: m.gate(x).softmax(1),
    "sorted_over_time": lambda m, x: m.gate(x).sort(1).values,
}

#: Operations that may have no rule yet: never clean when they leak, never a violation when they do not.
MAYBE_OPAQUE: dict[str, tuple[Callable[[Mixer, Tensor], Tensor], bool]] = {
    "causal_conv": (convolution(2, 0), True),
    "same_conv": (convolution(1, 1), False),
    "lstm": (lambda m, x: m.lstm(x)[0], True),
    "gru": (lambda m, x: m.gru(x)[0], True),
    "backward_lstm": (lambda m, x: m.lstm(x.flip(1))[0].flip(1), False),
    "flex_attention": (lambda m, x: m.join(flex(m, x, True)), True),
    "flex_attention_without_mask": (lambda m, x: m.join(flex(m, x, False)), False),
}


def flex(m: Mixer, x: Tensor, causal: bool) -> Tensor:
    q, k, v = (t.float() for t in m.heads(x))
    if not causal:
        return flex_attention(q, k, v).to(x)
    block_mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, LENGTH, LENGTH, device="cpu")
    return flex_attention(q, k, v, block_mask=block_mask).to(x)


# ------------------------------------------------------------------------------------------------- evals


class Model(nn.Module):
    def __init__(self, mix: Callable[[Mixer, Tensor], Tensor], depth: int = 1) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(CLASSES, DIM), nn.Embedding(LENGTH, DIM)
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(depth))
        self.mixers = nn.ModuleList(Mixer(mix) for _ in range(depth))
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position.weight
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x[None]))[0]
        return self.head(x)


def model(mix: Callable[[Mixer, Tensor], Tensor], depth: int = 1, seed: int = 9) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(mix, depth).double()


def scoring(net: nn.Module) -> Eval:
    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return copy.deepcopy(net)(tokens[:-1]), torch.arange(1, len(tokens))

    return run


SPLIT = 4


def fitting(
    net: nn.Module, fitted: int, wrap: Callable[[nn.Module], Callable[..., Tensor]] = lambda net: net
) -> Eval:
    """Score the first ``SPLIT`` positions, fit all parameters on the first ``fitted``, score the others."""

    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        mine = copy.deepcopy(net).train()
        forward = wrap(mine)
        inputs, targets = tokens[:-1], tokens[1:]
        with torch.no_grad():
            before = forward(inputs)[:SPLIT]
        optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(forward(inputs)[:fitted].float(), targets[:fitted]).backward()
            optimizer.step()
        with torch.no_grad():
            after = forward(inputs)[SPLIT:]
        return torch.cat((before, after)), torch.arange(1, len(tokens))

    return run


def check(run: Eval, *others: Eval, exact: bool = True) -> set[int]:
    """The watch says what flips say (flips of ``others`` too, for what rounding and comparisons hide)."""
    truth, found = flips(run, stream()), watched(run, stream())
    for other in others:
        if truth.violating == found.seen.violating:
            break
        truth = truth | flips(other, stream())
    assert found.seen.violating == truth.violating
    if exact:
        assert found.seen.latest == truth.latest
    assert found.report.status == ("violation" if truth.violating else "clean"), str(found.report)
    return truth.violating


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal(name: str, depth: int) -> None:
    assert not check(scoring(model(CAUSAL[name], depth)))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_not_causal(name: str, depth: int) -> None:
    others = [scoring(model(NOT_CAUSAL[name], depth, seed=seed)) for seed in range(6)]
    assert check(scoring(model(NOT_CAUSAL[name], depth)), *others, exact=False)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_fit_on_what_was_scored(name: str) -> None:
    assert not check(fitting(model(CAUSAL[name]), SPLIT))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_fit_on_everything(name: str) -> None:
    assert check(fitting(model(CAUSAL[name]), LENGTH)) == set(range(SPLIT + 1, LENGTH + 1))


@pytest.mark.parametrize("name", MAYBE_OPAQUE)
def test_never_wrong(name: str) -> None:
    mix, causal = MAYBE_OPAQUE[name]
    run = scoring(model(mix))
    assert bool(flips(run, stream()).violating) != causal
    report = watched(run, stream()).report
    assert report.status in (("clean", "unverified") if causal else ("violation", "unverified")), str(report)
    if report.status == "unverified":
        assert report.opaque and name.startswith("flex_attention")


@pytest.mark.parametrize("reverse", [False, True])
def test_lstm_as_one_operation(reverse: bool) -> None:
    """In single precision an LSTM is one operation, which is followed step by step."""
    mix, causal = MAYBE_OPAQUE["backward_lstm" if reverse else "lstm"]
    assert bool(check(scoring(model(mix).float()))) != causal
    if causal:
        assert not check(scoring(model(mix, 2).float()))
        assert not check(fitting(model(mix).float(), SPLIT))
        runs = [fitting(model(mix, seed=seed).float(), LENGTH) for seed in range(3)]
        assert check(*runs) == set(range(SPLIT + 1, LENGTH + 1))


# ------------------------------------------------------------------------------------ embeddings of labels


class Hashed(nn.Module):
    """Positions see a hash of their own and the previous token; ``ahead`` takes the next one instead."""

    def __init__(self, ahead: bool) -> None:
        super().__init__()
        self.ahead, self.table, self.head = ahead, nn.Embedding(32, DIM), nn.Linear(DIM, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        other = F.pad(ids[1:], (0, 1)) if self.ahead else F.pad(ids[:-1], (1, 0))
        return self.head(self.table((ids * 36313 ^ other * 27191) % 32))


@pytest.mark.parametrize("ahead", [False, True])
def test_hashed_inputs(ahead: bool) -> None:
    torch.manual_seed(0)
    found = check(scoring(Hashed(ahead).double()), scoring(Hashed(ahead).double()))
    assert found == (set(range(1, LENGTH)) if ahead else set())


# ------------------------------------------------------------------------------------ how a model is called


def through_functional_call(net: nn.Module) -> Callable[..., Tensor]:
    return lambda ids: torch.func.functional_call(net, dict(net.named_parameters()), (ids,))


def through_autocast(net: nn.Module) -> Callable[..., Tensor]:
    def call(ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(ids)

    return call


@pytest.mark.parametrize("wrap", [through_functional_call, through_autocast])
@pytest.mark.parametrize("fitted", [SPLIT, LENGTH])
def test_other_calls(wrap: Callable[[nn.Module], Callable[..., Tensor]], fitted: int) -> None:
    runs = [fitting(model(attention, seed=seed).float(), fitted, wrap) for seed in range(4)]
    exact = [fitting(model(attention, seed=seed), fitted) for seed in range(2)]
    assert check(*runs, *exact) == (set(range(SPLIT + 1, LENGTH + 1)) if fitted == LENGTH else set())


def test_gradients_by_torch_func() -> None:
    """A fit with torch.func.grad instead of backward."""

    def fit(fitted: int) -> Eval:
        net = model(attention)

        def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
            inputs, targets = tokens[:-1], tokens[1:]
            weights = {name: p.detach() for name, p in net.named_parameters()}

            def loss(weights: dict[str, Tensor]) -> Tensor:
                rows = torch.func.functional_call(net, weights, (inputs,))
                return F.cross_entropy(rows[:fitted], targets[:fitted])

            with torch.no_grad():
                before = net(inputs)[:SPLIT]
            grads = torch.func.grad(loss)(weights)
            with torch.no_grad():
                moved = {name: w - 0.1 * grads[name] for name, w in weights.items()}
                after = torch.func.functional_call(net, moved, (inputs,))[SPLIT:]
            return torch.cat((before, after)), torch.arange(1, len(tokens))

        return run

    assert not check(fit(SPLIT))
    assert check(fit(LENGTH)) == set(range(SPLIT + 1, LENGTH + 1))


# ------------------------------------------------------------------------------------------ compiled models


class Counting:
    """A torch.compile backend that counts how often its graphs run."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.ran += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("mix", [attention, NOT_CAUSAL["no_mask"]], ids=["causal", "not_causal"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("fullgraph", [False, True], ids=["graphs", "fullgraph"])
def test_a_compiled_model_is_seen_and_compiled_again(mix: Any, warm: bool, fullgraph: bool) -> None:
    net, backend, tokens = model(mix), Counting(), stream()
    compiled = torch.compile(net, backend=backend, fullgraph=fullgraph)
    if warm:
        with torch.no_grad():
            compiled(tokens[:-1])
        assert backend.ran == 1
    ran = backend.ran

    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return compiled(tokens[:-1]), torch.arange(1, len(tokens))

    found = watched(run, tokens)
    assert backend.ran == ran
    assert found.seen.violating == flips(scoring(net), tokens).violating
    assert found.report.status == ("clean" if mix is attention else "violation")
    with torch.no_grad():
        for i in (1, 2):
            compiled(tokens[:-1])
            assert backend.ran == ran + i


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_fit() -> None:
    """Forward and backward of a compiled model, and a compiled optimizer step."""
    backend = Counting()
    run = fitting(model(attention), SPLIT, lambda net: torch.compile(net, backend="eager"))
    assert watched(run, stream()).report.status == "clean"
    net = model(attention)
    compiled = torch.compile(net, backend=backend)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    step = torch.compile(optimizer.step, backend=backend)
    tokens = stream()

    def eval_once() -> Tensor:
        rows = compiled(tokens[:-1])
        nll = F.cross_entropy(rows, tokens[1:], reduction="none")
        total = nll.detach().sum()
        nll.mean().backward()
        step()
        optimizer.zero_grad()
        return total

    with causaltrace.watch(tokens) as trace:
        eval_once()
    assert trace.report.status == "clean", str(trace.report)
    assert not backend.ran
    eval_once()
    assert backend.ran
