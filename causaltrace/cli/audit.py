"""``causaltrace audit``: prove which labels may reach which scores, before anything is run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causaltrace.cli import outputs as o
from causaltrace.cli.exits import ERROR, exit_code
from causaltrace.report.text import render

if TYPE_CHECKING:
    from torch import Tensor

TargetArgument = Annotated[
    str,
    typer.Argument(
        help="A .pt2 file, or MODULE:NAME of a function or a model; of a function without parameters, what "
        "it returns: a target, or a target and its example inputs.",
        metavar="TARGET",
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input", "-i", help="An example input by its shape: 1x128, or 1x128:float32 (default: int64)."
    ),
]
LabelsOption = Annotated[
    str | None, typer.Option("--labels", help="The input that holds labels: its name or number.")
]
ScoresOption = Annotated[
    str | None, typer.Option("--scores", help="The output that holds logits: its name or number.")
]
LoopOption = Annotated[
    bool,
    typer.Option(
        "--loop",
        help="TARGET is a function without parameters that returns one step of a loop, its state, and the "
        "inputs of a step: prove it for any number of steps.",
    ),
]
ListingOption = Annotated[
    bool, typer.Option("--listing", help="Also list the nodes of a graph, each with the latest label in it.")
]


def audit(
    target: TargetArgument,
    input: InputOption = None,
    labels: LabelsOption = None,
    scores: ScoresOption = None,
    loop: LoopOption = False,
    listing: ListingOption = False,
    html: o.HtmlOption = None,
    markdown: o.MarkdownOption = None,
    sarif: o.SarifOption = None,
    junit: o.JunitOption = None,
    json: o.JsonOption = None,
    github: o.GithubOption = False,
) -> None:
    """Audit a model or a step of an eval for any weights and tokens: nothing is computed, no data is needed.

    Exit codes: 0 clean, 1 violation, 2 error, 3 unverified.
    """
    from causaltrace.static.audit import audit as audited
    from causaltrace.static.errors import AuditError
    from causaltrace.static.loop import audit_loop as looped

    try:
        examples = [_example(text) for text in input or ()]
        if loop:
            step, state, *given = _loop(target, examples)
            report = looped(step, state, *given, labels=_named(labels), scores=_named(scores))
        else:
            found, given = _found(target, examples)
            report = audited(found, *given, labels=_named(labels), scores=_named(scores))
    except (AuditError, TypeError, ValueError, ImportError, AttributeError) as error:
        typer.echo(f"causaltrace: {error}", err=True)
        raise typer.Exit(ERROR) from error
    typer.echo()
    if listing:
        typer.echo((report.listing or "causaltrace: the target is no graph, and has no listing") + "\n")
    render(report)
    outputs = o.Outputs(html, markdown, sarif, junit, json, github)
    raise typer.Exit(exit_code([report], failed=not outputs.write([report])))


def _found(text: str, given: list[Tensor]) -> tuple[Any, list[Any]]:
    """The target that ``text`` names, and its example inputs."""
    if text.endswith(".pt2"):
        return Path(text), given
    found = _imported(text)
    if given or not _needs_nothing(found):
        return found, given
    made = found()
    return (made[0], list(made[1:])) if isinstance(made, tuple) else (made, [])


def _loop(text: str, given: list[Tensor]) -> tuple[Any, ...]:
    """The step that ``text`` names, its state, and its example inputs."""
    found = _imported(text)
    made = found() if _needs_nothing(found) else None
    if not isinstance(made, tuple) or len(made) < 2:
        raise ValueError(f"--loop: {text} is no function of nothing that returns a step and its state")
    return (*made[:2], *(given or made[2:]))


def _imported(text: str) -> Any:
    module, colon, name = text.partition(":")
    if not colon or not name:
        raise ValueError(f"{text!r} names no target: give MODULE:NAME, or a file that ends in .pt2")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    finally:
        sys.path.pop(0)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _needs_nothing(found: Any) -> bool:
    """Is it a function that makes the target?"""
    import inspect

    import torch

    if isinstance(found, torch.nn.Module) or not callable(found):
        return False
    parameters = inspect.signature(found).parameters.values()
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _example(text: str) -> Tensor:
    """``1x128:float32`` as a tensor without memory."""
    import torch

    shape, _, kind = text.partition(":")
    dtype = getattr(torch, kind or "int64", None)
    sizes = shape.split("x") if shape else []
    if not isinstance(dtype, torch.dtype) or not all(n.isdigit() for n in sizes):
        raise ValueError(f"--input {text!r}: give a shape and a dtype, such as 1x128 or 1x128:float32")
    return torch.empty([int(n) for n in sizes], dtype=dtype, device="meta")


def _named(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdigit() else text
