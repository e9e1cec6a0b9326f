"""Collect the reports of a script's watches, and open a watch for a script that only labels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

import causaltrace
from causaltrace.cli.progress import Progress
from causaltrace.report.model import Report
from causaltrace.watcher import current, finished

_INFERENCE_MODE = (
    "this first causaltrace.label(...) or label_files(...) is inside torch.inference_mode(); call it before, "
    "so that the watch which it opens lasts to the end of the script, or use "
    "'with causaltrace.watch(tokens):'"
)


class Watching:
    """Listens while a script runs; ``reports`` holds what its watches found, in order.

    A script that calls ``causaltrace.label`` or ``causaltrace.label_files`` outside a watch gets one,
    opened at that call and closed at the end of the script. When the script makes its own watch after
    all, ours is given up without a report: outside its own watch, the script's labels mean nothing.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ours: Any = None
        self._public = (causaltrace.watch, causaltrace.label, causaltrace.label_files)
        self._before = len(finished)

    @property
    def reports(self) -> list[Report]:
        return finished[self._before :]

    def __enter__(self) -> Watching:
        _, label, label_files = self._public
        causaltrace.watch = self._watch
        causaltrace.label, causaltrace.label_files = self._labelling(label), self._labelling(label_files)
        return self

    def __exit__(self, *error: object) -> None:
        self.close(None)
        causaltrace.watch, causaltrace.label, causaltrace.label_files = self._public

    def close(self, error: BaseException | None) -> None:
        """Close our watch, if one is open; ``error`` is what the script ended with."""
        ours, self._ours = self._ours, None
        if ours is not None:
            ours.__exit__(None if error is None else type(error), error, error and error.__traceback__)

    def _watch(self, *args: Any, **options: Any) -> Any:
        if self._ours is not None:
            self.close(None)
            finished.pop()
        return self._opened(*args, **options)

    def _opened(self, *args: Any, **options: Any) -> Any:
        watch = self._public[0](*args, **options)
        if self._progress.shown:
            watch.follow(self._progress)
        return watch

    def _labelling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def label(*args: Any, **options: Any) -> Any:
            if current() is None:
                # On its way out, inference_mode would switch off a dispatch mode that was opened inside it.
                if torch.is_inference_mode_enabled():
                    raise RuntimeError(_INFERENCE_MODE)
                ours = self._opened()
                ours.__enter__()
                self._ours = ours
            return original(*args, **options)

        return label
