from __future__ import annotations

from tests.flips import CASES

#: Examples that have no answer without data: their caches are Python's or numpy's, or their weights go
#: through a file. An audit names the watch.
IN_PYTHON = ("ngram_dict", "ngram_hashed", "ngram_full", "ttt_saved")

#: The others can be audited.
AUDITED = [name for name in CASES if name not in IN_PYTHON]
