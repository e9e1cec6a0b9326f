"""Things that remember: modules, optimizers, schedules, averages, warm-ups."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.laundering import MODEL, SEEN, VOCAB, tensors, way


def parameter(n: int = VOCAB) -> nn.Parameter:
    return nn.Parameter(torch.linspace(0.1, 1.3, n, dtype=torch.float64))


def stepped(weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> Tensor:
    """One step on a loss that no label is in."""
    optimizer.zero_grad()
    (weight**2).sum().backward()
    optimizer.step()
    return weight.detach().clone()


class Remembering(nn.Module):
    """Registers what it is given as a buffer, in its forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.register_buffer("seen", x[-1:].double() * 0.1)
        return self.get_buffer("seen")


@tensors("a buffer that a module registers in its forward pass")
def buffer_registered(x: Tensor) -> Tensor:
    return Remembering()(x)


@tensors("running statistics of BatchNorm")
def running_statistics(x: Tensor) -> Tensor:
    norm = nn.BatchNorm1d(1, dtype=torch.float64)
    norm(x[:, None].double())
    return norm.running_mean[0] * norm.running_var[0]


@tensors("weights that are loaded from a state dict")
def state_dict(x: Tensor) -> Tensor:
    layer = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    layer.load_state_dict({"weight": x[None] * 0.1}, strict=True)
    return copy.deepcopy(layer)(torch.ones(3, dtype=torch.float64)).detach()


@tensors("weights that are assigned: load_state_dict(assign=True), vector_to_parameters, copy_")
def weights_assigned(x: Tensor) -> Tensor:
    layer = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    layer.load_state_dict({"weight": x[None].double() * 0.1}, assign=True)
    other = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    nn.utils.vector_to_parameters(layer.weight.detach().flatten(), other.parameters())
    return other(torch.ones(3, dtype=torch.float64)).detach()


@tensors("a parametrization of a weight")
def parametrized(x: Tensor) -> Tensor:
    class Shifted(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 0 + x * 0.1

    layer = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    nn.utils.parametrize.register_parametrization(layer, "weight", Shifted())
    return layer(torch.ones(3, dtype=torch.float64)).detach()


@tensors("the state of an optimizer: momentum")
def momentum(x: Tensor) -> Tensor:
    weight = parameter()
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.zeros_like(weight)
    weight.grad[x] = 1.0
    optimizer.step()
    with torch.no_grad():
        weight.copy_(parameter())
    return stepped(weight, optimizer)


@tensors("the state of an optimizer, loaded")
def optimizer_state(x: Tensor) -> Tensor:
    weight = parameter(3)
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    stepped(weight, optimizer)
    held = optimizer.state_dict()
    held["state"][0]["exp_avg"] = x.double()
    optimizer.load_state_dict(held)
    return stepped(weight, optimizer).sum()


@tensors("a learning rate that is a label, as a number")
def rate_number(x: Tensor) -> Tensor:
    weight = parameter()
    return stepped(weight, torch.optim.SGD([weight], lr=x[-1].item() * 0.01))


@tensors("a learning rate that is a label, as a tensor")
def rate_tensor(x: Tensor) -> Tensor:
    weight = parameter()
    optimizer = torch.optim.AdamW(
        [weight], lr=torch.tensor(0.1, dtype=torch.float64), foreach=False, capturable=False
    )
    optimizer.param_groups[0]["lr"] = x[-1] * 0.01
    return stepped(weight, optimizer)


@tensors("a schedule of learning rates")
def schedule(x: Tensor) -> Tensor:
    weight = parameter()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 + int(x[-1]))
    return stepped(weight, optimizer)


@tensors("whether a schedule saw a plateau")
def plateau(x: Tensor) -> Tensor:
    weight = parameter()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    watcher = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for label in (x[-2], x[-1]):
        watcher.step(label.double())
    return stepped(weight, optimizer)


@tensors("the number of optimizer steps")
def step_count(x: Tensor) -> Tensor:
    weight = parameter()
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(int(x[-1])):
        stepped(weight, optimizer)
    return weight.detach().clone()


@tensors("which parameters an optimizer is given")
def frozen(x: Tensor) -> Tensor:
    weight = parameter()
    weight.requires_grad_(bool(x[-1] > 3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    loss = (weight**2).sum()
    if loss.requires_grad:
        loss.backward()
    optimizer.step()
    return weight.detach().clone()


@tensors("an average of weights (EMA)")
def averaged(x: Tensor) -> Tensor:
    layer = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    average = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for scale in (0.1, 0.2):
        with torch.no_grad():
            layer.weight.copy_(x[None] * scale)
        average.update_parameters(layer)
    return average(torch.ones(3, dtype=torch.float64)).detach()


@tensors("a loss scaler: what it did when gradients were not finite")
def scaler(x: Tensor) -> float:
    weight = parameter(1)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scale = torch.amp.GradScaler("cpu", init_scale=2.0)
    scale.scale((weight / (x[-1] - 3)).sum()).backward()
    scale.step(optimizer)
    scale.update()
    return scale.get_scale() * 0.5


def _train(bias: nn.Parameter, tokens: Tensor) -> None:
    optimizer = torch.optim.SGD([bias], lr=0.5)
    F.cross_entropy(MODEL[tokens[:-1]] + bias, tokens[1:]).backward()
    optimizer.step()


def score_then_train(tokens: Tensor) -> Iterator[Tensor]:
    bias = nn.Parameter(torch.zeros(VOCAB, dtype=torch.float64))
    for start in range(0, len(tokens) - 1, SEEN):
        yield (MODEL[tokens[start : start + SEEN]] + bias.detach())[: len(tokens) - 1 - start]
        _train(bias, tokens[start : start + SEEN + 1])


@way("trained on a chunk before it is scored", legal=score_then_train)
def train_then_score(tokens: Tensor) -> Iterator[Tensor]:
    bias = nn.Parameter(torch.zeros(VOCAB, dtype=torch.float64))
    for start in range(0, len(tokens) - 1, SEEN):
        _train(bias, tokens[start : start + SEEN + 1])
        yield (MODEL[tokens[start : start + SEEN]] + bias.detach())[: len(tokens) - 1 - start]


def _thrown_away(tokens: Tensor) -> Iterator[Tensor]:
    bias = nn.Parameter(torch.zeros(VOCAB, dtype=torch.float64))
    _train(copy.deepcopy(bias), tokens)
    yield MODEL[tokens[:-1]] + bias.detach()


@way("a warm-up whose copy of the weights is not thrown away", legal=_thrown_away)
def warm_up(tokens: Tensor) -> Iterator[Tensor]:
    bias = nn.Parameter(torch.zeros(VOCAB, dtype=torch.float64))
    shallow = copy.copy(bias)
    _train(bias, tokens)
    yield MODEL[tokens[:-1]] + shallow.detach()


def _calibrated_before(tokens: Tensor) -> Iterator[Tensor]:
    scale = MODEL.abs().amax(0)
    yield torch.round(MODEL[tokens[:-1]] / scale * 7) * scale / 7


@way("calibrated on the stream: ranges for rounding that a hook collects", legal=_calibrated_before)
def calibrated(tokens: Tensor) -> Iterator[Tensor]:
    layer, ranges = nn.Identity(), []
    handle = layer.register_forward_hook(lambda module, args, out: ranges.append(out.abs().amax(0)))
    layer(MODEL[tokens])
    handle.remove()
    yield torch.round(MODEL[tokens[:-1]] / ranges[0] * 7) * ranges[0] / 7
