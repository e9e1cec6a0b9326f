"""Tiny tensors: threads only cost time."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_finish() -> None:
    """A watch looks once at all that lives, which is a lot here before the first test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def copies_where_they_matter(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Of what is older than a test only these look for copies of its tokens."""
    files = ("test_copies.py", "test_plain.py", "test_demo.py")
    if request.path.name in files or "[before." in request.node.name:
        gc.unfreeze()
        yield
        gc.freeze()
    else:
        monkeypatch.setattr("causaltrace.boundary.copies.look", lambda *_: [])
        monkeypatch.setattr("causaltrace.boundary.alive.hidden", lambda *_: [])
        yield
