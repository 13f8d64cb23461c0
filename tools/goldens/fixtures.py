"""The tiny checkpoints under tests/goldens: one or two per model family.

Between them the variants of a family switch on every option that the family
has. Widths are chosen to be awkward: no power of two where none is needed, so
that remainders of tiles and vector lanes are computed too. All windows are
shorter than the prompts.

A probe is a wrong reading of the checkpoint ("the window is off by one", "the
gate weights are not renormalised"). For each one make_goldens.py measures how
far the logits move and refuses a fixture in which the mistake would not show.
"""

import copy
import dataclasses
from collections.abc import Callable

import torch

# ids 0-255 are the bytes, 256 begins a text and 257 ends it.
BOS_ID = 256
EOS_ID = 257

Tensors = dict[str, torch.Tensor]
Probe = Callable[[dict, Tensors], None]  # changes both in place


@dataclasses.dataclass(frozen=True)
class Fixture:
    name: str
    config: dict
    dtype: torch.dtype
    probes: dict[str, Probe]
    num_shards: int = 1
    # Tokens that tokenizer.json knows; ids from here to vocab_size have no
    # text, as in checkpoints whose embedding is padded.
    tokenizer_size: int | None = None


def set_config(**values) -> Probe:
    """Replaces config keys; None removes the key."""

    def probe(config: dict, tensors: Tensors) -> None:
        for key, value in values.items():
            config[key] = copy.deepcopy(value)
            if value is None:
                del config[key]

    return probe


def fill(suffix: str, value: float) -> Probe:
    """Sets every tensor whose name ends with `suffix` to one value."""

    def probe(config: dict, tensors: Tensors) -> None:
        names = [name for name in tensors if name.endswith(suffix)]
        assert names, suffix
        for name in names:
            tensors[name] = torch.full_like(tensors[name], value)

    return probe


def swap(first: str, second: str) -> Probe:
    """Exchanges tensors whose names differ only in `first` and `second`."""

    def probe(config: dict, tensors: Tensors) -> None:
        names = [name for name in tensors if first in name]
        assert names, first
        for name in names:
            other = name.replace(first, second)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return probe


