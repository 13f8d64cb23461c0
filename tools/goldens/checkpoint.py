"""Random checkpoints with the tensor names that Hugging Face publishes.

transformers 5 keeps the experts of a layer in one fused tensor in memory; the
files on disk keep one tensor per expert and projection, and these are written
here directly, never by transformers.
"""

import hashlib
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fixtures import BOS_ID, EOS_ID, Tensors


def is_moe_layer(config: dict, layer: int) -> bool:
    if config["model_type"] == "llama":
        return False
    return (layer not in config.get("mlp_only_layers", [])
            and (layer + 1) % config.get("decoder_sparse_step", 1) == 0)


def _normal(std: float):
    return lambda shape, rng: torch.randn(shape, generator=rng) * std


def _norm_weight(low: float, high: float):
    return lambda shape, rng: low + (high - low) * torch.rand(
        shape, generator=rng)


def tensor_specs(config: dict) -> dict[str, tuple[tuple[int, ...], object]]:
    """name -> (shape, how to draw it).

    The scales keep hidden states near 1, let attention prefer few positions,
    spread router logits and logits over several nats, and keep every bias
    and norm weight away from the value at which it would not matter.
    """
    hidden = config["hidden_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    family = config["model_type"]
    biases = {
        "qwen2_moe": "qkv" if config.get("qkv_bias") else "",
        "mixtral": "",
    }.get(family, "qkvo" if config.get("attention_bias") else "")

    specs = {}

    def linear(name: str, rows: int, columns: int, gain: float) -> None:
        specs[name + ".weight"] = (
            (rows, columns), _normal(gain / math.sqrt(columns)))

    def mlp(prefix: str, width: int, names: tuple[str, str, str]) -> None:
        gate, up, down = names
        linear(prefix + gate, width, hidden, 1.2)
        linear(prefix + up, width, hidden, 1.2)
        linear(prefix + down, hidden, width, 1.5)

    llama_names = ("gate_proj", "up_proj", "down_proj")
    tied = config["tie_word_embeddings"]
    linear("model.embed_tokens", config["vocab_size"], hidden,
           2.5 if tied else math.sqrt(hidden))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            specs[f"{prefix}{norm}.weight"] = (
                (hidden,), _norm_weight(0.5, 1.5))
        attention = prefix + "self_attn."
        rows = {"q": heads * head_dim, "k": kv_heads * head_dim,
                "v": kv_heads * head_dim, "o": hidden}
        for part, gain in (("q", 1.4), ("k", 1.4), ("v", 1.0), ("o", 1.2)):
            columns = heads * head_dim if part == "o" else hidden
            linear(f"{attention}{part}_proj", rows[part], columns, gain)
            if part in biases:
                # A large constant in the residual stream would drown the rest.
                specs[f"{attention}{part}_proj.bias"] = (
                    (rows[part],), _normal(0.1 if part == "o" else 0.5))
        if family in ("qwen3_moe", "olmoe"):
            for part in "qk":
                size = head_dim if family == "qwen3_moe" else rows[part]
                specs[f"{attention}{part}_norm.weight"] = (
                    (size,), _norm_weight(0.7, 1.9))

        if not is_moe_layer(config, layer):
            mlp(prefix + "mlp.", config["intermediate_size"], llama_names)
            continue
        mixtral = family == "mixtral"
        moe = prefix + ("block_sparse_moe." if mixtral else "mlp.")
        experts = config["num_local_experts" if mixtral else "num_experts"]
        width = config.get("moe_intermediate_size",
                           config["intermediate_size"])
        linear(moe + "gate", experts, hidden, 3.0)
        for expert in range(experts):
            mlp(f"{moe}experts.{expert}.", width,
                ("w1", "w3", "w2") if mixtral else llama_names)
        if family == "qwen2_moe":
            mlp(moe + "shared_expert.",
                config["shared_expert_intermediate_size"], llama_names)
            linear(moe + "shared_expert_gate", 1, hidden, 1.5)
    specs["model.norm.weight"] = ((hidden,), _norm_weight(0.5, 1.5))
    if not tied:
        linear("lm_head", config["vocab_size"], hidden, 2.5)
    return specs


def make_tensors(config: dict, dtype: torch.dtype, seed: int) -> Tensors:
    """Every tensor has its own generator, seeded by its name, so that adding
    a tensor does not change the others."""
    tensors = {}
    for name, (shape, draw) in tensor_specs(config).items():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        rng = torch.Generator().manual_seed(
            int.from_bytes(digest[:8], "little") >> 1)
        tensors[name] = draw(shape, rng).to(dtype)
    return tensors


def make_tokenizer(size: int) -> Tokenizer:
    """Byte-level BPE without merges: token id i < 256 is the byte i."""
    # GPT-2's byte alphabet: printable bytes stand for themselves, the others
    # follow at U+0100 in order.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    vocab, next_char = {}, 0x100
    for byte in range(256):
        if byte in printable:
            vocab[chr(byte)] = byte
        else:
            vocab[chr(next_char)] = byte
            next_char += 1
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    specials = {BOS_ID: "<|begin|>", EOS_ID: "<|end|>"}
    for token_id in range(256, size):
        content = specials.get(token_id, f"<|extra_{token_id}|>")
        tokenizer.add_special_tokens([AddedToken(content, special=True)])
        assert tokenizer.token_to_id(content) == token_id
    return tokenizer


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_checkpoint(directory: Path, config: dict, tensors: Tensors,
                     num_shards: int, tokenizer_size: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json",
                {"bos_token_id": config["bos_token_id"],
                 "eos_token_id": config["eos_token_id"]})
    make_tokenizer(tokenizer_size).save(str(directory / "tokenizer.json"))

    metadata = {"format": "pt"}
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata)
        return
    # Dealt out in turn: the matrices of one expert lie in different files.
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::num_shards])
        save_file(part, directory / file, metadata)
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    _write_json(directory / "model.safetensors.index.json",
                {"metadata": {"total_size": total},
                 "weight_map": dict(sorted(weight_map.items()))})
