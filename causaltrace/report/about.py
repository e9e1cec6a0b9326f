"""What was run, where and when: filled in as far as it is known, and never an error."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path

from causaltrace.report.model import Run

#: Seconds that git may take.
_PATIENCE = 5


def made_now(command: str = "", folder: Path | None = None) -> Run:
    """A run of ``command`` at this moment; ``folder``: where its code lies, to ask git for the revision."""
    return Run(
        command=command,
        revision="" if folder is None else revision(folder),
        time=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        versions=versions(),
    )


def revision(folder: Path) -> str:
    """The git revision that ``folder`` is at, ``+`` behind it if tracked files were changed; or ``""``."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, env=environment, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("ascii", "replace").strip() if done.returncode == 0 else ""


@cache
def versions() -> tuple[tuple[str, str], ...]:
    """Of causaltrace, torch and Python; what is not installed or not loaded is left out."""
    found = []
    with contextlib.suppress(metadata.PackageNotFoundError):  # run from a source tree
        found.append(("causaltrace", metadata.version("causaltrace")))
    if "torch" in sys.modules:
        found.append(("torch", str(sys.modules["torch"].__version__)))
    return (*found, ("Python", platform.python_version()))


def source_root() -> Path:
    """The top of the repository around the working directory; without one, the working directory."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def below(file: str, root: Path) -> str | None:
    """``file`` as a path below ``root``, with ``/``; None if it lies elsewhere. A relative one lies there."""
    path = Path(file)
    if file.startswith("<") or not file or ".." in path.parts:
        return None
    if not path.is_absolute():
        return path.as_posix()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else None
