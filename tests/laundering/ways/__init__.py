"""Importing the files of this package registers their ways."""

from tests.laundering.ways import (  # noqa: F401
    before,
    branches,
    files,
    memory,
    numpy_tables,
    numpy_values,
    processes,
    scalars,
    scores,
    state,
    threads,
    torch_grads,
    torch_ops,
)
