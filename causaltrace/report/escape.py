"""Text from a watched program inside Markdown: it stays text, whatever is in it.

Source lines and messages may come from a stranger's pull request. On a page they must not end the code block
that shows them, add a cell to a table, bring HTML along, or notify people by ``@name``.
"""

from __future__ import annotations

import re

#: Longer text is cut; a comment has room for 65,536 characters.
_LONGEST = 240
_SPECIAL = re.compile(r"([\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_AFTER = re.compile(r"@|#(?=\d)|(?<=:)//")
_UNSEEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = "\u200b"


def one_line(text: str) -> str:
    """``text`` without line ends, control characters or a turned direction, and not too long."""
    text = _UNSEEN.sub("\ufffd", " ".join(text.splitlines()).strip())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def plain(text: str) -> str:
    """``text`` to stand among words or in a cell of a table: no mark-up, no HTML, no mention, no link."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _AFTER.sub(rf"\g<0>{_INVISIBLE}", _SPECIAL.sub(r"\\\1", text))


def code(text: str) -> str:
    """``text`` as code among words."""
    text = one_line(text) or " "
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def block(lines: list[str]) -> list[str]:
    """``lines`` as a block of code, each on one line."""
    lines = [one_line(line) for line in lines]
    fence = "`" * max(3, max(map(_longest_run, lines), default=0) + 1)
    return [fence, *lines, fence]


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
