"""A slice of the models of ``transformers``; ``make test-full`` runs all of them."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="the extra 'zoo' is not installed")

from tests.zoo.__main__ import run
from tests.zoo.models import NOT_CAUSAL, OVERRIDES, models

pytestmark = pytest.mark.filterwarnings("ignore")

#: One model of each kind of layer.
CAUSAL = [
    ("LlamaForCausalLM", "eager"),  # grouped queries, rotary positions
    ("MixtralForCausalLM", "sdpa"),  # experts by sort and grouped product, sliding windows
    ("DeepseekV32ForCausalLM", "eager"),  # latent attention, sparse keys, groups of experts
    ("DogeForCausalLM", "sdpa"),  # a dynamic mask
    ("Gemma3nForCausalLM", "sdpa"),  # shared keys and values, four streams
    ("GptOssForCausalLM", "eager"),  # attention sinks
    ("Llama4ForCausalLM", "sdpa"),  # chunked attention
    ("BloomForCausalLM", "eager"),  # ALiBi
    ("GPTNeoForCausalLM", "eager"),  # local attention
    ("MambaForCausalLM", "eager"),  # a state space, step by step
    ("BambaForCausalLM", "sdpa"),  # a state space in chunks
    ("Qwen3NextForCausalLM", "sdpa"),  # the gated delta rule in chunks
    ("RecurrentGemmaForCausalLM", "sdpa"),  # a gated linear recurrence
    ("RwkvForCausalLM", "eager"),  # linear attention
    ("xLSTMForCausalLM", "eager"),  # a matrix memory in chunks
    ("Lfm2ForCausalLM", "sdpa"),  # short convolutions
]
AHEAD = [(name, "eager") for name in NOT_CAUSAL] + [("XLNetLMHeadModel", "eager")]


@pytest.mark.parametrize(("name", "attention"), CAUSAL + AHEAD)
def test_the_matrix_is_what_flips_find(name: str, attention: str) -> None:
    row = run((models()[name], attention), values=2)
    assert not row.problems and row.verdict is not None, row.problems or row.unbuilt
    assert row.verdict.exact
    expected = "violation" if (name, attention) in AHEAD else "clean"
    assert row.verdict.status == row.verdict.expected == expected


def test_what_is_overridden_exists() -> None:
    assert set(OVERRIDES) <= set(models())
