"""Is this architecture causal? Whole models against exhaustive flips, forward and through a fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from tests.mixers import CAUSAL, DIM, MAYBE_OPAQUE, NOT_CAUSAL, Mixer, attention
from tests.probe import CLASSES, LENGTH, Eval, flips, stream, watched

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
