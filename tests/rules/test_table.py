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


def test_rows_are_found_in_the_namespaces_of_torch_and_nowhere_else() -> None:
    import torch.nn.modules.linear_cross_entropy  # defines operations

    chunked = torch.ops.torch_nn._linear_cross_entropy_batch_chunked.default
    for func in (
        torch.ops.aten.mul.Tensor,
        torch.ops.profiler._record_function_exit._RecordFunction,
        chunked,
    ):
        assert rules.find(func) is not rules.UNKNOWN
    assert rules.find(torch.ops.prims.where.default) is rules.UNKNOWN
