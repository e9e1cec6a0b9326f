"""``python -m causaltrace``: the same as the console script."""

from causaltrace.cli import main

main()
