"""Reports in a file, ``eval.ctrace``: recorded on one machine, read on another.

The file is gzip'ed JSON: ``{"schema": "causaltrace-recording/1", "reports": [...]}``, each report as
`causaltrace.report.json` writes it. Reading one executes nothing and takes no more than a bounded amount of
memory. Files of the repository are named by their path in it, and every site brings its source line along.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causaltrace.report.about import below, source_root
from causaltrace.report.json import dump, from_dict, to_dict
from causaltrace.report.model import Report

VERSION = 1
#: Bytes of JSON, and values in it, that are read at most: what a small file can blow up to.
MAX_BYTES = 512 << 20
MAX_VALUES = 20_000_000


class RecordingError(ValueError):
    """A file cannot be read as a recording, or reports cannot be recorded; the text says why."""


def pack(reports: Sequence[Report]) -> bytes:
    """The content of a recording of ``reports``.

    Raises:
        RecordingError: they are larger than what ``read`` would accept.
    """
    root = source_root()
    data = {"schema": f"causaltrace-recording/{VERSION}", "reports": [_portable(r, root) for r in reports]}
    text = dump(data).encode()
    _check_size(text)
    return gzip.compress(text, mtime=0)


def read(path: Path) -> list[Report]:
    """The reports in a file of what ``pack`` gave.

    Raises:
        RecordingError: the file is not there, is not a recording, is damaged, or is of a newer version.
    """
    data = _parsed(_unpacked(path))
    schema = data.get("schema") if isinstance(data, dict) else None
    version = (
        re.fullmatch(r"causaltrace-recording/([1-9][0-9]{0,3})", schema) if isinstance(schema, str) else None
    )
    if version is None:
        raise RecordingError("it is not a recording of causaltrace")
    if int(version[1]) > VERSION:
        raise RecordingError(
            f"it has format {version[1]} and this causaltrace reads up to {VERSION}: read it with a newer one"
        )
    found = data.get("reports")
    if not isinstance(found, list) or not found:
        raise RecordingError("it holds no reports")
    try:
        return [from_dict(report if isinstance(report, dict) else {}) for report in found]
    except ValueError as error:
        raise RecordingError(str(error)) from error


def _portable(report: Report, root: Path) -> dict[str, Any]:
    data = to_dict(report)
    for site in data["sites"]:
        site["file"] = below(site["file"], root) or site["file"]
    for finding in data["violations"]:
        site = data["sites"][finding["site"]]
        finding["at"] = f"{site['file']}:{site['line']}"
    return data


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            text = file.read(MAX_BYTES + 1)
    except EOFError:
        raise RecordingError("it is cut off") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise RecordingError(f"it is not a recording of causaltrace, or it is damaged ({error})") from None
    except (OSError, ValueError) as error:
        raise RecordingError(getattr(error, "strerror", None) or str(error)) from None
    _check_size(text)
    return text


def _check_size(text: bytes) -> None:
    if len(text) > MAX_BYTES:
        raise RecordingError(f"it has more than {MAX_BYTES >> 20:,} MiB when unpacked")
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise RecordingError(f"it holds more than {MAX_VALUES:,} values")


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise RecordingError("it is nested too deeply") from None
    except ValueError as error:
        raise RecordingError(f"it does not hold JSON ({error})") from None
