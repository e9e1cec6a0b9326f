"""``python -m benchmarks`` runs them all."""

from benchmarks.overhead import main

main()
