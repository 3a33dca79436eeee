"""Published sizes, from facts alone: parameters as transformers counts them, bytes of a token in the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenmill.kv.layout import kind_of
from tokenmill.models.spec import families, read_spec
from tokenmill.models.twin import twin_config

YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
V2_LITE = {
    "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_intermediate_size": 1408, "n_routed_experts": 64,
    "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "topk_method": "greedy", "routed_scaling_factor": 1.0, "vocab_size": 102400, "max_position_embeddings": 163840,
    "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
}  # fmt: skip
V3 = {
    "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4,
    "vocab_size": 129280, "max_position_embeddings": 163840,
    "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
}  # fmt: skip
# Sizes of models.md, with the parameters their authors state, in billions.
SHAPES: dict[str, tuple[str, dict[str, Any], float]] = {
    "Mixtral-8x7B": ("mixtral", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768}, 46.7),
    "Qwen3-30B-A3B": ("qwen3_moe", {
        "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "num_experts_per_tok": 8, "mlp_only_layers": [], "vocab_size": 151936, "max_position_embeddings": 40960}, 30.5),
    "DeepSeek-V2-Lite": ("deepseek_v2", V2_LITE, 15.7),
    "DeepSeek-V3": ("deepseek_v3", V3, 671.0),
    "Gemma-2-9B": ("gemma2", {
        "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000, "sliding_window": 4096,
        "max_position_embeddings": 8192}, 9.2),
    "Gemma-3-1B": ("gemma3", {
        "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512,
        "sliding_window_pattern": 6, "max_position_embeddings": 32768}, 1.0),
    "gpt-oss-20b": ("gpt_oss", {
        "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32, "vocab_size": 201088, "layer_types": None,
        "sliding_window": 128, "max_position_embeddings": 131072}, 20.9),
    "GLM-4-9B": ("glm", {
        "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 32,
        "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 151552, "max_position_embeddings": 131072}, 9.4),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_transformers(name: str) -> None:
    from transformers import AutoModelForCausalLM

    family, sizes, billions = SHAPES[name]
    raw = {**families()[family].tiny, **sizes}
    spec = read_spec(raw)
    with torch.device("meta"):
        theirs: Any = AutoModelForCausalLM.from_config(twin_config(raw))
    # The bias on DeepSeek-V3's choice is a buffer there.
    biases = [value for key, value in theirs.named_buffers() if key.endswith("e_score_correction_bias")]
    counted = sum(value.numel() for value in (*theirs.parameters(), *biases))
    assert spec.linear_params + spec.other_params == counted
    assert round(counted / 1e9, 1) == billions


def test_a_token_of_deepseek_v3_takes_69_kib() -> None:
    """61 layers of 512 + 64 numbers in half precision, whatever the 128 heads."""
    spec = read_spec({**families()["deepseek_v3"].tiny, **V3})
    per_layer = kind_of(spec.latent, "auto").bytes_per_token(spec.num_kv_heads, spec.head_dim, 2)
    assert spec.num_layers * per_layer == 61 * 2 * 576 == 70272
