"""Writes a checkpoint as a Hugging Face model folder and checks it.

The weights are bfloat16 with Mixtral's classic names, one matrix per expert.
The check loads the folder with transformers and compares, in float32, logits
with those of model.py on the same rounded weights.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from model import Config, Model
from prepare import END, END_ID

TOLERANCE = 1e-4


def load_checkpoint(path: Path) -> tuple[Model, dict]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = Model(Config(**state["config"]))
    model.load_state_dict(state["model"])
    return model.eval(), state["progress"]


def hf_tensors(model: Model) -> dict:
    c = model.config
    tensors = {"model.embed_tokens.weight": model.embedding,
               "model.norm.weight": model.norm.weight}
    for i, layer in enumerate(model.layers):
        at = f"model.layers.{i}."
        tensors[at + "input_layernorm.weight"] = layer.norm1.weight
        tensors[at + "post_attention_layernorm.weight"] = layer.norm2.weight
        sizes = [n * c.head_dim
                 for n in (c.num_heads, c.num_kv_heads, c.num_kv_heads)]
        parts = layer.attention.wqkv.split(sizes)
        for name, part in zip("qkv", parts):
            tensors[f"{at}self_attn.{name}_proj.weight"] = part
        tensors[at + "self_attn.o_proj.weight"] = layer.attention.wo
        moe = at + "block_sparse_moe."
        tensors[moe + "gate.weight"] = layer.mlp.gate
        for e in range(c.num_experts):
            w1, w3 = layer.mlp.w13[e].chunk(2)
            tensors[f"{moe}experts.{e}.w1.weight"] = w1
            tensors[f"{moe}experts.{e}.w2.weight"] = layer.mlp.w2[e]
            tensors[f"{moe}experts.{e}.w3.weight"] = w3
    return {name: t.detach().to(torch.bfloat16).contiguous().clone()
            for name, t in tensors.items()}


def hf_config(c: Config, aux: float) -> dict:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "torch_dtype": "bfloat16",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.expert_width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "num_local_experts": c.num_experts,
        "num_experts_per_tok": c.top_k,
        "max_position_embeddings": c.max_positions,
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.rms_eps,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "output_router_logits": False,
        "router_aux_loss_coef": aux,
        "router_jitter_noise": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": END_ID,
        "eos_token_id": END_ID,
    }


def tokenizer_config(c: Config) -> dict:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": c.max_positions,
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
    }


GENERATION = {
    "bos_token_id": END_ID,
    "eos_token_id": END_ID,
    "pad_token_id": END_ID,
    "do_sample": True,
    "temperature": 0.8,
    "top_p": 0.95,
}


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def check(folder: Path, model: Model) -> float:
    """Largest difference of a logit between transformers and model.py."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = 'Once upon a time, a fox said, "I am 7 years old!"\nThe end.'
    raw = json.loads((folder / "tokenizer.json").read_text())
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids[0, 0] == END_ID and len(raw["model"]["vocab"]) == len(tokenizer)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == text

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rounded = Model(model.config)
    rounded.load_state_dict(
        {k: v.to(torch.bfloat16).float() for k, v in
         model.state_dict().items()})
    generator = torch.Generator().manual_seed(0)
    ids = torch.cat((ids, torch.randint(
        0, model.config.vocab_size, (1, 200), generator=generator)), dim=1)
    with torch.no_grad():
        return (theirs.eval()(ids).logits - rounded(ids)).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--aux", type=float, default=0.01)
    args = parser.parse_args()

    model, progress = load_checkpoint(args.checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "config.json", hf_config(model.config, args.aux))
    write_json(args.out / "generation_config.json", GENERATION)
    write_json(args.out / "tokenizer_config.json",
               tokenizer_config(model.config))
    shutil.copyfile(args.work / "tokenizer.json", args.out / "tokenizer.json")
    partial = args.out / "model.safetensors.partial"
    save_file(hf_tensors(model), partial, metadata={"format": "pt"})
    os.chmod(partial, 0o644)
    os.replace(partial, args.out / "model.safetensors")

    difference = check(args.out, model)
    print(f"exported {progress['tokens']} tokens of training, "
          f"{model.num_parameters()} parameters; largest logit difference "
          f"from transformers {difference:.2e}")
    assert difference < TOLERANCE


if __name__ == "__main__":
    main()
