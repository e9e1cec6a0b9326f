"""Tiny tensors: threads only cost time."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def copies_where_they_matter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch looks once at all that lives; in a process of thousands of tests that is most of their time."""
    files = ("test_copies.py", "test_plain.py", "test_demo.py")
    if request.path.name not in files and "[before." not in request.node.name:
        monkeypatch.setattr("causaltrace.boundary.copies.look", lambda *_: [])
