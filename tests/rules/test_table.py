"""The rule table names operations that exist, and knows what depends on no tensor."""

import torch

from causaltrace import rules

FACTORIES = (
    "arange full ones zeros rand randn randint randperm eye tril_indices triu_indices scalar_tensor "
    "_efficientzerotensor empty"
)


def test_factories_depend_on_nothing() -> None:
    for name in FACTORIES.split():
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            assert rules.find(getattr(packet, overload)).kind == rules.FREE, name
