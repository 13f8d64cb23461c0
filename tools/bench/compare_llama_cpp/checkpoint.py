"""A Hugging Face folder, and the tensors that make the same model as GGUF.

Reads config.json and the headers of the safetensors files; plans every GGUF
tensor as source tensors and what is done to their rows. Standard library only.
"""

import dataclasses
import json
import math
import os
import pathlib
import struct

SIZE_OF = {"F32": 4, "BF16": 2, "F16": 2}


class CheckpointError(Exception):
    """The folder is not a model that the comparison can convert."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one tensor of the checkpoint lies."""

    path: pathlib.Path
    offset: int  # bytes from the start of the file
    dtype: str  # as in safetensors
    shape: tuple

    @property
    def num_elements(self):
        return math.prod(self.shape)

    @property
    def num_bytes(self):
        return self.num_elements * SIZE_OF[self.dtype]


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """One tensor of the GGUF file.

    `sources` are stacked along a new first dimension when there are several.
    `rotary_heads`: rows are reordered within each of so many heads, from two
    halves (Hugging Face) to neighbouring pairs, which is where the peer's
    rotary positions of this architecture look for them. 0: left as they are.
    `as_f32`: the peer multiplies these in float32 and refuses other types.
    """

    name: str
    sources: tuple
    rotary_heads: int = 0
    as_f32: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """What differs between the families, in names and in GGUF's metadata."""

    architecture: str  # general.architecture
    router: str
    expert: str  # with {expert} and {matrix}
    matrices: dict  # gate, up, down: as the checkpoint calls them
    rotary_pairs: bool  # rows of q and k must be reordered
    qk_norm: bool
    experts_key: str  # in config.json
    norm_topk_prob: bool  # what the peer's graph does


FAMILIES = {
    "mixtral": Family(
        architecture="llama",
        router="block_sparse_moe.gate",
        expert="block_sparse_moe.experts.{expert}.{matrix}",
        matrices={"gate": "w1", "up": "w3", "down": "w2"},
        rotary_pairs=True,
        qk_norm=False,
        experts_key="num_local_experts",
        norm_topk_prob=True,
    ),
    "olmoe": Family(
        architecture="olmoe",
        router="mlp.gate",
        expert="mlp.experts.{expert}.{matrix}",
        matrices={"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
        rotary_pairs=False,
        qk_norm=True,
        experts_key="num_experts",
        norm_topk_prob=False,
    ),
}


def read_config(model_dir):
    """config.json, refused if the peer would compute something else."""
    path = pathlib.Path(model_dir) / "config.json"
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"{path}: model_type {model_type!r} is none of {sorted(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    if config.get("norm_topk_prob", family.norm_topk_prob) != family.norm_topk_prob:
        raise CheckpointError(f"{path}: norm_topk_prob differs from the peer's")
    for key in ("rope_scaling", "sliding_window", "clip_qkv"):
        if config.get(key) is not None:
            raise CheckpointError(f"{path}: {key} is not converted")
    if config.get("tie_word_embeddings"):
        raise CheckpointError(f"{path}: tie_word_embeddings is not converted")
    heads = config["num_attention_heads"]
    if config.get("head_dim", config["hidden_size"] // heads) * heads != (
        config["hidden_size"]
    ):
        raise CheckpointError(f"{path}: head_dim is not hidden_size / heads")
    return config


def read_tensors(model_dir):
    """Every tensor of the folder's safetensors files, by name."""
    tensors = {}
    for path in sorted(pathlib.Path(model_dir).glob("*.safetensors")):
        file_size = os.path.getsize(path)
        with open(path, "rb") as file:
            (header_size,) = struct.unpack("<Q", file.read(8))
            if header_size > file_size - 8:
                raise CheckpointError(f"{path}: header of {header_size} bytes")
            header = json.loads(file.read(header_size))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in SIZE_OF:
                raise CheckpointError(f"{path}: {name} is {entry['dtype']}")
            begin, end = entry["data_offsets"]
            tensor = Tensor(
                path, 8 + header_size + begin, entry["dtype"], tuple(entry["shape"])
            )
            if end - begin != tensor.num_bytes or 8 + header_size + end > file_size:
                raise CheckpointError(f"{path}: {name} has wrong data_offsets")
            tensors[name] = tensor
    if not tensors:
        raise CheckpointError(f"{model_dir}: no safetensors files")
    return tensors


def plan_gguf(config):
    """Every tensor of the GGUF file, in the order in which it is written."""
    family = FAMILIES[config["model_type"]]
    heads = config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    plan = [GgufTensor("token_embd.weight", ("model.embed_tokens.weight",))]
    for layer in range(config["num_hidden_layers"]):
        source = f"model.layers.{layer}."
        target = f"blk.{layer}."

        def add(name, *sources, **what):
            plan.append(
                GgufTensor(
                    f"{target}{name}.weight",
                    tuple(f"{source}{s}.weight" for s in sources),
                    **what,
                )
            )

        pairs = family.rotary_pairs
        add("attn_norm", "input_layernorm", as_f32=True)
        add("attn_q", "self_attn.q_proj", rotary_heads=heads if pairs else 0)
        add("attn_k", "self_attn.k_proj", rotary_heads=kv_heads if pairs else 0)
        add("attn_v", "self_attn.v_proj")
        add("attn_output", "self_attn.o_proj")
        if family.qk_norm:
            add("attn_q_norm", "self_attn.q_norm", as_f32=True)
            add("attn_k_norm", "self_attn.k_norm", as_f32=True)
        add("ffn_norm", "post_attention_layernorm", as_f32=True)
        add("ffn_gate_inp", family.router, as_f32=True)
        for matrix, called in family.matrices.items():
            add(
                f"ffn_{matrix}_exps",
                *(
                    family.expert.format(expert=expert, matrix=called)
                    for expert in range(config[family.experts_key])
                ),
            )
    plan.append(GgufTensor("output_norm.weight", ("model.norm.weight",), as_f32=True))
    plan.append(GgufTensor("output.weight", ("lm_head.weight",)))
    return plan


def rotary_row_order(num_rows, num_heads):
    """Source row of every row of a projection whose heads hold pairs."""
    head_dim = num_rows // num_heads
    return [
        head * head_dim + half * (head_dim // 2) + i
        for head in range(num_heads)
        for i in range(head_dim // 2)
        for half in (0, 1)
    ]


def active_matrix_weights(config):
    """Weights of matrices that one token reads: no embedding, no norms."""
    family = FAMILIES[config["model_type"]]
    hidden = config["hidden_size"]
    head_dim = hidden // config["num_attention_heads"]
    kv_size = config["num_key_value_heads"] * head_dim
    attention = 2 * hidden * hidden + 2 * hidden * kv_size
    experts = 3 * hidden * config["intermediate_size"] * config["num_experts_per_tok"]
    router = hidden * config[family.experts_key]
    layers = config["num_hidden_layers"] * (attention + experts + router)
    return layers + hidden * config["vocab_size"]
