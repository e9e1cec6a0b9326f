"""The functions that higher-order operations take (flex_attention's masks, the branches of cond).

Torch captures them as graphs, also in programs that compile nothing: what they close over becomes an
argument, which is how gradients reach it. Capturing must meet neither the watch nor its patches; the graph
that comes out holds the same operations and is run inside the watch again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from causaltrace._compat import current_mode, without_top_mode
from causaltrace.tracer import Tracer

Environment = Callable[[], AbstractContextManager[Any]]

#: How to go back inside the watch, while a body is being captured.
_resume: list[Environment] = []


def followed(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
    """The backend that runs a captured body. Torch keeps graphs by backend, so it is one for all watches."""

    def run(*args: Any) -> Any:
        with _resume[-1]():
            return graph.forward(*args)

    return run


def unseen(tracer: Tracer, host: AbstractContextManager[Any], original: Environment) -> Environment:
    """Torch's environment for capturing, outside the watch. ``host``: what the watch patched."""

    @contextlib.contextmanager
    def resume() -> Iterator[None]:
        with host, torch.compiler.set_stance("force_eager"), tracer:
            yield

    @contextlib.contextmanager
    def environment() -> Iterator[Any]:
        with original() as backend:
            if current_mode() is not tracer or getattr(backend, "__name__", "") != "eager":
                yield backend  # a transformation of the user's is on top
                return
            host.__exit__(None, None, None)
            _resume.append(resume)
            try:
                with without_top_mode(), torch.compiler.set_stance("default"):
                    yield followed
            finally:
                _resume.pop()
                host.__enter__()

    return environment
