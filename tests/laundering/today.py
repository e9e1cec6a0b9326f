"""What does not hold yet, and why. A name that does hold fails its test until it is taken out here."""

from __future__ import annotations


def _by_name(reasons: dict[str, str]) -> dict[str, str]:
    return {name: reason for reason, names in reasons.items() for name in names.split()}


_MISSED = {
    "what was computed before a watch is outside of it": """
        before.derived
    """,
}
_DOUBTED = {
    "a list that is older than the watch tells nobody who reads it": """
        before.python_list
    """,
}

#: Leaking programs that a watch calls clean, or fails on.
MISSED = _by_name(_MISSED)

#: Legal twins that it does not call clean.
DOUBTED = _by_name(_DOUBTED)
