"""The models: every causal language model of ``transformers``, and some that are known not to be causal."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.zoo.shrink import small

ATTENTION = ("eager", "sdpa")
_MIXED = ["linear_attention", "full_attention"]
_SHARED = ["sliding_attention", "full_attention"] * 2

#: What a configuration needs besides being small.
OVERRIDES: dict[str, dict[str, Any]] = {
    "BltForCausalLM": {"encoder_hash_byte_group_vocab": 32, "use_cache": False},
    "BambaForCausalLM": {"attn_layer_indices": [1]},
    "CohereCompassForCausalLM": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
            "full_attention": None,
        },
    },
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "Dots3NoteForCausalLM": {"per_layer_config": {}, "head_dim": 32, "qk_nope_head_dim": 24},
    "FalconH1ForCausalLM": {"mamba_d_ssm": 64},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "Gemma3nForCausalLM": {"layer_types": _SHARED, "num_hidden_layers": 4, "num_kv_shared_layers": 2},
    "GraniteMoeHybridForCausalLM": {"layer_types": _MIXED},
    "HrmTextForCausalLM": {"num_layers_per_stack": None},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "Mamba2ForCausalLM": {"head_dim": 16, "n_groups": 2},
    "Mistral4ForCausalLM": {
        "num_key_value_heads": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 4,
        },
    },
    "MusicgenForCausalLM": {"num_codebooks": 1},
    "MusicgenMelodyForCausalLM": {"num_codebooks": 1},
    "NemotronHForCausalLM": {"n_groups": 2},
    "Qwen4ExpForCausalLM": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "RecurrentGemmaForCausalLM": {"num_hidden_layers": 3},
    "ReformerModelWithLMHead": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds": False,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "hash_seed": 0,
    },
    "XLMWithLMHeadModel": {"causal": True},
    "XmodForCausalLM": {"languages": ["en_XX"], "default_language": "en_XX"},
    "ZambaForCausalLM": {
        "num_hidden_layers": 5,
        "layers_block_type": None,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "Zamba2ForCausalLM": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
    "xLSTMForCausalLM": {"hidden_size": 128, "embedding_dim": 128},
}  # fmt: skip

#: Models that look ahead: encoders, permutation models, prompts that see each other.
NOT_CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "BertLMHeadModel as an encoder": ("BertLMHeadModel", {"is_decoder": False}),
    "RobertaForCausalLM as an encoder": ("RobertaForCausalLM", {"is_decoder": False}),
    "ElectraForCausalLM as an encoder": ("ElectraForCausalLM", {"is_decoder": False}),
    "XLMWithLMHeadModel as an encoder": ("XLMWithLMHeadModel", {"causal": False}),
    "BertForMaskedLM": ("BertForMaskedLM", {"is_decoder": False}),
    "RobertaForMaskedLM": ("RobertaForMaskedLM", {"is_decoder": False}),
    "DistilBertForMaskedLM": ("DistilBertForMaskedLM", {"dim": 32, "hidden_dim": 24}),
    "ModernBertForMaskedLM": ("ModernBertForMaskedLM", {}),
    "FNetForMaskedLM": ("FNetForMaskedLM", {}),
}


class Unbuilt(Exception):
    """Why a model is not in the zoo."""


class Model(NamedTuple):
    """``name`` as the table has it; the class of ``transformers``; what its configuration needs."""

    name: str
    cls: str
    override: dict[str, Any]

    def build(self, attention: str) -> nn.Module:
        """A tiny model with random weights.

        Raises:
            Unbuilt: with the reason.
        """
        cls = getattr(transformers, self.cls)
        override = dict(self.override)
        torch.manual_seed(0)
        try:
            if "is_decoder" in vars(cls.config_class()):
                override.setdefault("is_decoder", True)
            config = small(cls.config_class, **override)
            config._attn_implementation = attention
            return cls(config).eval()
        except Exception as error:
            raise Unbuilt(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def models() -> dict[str, Model]:
    """Every causal language model, and the ones that are known not to be."""
    names = {n for n in dir(transformers) if n.endswith("ForCausalLM") and not n.startswith("Auto")}
    names |= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    found = {n: Model(n, n, OVERRIDES.get(n, {})) for n in sorted(names, key=str.lower)}
    return found | {n: Model(n, cls, override) for n, (cls, override) in NOT_CAUSAL.items()}
