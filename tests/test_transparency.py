"""A watched run is the same run: values, gradients, state, random numbers, versions, bit for bit."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import causaltrace
from tests import flips
from tests.flips import CASES


def bits(value: Any) -> Any:
    """A copy that compares by bits: tensors with dtype, layout and flags, containers element by element."""
    if isinstance(value, Tensor):
        plain = value.detach()
        raw = plain.contiguous().view(-1).view(torch.uint8) if plain.numel() else plain
        return (value.dtype, value.shape, value.stride(), value.requires_grad, raw.tolist())
    if isinstance(value, dict):
        return {key: bits(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(v) for v in value]
    return value


def state(net: nn.Module) -> dict[str, Any]:
    return {
        "parameters": {name: bits(p) for name, p in net.named_parameters()},
        "versions": {name: p._version for name, p in (*net.named_parameters(), *net.named_buffers())},
        "gradients": {name: bits(p.grad) for name, p in net.named_parameters()},
        "buffers": {name: bits(b) for name, b in net.named_buffers()},
    }


def global_modes() -> tuple[object, ...]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()


@contextlib.contextmanager
def optimizers() -> Iterator[list[torch.optim.Optimizer]]:
    """The optimizers that are made inside the block."""
    made: list[torch.optim.Optimizer] = []
    original = torch.optim.Optimizer.__init__

    def spy(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Optimizer, "__init__", spy)
        yield made


def outcome(
    net: nn.Module, tokens: Tensor, evaluate: Callable[[nn.Module, Tensor], Any], watch: bool
) -> dict[str, Any]:
    """Everything that a run leaves behind."""
    torch.manual_seed(11)
    modes = global_modes()
    with flips.single_threaded(), optimizers() as made:
        with causaltrace.watch(tokens) if watch else contextlib.nullcontext():
            result = evaluate(net, tokens)
        return {
            "result": bits(result),
            **state(net),
            "optimizers": [bits(optimizer.state_dict()) for optimizer in made],
            "random": bits(torch.get_rng_state()),
            "draw": bits(torch.rand(3)),
            "tokens": bits(tokens),
            "modes": modes == global_modes(),
        }


def same(
    make: Callable[[], nn.Module],
    tokens: Tensor,
    evaluate: Callable[[nn.Module, Tensor], Any],
    versions: bool = True,
) -> None:
    plain = outcome(make(), tokens.clone(), evaluate, watch=False)
    watched = outcome(make(), tokens.clone(), evaluate, watch=True)
    for part, expected in plain.items():
        if part != "versions" or versions:
            assert watched[part] == expected, part


@pytest.mark.parametrize("name", CASES)
def test_examples(name: str) -> None:
    case = CASES[name]
    same(case.make_model, case.tokens, lambda net, tokens: case.evaluate(net, tokens, case.config))


@pytest.mark.parametrize("name", CASES)
def test_examples_in_float32(name: str) -> None:
    case = CASES[name]

    def evaluate(net: nn.Module, tokens: Tensor) -> Any:
        return case.evaluate(net, tokens, case.config)

    same(lambda: case.make_model().float(), case.tokens, evaluate)


# ------------------------------------------------------------- what the examples do not do: more state


class Noisy(nn.Module):
    """Dropout, batch statistics, a buffer that changes, and a checkpointed layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(classes, 8), nn.Linear(8, classes)
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        x = self.norm(self.drop(self.embedding(ids)))
        x = checkpoint(self.layer, x[None], use_reentrant=False)[0]
        return self.head(x + 0.01 * torch.randn_like(x))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "autocast"])
def test_noisy_training(optimizer: str, bfloat16: bool) -> None:
    def evaluate(net: nn.Module, tokens: Tensor) -> list[Tensor]:
        made = OPTIMIZERS[optimizer](net.parameters())
        totals = []
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                rows = net(tokens[:-1])
            nll = F.cross_entropy(rows.float(), tokens[1:], reduction="none")
            totals.append(nll.detach().sum())
            made.zero_grad()
            nll.mean().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            made.step()
        return totals

    def make() -> nn.Module:
        torch.manual_seed(4)
        return Noisy(flips.VOCAB).train()

    # under any dispatch mode torch forgets to count the versions of what a _foreach_ op writes
    same(make, CASES["mean_loss"].tokens[:20], evaluate, versions=optimizer != "adamw_foreach")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_outputs(context: Callable[[], Any]) -> None:
    """Logits, losses and hidden states themselves, not only what is summed of them."""

    def evaluate(net: nn.Module, tokens: Tensor) -> list[Tensor]:
        with context():
            hidden = net.hidden(tokens[None, :12])
            rows = net.logits(hidden)
            return [hidden, rows, F.cross_entropy(rows[0], tokens[1:13], reduction="none"), rows.argmax(-1)]

    same(CASES["mean_loss"].make_model, CASES["mean_loss"].tokens, evaluate)


def test_the_model_can_be_trained_afterwards() -> None:
    """No hooks, modes or patches stay behind."""
    case = CASES["ttt_score_first_sgd"]
    net, other = case.make_model(), case.make_model()
    names = ("item", "tolist", "numpy", "__bool__", "__float__", "backward")
    methods = {name: getattr(Tensor, name) for name in names}
    with causaltrace.watch(case.tokens):
        case.evaluate(net, case.tokens, case.config)
    case.evaluate(other, case.tokens, case.config)
    for run in (net, other):
        case.evaluate(run, case.tokens, dataclasses.replace(case.config))
    assert state(net)["parameters"] == state(other)["parameters"]
    assert all(getattr(Tensor, name) is method for name, method in methods.items())
    assert copy.deepcopy(net) is not net


def test_decompositions_for_compilers_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may give other values or shapes than the kernel that runs without a watch."""

    def other(*args: Any) -> Any:
        raise AssertionError("a decomposition written in Python ran")

    key = torch._C.DispatchKey.CompositeImplicitAutograd
    for op in (torch.ops.aten.matmul.default, torch.ops.aten.lstm.input):
        monkeypatch.setitem(op.py_kernels, key, other)
    net, x, h = nn.LSTM(3, 4, num_layers=2, bidirectional=True), torch.randn(5, 2, 3), torch.randn(4, 2, 4)
    runs: list[Any] = []

    def run(x: Tensor) -> Tensor:
        out, state = net(x, (h, h))
        runs.append(bits([out, *state]))
        return torch.matmul(x, x.transpose(1, 2))

    with torch.inference_mode():
        run(x)
        causaltrace.dependencies(run, x)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("layer", ["linear", "gru", "rnn"])
@pytest.mark.parametrize("known", [True, False])
def test_views_of_parameters_require_grad_in_inference_mode(layer: str, known: bool) -> None:
    """``matmul`` multiplies in another way where they do, and its sums have another last bit."""
    torch.manual_seed(1)
    kinds = {"linear": nn.Linear, "gru": nn.GRU, "rnn": nn.RNN}
    options = {} if layer == "linear" else {"batch_first": True}
    net, table = kinds[layer](32, 64, **options), torch.randn(64, 32)
    tokens = torch.randint(64, (64,))

    def run(tokens: Tensor) -> Tensor:
        with torch.inference_mode():
            x = table[tokens] if known else table
            x = x.view(2, 32, 32)
            out = net(x.transpose(0, 1)) if layer == "linear" else net(x)[0]
            return out.clone()

    before = run(tokens)
    with causaltrace.watch(tokens):
        inside = run(tokens)
    assert torch.equal(before, inside)