def interleave_rope(config: dict, tensors: Tensors) -> None:
    """Reads q and k as if rope rotated neighbours instead of halves."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    order = torch.arange(head_dim).view(2, -1).T.flatten()
    for name, tensor in tensors.items():
        if ".q_proj." in name or ".k_proj." in name:
            parts = tensor.unflatten(0, (-1, head_dim))
            tensors[name] = parts[:, order].flatten(0, 1).contiguous()


def _base(model_type: str, architecture: str, **values) -> dict:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": 512,
        "use_cache": True,
    } | values


_COMMON_PROBES = {
    "norm weights ignored": fill("layernorm.weight", 1.0),
    "final norm weight ignored": fill("model.norm.weight", 1.0),
    "rope on neighbours": interleave_rope,
    "rms_norm_eps at 1e-6": set_config(rms_norm_eps=1e-6),
}

MIXTRAL_WINDOW = Fixture(
    name="mixtral_window",
    dtype=torch.bfloat16,
    config=_base(
        "mixtral", "MixtralForCausalLM",
        vocab_size=264, hidden_size=64, intermediate_size=28,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=24, num_local_experts=7, num_experts_per_tok=2,
        sliding_window=21, rms_norm_eps=1e-2, tie_word_embeddings=False,
        router_aux_loss_coef=0.02, router_jitter_noise=0.0,
        # rope_theta is absent on purpose: the family's default is 1e6.
        torch_dtype="bfloat16"),
    probes=_COMMON_PROBES | {
        "no window": set_config(sliding_window=None),
        "window one longer": set_config(sliding_window=22),
        "window one shorter": set_config(sliding_window=20),
        "rope_theta defaults to 1e4": set_config(rope_theta=1e4),
        "w1 and w3 exchanged": swap(".w1.", ".w3."),
    })

MIXTRAL_SHARDED = Fixture(
    name="mixtral_sharded",
    dtype=torch.float32,
    num_shards=3,
    config=_base(
        "mixtral", "MixtralForCausalLM",
        vocab_size=260, hidden_size=48, intermediate_size=28,
        num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
        head_dim=None, num_local_experts=5, num_experts_per_tok=3,
        sliding_window=None, rms_norm_eps=1e-2, rope_theta=500.0,
        tie_word_embeddings=True, torch_dtype="float32"),
    probes=_COMMON_PROBES | {
        "rope_theta ignored": set_config(rope_theta=1e6),
        "w1 and w3 exchanged": swap(".w1.", ".w3."),
    })

QWEN2_MOE_SPARSE_STEP = Fixture(
    name="qwen2_moe_sparse_step",
    dtype=torch.bfloat16,
    config=_base(
        "qwen2_moe", "Qwen2MoeForCausalLM",
        vocab_size=264, hidden_size=64, intermediate_size=72,
        moe_intermediate_size=24, shared_expert_intermediate_size=56,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        num_experts=8, num_experts_per_tok=3, norm_topk_prob=False,
        decoder_sparse_step=2, mlp_only_layers=[], qkv_bias=True,
        use_sliding_window=True, sliding_window=20, max_window_layers=3,
        rms_norm_eps=1e-2, rope_theta=20000.0, tie_word_embeddings=False,
        output_router_logits=False, torch_dtype="bfloat16"),
    probes=_COMMON_PROBES | {
        "q bias ignored": fill("q_proj.bias", 0.0),
        "k bias ignored": fill("k_proj.bias", 0.0),
        "v bias ignored": fill("v_proj.bias", 0.0),
        "weights renormalised": set_config(norm_topk_prob=True),
        "no window": set_config(use_sliding_window=False),
        "window one longer": set_config(sliding_window=21),
        "every layer below max_window_layers slides": set_config(
            layer_types=["sliding_attention"] * 3 + ["full_attention"]),
        "layers from max_window_layers on slide": set_config(
            layer_types=["full_attention"] * 3 + ["sliding_attention"]),
        "max_window_layers ignored": set_config(max_window_layers=1),
        "shared expert left out": fill("shared_expert.down_proj.weight", 0.0),
        "shared expert gate at one half": fill(
            "shared_expert_gate.weight", 0.0),
        "gate and up exchanged": swap(".gate_proj.", ".up_proj."),
    })

QWEN2_MOE_LAYER_TYPES = Fixture(
    name="qwen2_moe_layer_types",
    dtype=torch.float32,
    config=_base(
        "qwen2_moe", "Qwen2MoeForCausalLM",
        vocab_size=260, hidden_size=48, intermediate_size=40,
        moe_intermediate_size=20, shared_expert_intermediate_size=36,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1,
        num_experts=6, num_experts_per_tok=2, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[1], qkv_bias=False,
        use_sliding_window=True, sliding_window=17, max_window_layers=1,
        layer_types=["full_attention", "sliding_attention",
                     "sliding_attention"],
        rms_norm_eps=1e-2, tie_word_embeddings=True, dtype="float32",
        rope_parameters={"rope_type": "default", "rope_theta": 3000.0}),
    probes=_COMMON_PROBES | {
        "weights not renormalised": set_config(norm_topk_prob=False),
        "layer_types ignored": set_config(layer_types=None),
        "window one longer": set_config(sliding_window=18),
        "rope_parameters ignored": set_config(rope_parameters=None),
        "shared expert left out": fill("shared_expert.down_proj.weight", 0.0),
    })

QWEN3_MOE_WINDOW = Fixture(
    name="qwen3_moe_window",
    dtype=torch.bfloat16,
    tokenizer_size=262,
    config=_base(
        "qwen3_moe", "Qwen3MoeForCausalLM",
        vocab_size=272, hidden_size=56, intermediate_size=64,
        moe_intermediate_size=28, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, num_experts=8,
        num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=1,
        mlp_only_layers=[], attention_bias=True, use_sliding_window=True,
        sliding_window=16, max_window_layers=1, rms_norm_eps=1e-2,
        rope_theta=1000000.0, rope_scaling=None, tie_word_embeddings=False,
        output_router_logits=False, torch_dtype="bfloat16"),
    probes=_COMMON_PROBES | {
        "q bias ignored": fill("q_proj.bias", 0.0),
        "k bias ignored": fill("k_proj.bias", 0.0),
        "v bias ignored": fill("v_proj.bias", 0.0),
        "o bias ignored": fill("o_proj.bias", 0.0),
        "q_norm weight ignored": fill("q_norm.weight", 1.0),
        "k_norm weight ignored": fill("k_norm.weight", 1.0),
        "weights not renormalised": set_config(norm_topk_prob=False),
        "no window": set_config(use_sliding_window=False),
        "window one longer": set_config(sliding_window=17),
        "rope_theta ignored": set_config(rope_theta=1e4),
        "gate and up exchanged": swap(".gate_proj.", ".up_proj."),
    })

# Blends between pairs 1 and 3 of the 8; the ends, before rounding, are 1.1 and
# 2.8.
_YARN_ROPE = {
    "rope_type": "yarn", "rope_theta": 700.0, "factor": 4.0, "beta_fast": 4.0,
    "beta_slow": 1.0, "original_max_position_embeddings": 64,
}

QWEN3_MOE_DENSE_FIRST = Fixture(
    name="qwen3_moe_dense_first",
    dtype=torch.float16,
    config=_base(
        "qwen3_moe", "Qwen3MoeForCausalLM",
        vocab_size=264, hidden_size=64, intermediate_size=88,
        moe_intermediate_size=32, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=3, head_dim=16, num_experts=7,
        num_experts_per_tok=2, norm_topk_prob=False, decoder_sparse_step=1,
        mlp_only_layers=[0], attention_bias=False, use_sliding_window=False,
        # Not to be used, because use_sliding_window is false.
        sliding_window=16,
        rms_norm_eps=1e-2, tie_word_embeddings=True, dtype="float16",
        rope_parameters=_YARN_ROPE),
    probes=_COMMON_PROBES | {
        "q_norm weight ignored": fill("q_norm.weight", 1.0),
        "weights renormalised": set_config(norm_topk_prob=True),
        "use_sliding_window ignored": set_config(use_sliding_window=True),
        "rope scaling ignored": set_config(
            rope_parameters={"rope_type": "default", "rope_theta": 700.0}),
        "beta_fast ignored": set_config(
            rope_parameters=_YARN_ROPE | {"beta_fast": 32.0}),
        "ends of the blend not rounded": set_config(
            rope_parameters=_YARN_ROPE | {"truncate": False}),
        "cosines and sines not multiplied": set_config(
            rope_parameters=_YARN_ROPE | {"attention_factor": 1.0}),
    })

OLMOE_CLIP = Fixture(
    name="olmoe_clip",
    dtype=torch.bfloat16,
    config=_base(
        "olmoe", "OlmoeForCausalLM",
        vocab_size=264, hidden_size=64, intermediate_size=28,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        num_experts=8, num_experts_per_tok=4, norm_topk_prob=False,
        attention_bias=False, clip_qkv=0.9, pad_token_id=None,
        rms_norm_eps=1e-2, rope_theta=10000.0, tie_word_embeddings=False,
        output_router_logits=False, torch_dtype="bfloat16"),
    probes=_COMMON_PROBES | {
        "q_norm weight ignored": fill("q_norm.weight", 1.0),
        "k_norm weight ignored": fill("k_norm.weight", 1.0),
        "no clipping": set_config(clip_qkv=None),
        "weights renormalised": set_config(norm_topk_prob=True),
        "gate and up exchanged": swap(".gate_proj.", ".up_proj."),
    })

OLMOE_GQA = Fixture(
    name="olmoe_gqa",
    dtype=torch.float32,
    num_shards=2,
    config=_base(
        "olmoe", "OlmoeForCausalLM",
        vocab_size=260, hidden_size=48, intermediate_size=20,
        num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        num_experts=6, num_experts_per_tok=2, norm_topk_prob=True,
        attention_bias=True, clip_qkv=None, pad_token_id=None,
        rms_norm_eps=1e-2, rope_theta=300.0, tie_word_embeddings=False,
        torch_dtype="float32"),
    probes=_COMMON_PROBES | {
        "q bias ignored": fill("q_proj.bias", 0.0),
        "o bias ignored": fill("o_proj.bias", 0.0),
        "q_norm weight ignored": fill("q_norm.weight", 1.0),
        "weights not renormalised": set_config(norm_topk_prob=False),
        "rope_theta ignored": set_config(rope_theta=1e4),
    })

_LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}

LLAMA_LLAMA3_ROPE = Fixture(
    name="llama_llama3_rope",
    dtype=torch.bfloat16,
    config=_base(
        "llama", "LlamaForCausalLM",
        vocab_size=264, hidden_size=64, intermediate_size=88,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, attention_bias=True, mlp_bias=False, pretraining_tp=1,
        eos_token_id=[EOS_ID, EOS_ID + 1],
        rms_norm_eps=1e-2, rope_theta=5000.0, rope_scaling=_LLAMA3_ROPE,
        tie_word_embeddings=True, torch_dtype="bfloat16"),
    probes=_COMMON_PROBES | {
        "q bias ignored": fill("q_proj.bias", 0.0),
        "o bias ignored": fill("o_proj.bias", 0.0),
        "rope scaling ignored": set_config(rope_scaling=None),
        "no smooth band": set_config(
            rope_scaling=_LLAMA3_ROPE | {"high_freq_factor": 1.001}),
        "scaled like linear": set_config(
            rope_scaling={"type": "linear", "factor": 8.0}),
        "gate and up exchanged": swap(".gate_proj.", ".up_proj."),
    })

LLAMA_LINEAR_ROPE = Fixture(
    name="llama_linear_rope",
    dtype=torch.float16,
    config=_base(
        "llama", "LlamaForCausalLM",
        vocab_size=272, hidden_size=72, intermediate_size=100,
        # num_key_value_heads is absent on purpose: as many as heads.
        num_hidden_layers=2, num_attention_heads=3, head_dim=20,
        attention_bias=False, mlp_bias=False,
        rms_norm_eps=1e-2, rope_theta=1000.0,
        # The name of the type as older checkpoints write it.
        rope_scaling={"type": "linear", "factor": 4.0},
        tie_word_embeddings=False, torch_dtype="float16"),
    probes=_COMMON_PROBES | {
        "rope scaling ignored": set_config(rope_scaling=None),
        "gate and up exchanged": swap(".gate_proj.", ".up_proj."),
    })

FIXTURES = [
    MIXTRAL_WINDOW, MIXTRAL_SHARDED, QWEN2_MOE_SPARSE_STEP,
    QWEN2_MOE_LAYER_TYPES, QWEN3_MOE_WINDOW, QWEN3_MOE_DENSE_FIRST,
    OLMOE_CLIP, OLMOE_GQA, LLAMA_LLAMA3_ROPE, LLAMA_LINEAR_ROPE,
]
