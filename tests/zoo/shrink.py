"""Tiny versions of model configurations: few and narrow layers, but at least one of each kind."""

from __future__ import annotations

import copy
from typing import Any

#: Token ids.
VOCABULARY = 64
#: Positions in the windows that models look back through; sequences are longer, so that windows matter.
WINDOW = 3

#: Names of numbers in configurations, and the tiny value of each.
_NUMBERS: dict[int, str] = {
    32: """
        hidden_size hidden_size_global d_model n_embd emb_dim embedding_dim embedding_size
        input_embedding_size backbone_hidden_size output_embedding_size word_embed_proj_dim
        attention_hidden_size lru_width pronunciation_embed_dim shape_embed_dim""",
    24: """
        intermediate_size ffn_dim dim_ff dff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size d_inner n_inner
        moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size intermediate_size_mlp
        dense_intermediate_size shared_intermediate_size feed_forward_size shared_experts_intermediate_size
        moe_shared_expert_intermediate_size""",
    2: """
        num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers
        num_encoder_layers num_blocks num_layers_per_stack num_key_value_heads num_kv_heads
        swa_num_key_value_heads linear_num_key_heads num_query_groups num_experts_per_tok
        num_experts_per_token moe_k moe_topk top_k_experts index_topk index_topk_blocks""",
    4: """
        num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
        encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads
        swa_num_attention_heads index_n_heads linear_num_heads linear_num_value_heads mamba_n_heads
        n_mamba_heads mamba_num_heads num_experts num_local_experts n_routed_experts moe_num_experts
        chunk_size mamba_chunk_size block_size index_block_size prompt_length prompt_types""",
    8: """
        head_dim d_head dim_head attention_head_size attention_head_dim kv_channels qk_nope_head_dim
        qk_rope_head_dim v_head_dim index_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim
        rotary_dim swa_head_dim kv_lora_rank q_lora_rank o_lora_rank mamba_dt_rank time_step_rank d_rel
        hidden_size_per_layer_input laurel_rank adapter_rank hc_lowrank gated_norm_rank router_hidden_size
        dim_model_base ssm_state_size state_size mamba_d_state""",
    16: "qk_head_dim mamba_d_head mamba_headdim mamba_head_dim",
    1: """
        n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group num_expert_group
        first_k_dense_replace num_dense_layers bos_token_id eos_token_id decoder_start_token_id
        forced_eos_token_id sep_token_id cls_token_id mask_token_id""",
    0: "pad_token_id pad_index",
    WINDOW: """
        sliding_window window_size attention_window_size local_attention sliding_window_size keep_window_size
        local_attention_window_len attention_chunk_size""",
    VOCABULARY: """
        vocab_size decoder_vocab_size vocab_size_per_layer_input pronunciation_vocab_size shape_vocab_size
        unpadded_vocab_size max_position_embeddings n_positions n_ctx max_seq_len max_target_positions
        context_length max_text_tokens model_max_length max_source_positions""",
}
SMALL = {name: value for value, names in _NUMBERS.items() for name in names.split()}


def kinds(layers: list[Any]) -> list[Any]:
    """One layer of each kind, two at least."""
    out = list(dict.fromkeys(layers))
    return out if len(out) > 1 else out * 2


def small(config_class: type, **override: Any) -> Any:
    """A tiny configuration of this class."""
    default = config_class()
    own = vars(default)
    values = {
        name: value
        for name, value in SMALL.items()
        if name in own and (own[name] is not None or not name.endswith("token_id"))
    }
    if own.get("kv_lora_rank") is not None:  # latent attention: no grouped queries
        values["num_key_value_heads"] = 4
    layers = vars(default).get("layer_types")
    if layers:
        values["layer_types"] = kinds(list(layers))
        values["num_hidden_layers"] = len(values["layer_types"])
    for name in getattr(config_class, "sub_configs", {}):
        sub = getattr(default, name, None)
        if sub is not None:
            values[name] = small(type(sub)).to_dict()
    values.update(copy.deepcopy(override))
    return config_class(**values)
