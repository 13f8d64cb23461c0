"""Writes a checkpoint as GGUF and quantises it with the peer's own code.

Runs in the virtual environment. Memory: one GGUF tensor (all experts of a
layer's matrix) at a time.
"""

import ctypes
import os
import pathlib

import checkpoint
import gguf
import llama_cpp
import numpy as np

_GGML_TYPE = {
    "BF16": gguf.GGMLQuantizationType.BF16,
    "F16": gguf.GGMLQuantizationType.F16,
    "F32": gguf.GGMLQuantizationType.F32,
}
_NUMPY_TYPE = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}

# Every matrix gets the same type, embedding and head too ("pure"): otherwise
# the peer keeps the head at 6 or 8 bits.
_QUANTISED = {
    "q8_0": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, gguf.GGMLQuantizationType.Q8_0),
    "q4_0": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, gguf.GGMLQuantizationType.Q4_0),
}
_QUANTISE_BUFFER_BYTES = 512 << 20


def _load(tensor):
    return np.memmap(
        tensor.path,
        dtype=_NUMPY_TYPE[tensor.dtype],
        mode="r",
        offset=tensor.offset,
        shape=tensor.shape,
    )


def _as_f32(array, dtype):
    if dtype == "BF16":  # the upper half of a float
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _data(entry, tensors):
    sources = [tensors[name] for name in entry.sources]
    parts = [_load(source) for source in sources]
    array = parts[0] if len(parts) == 1 else np.stack(parts)
    if entry.rotary_heads:
        order = checkpoint.rotary_row_order(array.shape[0], entry.rotary_heads)
        array = array[order]
    if entry.as_f32:
        array = _as_f32(array, sources[0].dtype)
    return np.ascontiguousarray(array)


def _add_metadata(writer, config):
    family = checkpoint.FAMILIES[config["model_type"]]
    heads = config["num_attention_heads"]
    writer.add_name("random")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_expert_count(config[family.experts_key])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def write_gguf(model_dir, path):
    """The checkpoint's weights as they are; complete or absent."""
    path = pathlib.Path(path)
    config = checkpoint.read_config(model_dir)
    tensors = checkpoint.read_tensors(model_dir)
    plan = checkpoint.plan_gguf(config)
    used = {name for entry in plan for name in entry.sources}
    if used != set(tensors):
        raise checkpoint.CheckpointError(
            f"{model_dir}: tensors that were not expected or are missing: "
            f"{sorted(used ^ set(tensors))[:4]}"
        )
    family = checkpoint.FAMILIES[config["model_type"]]
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, family.architecture)
    _add_metadata(writer, config)
    for entry in plan:
        source = tensors[entry.sources[0]]
        dtype = "F32" if entry.as_f32 else source.dtype
        shape = source.shape
        if len(entry.sources) > 1:
            shape = (len(entry.sources), *shape)
        count = len(entry.sources) * source.num_elements
        writer.add_tensor_info(
            entry.name,
            shape,
            np.dtype(_NUMPY_TYPE[dtype]),
            count * checkpoint.SIZE_OF[dtype],
            raw_dtype=_GGML_TYPE[dtype],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in plan:
        writer.write_tensor_data(_data(entry, tensors))
    writer.close()
    os.replace(part, path)


def quantise_gguf(source, path, kind):
    """Q8_0 or Q4_0 by the peer's quantiser."""
    path = pathlib.Path(path)
    part = path.with_suffix(".part")
    ftype, tensor_type = _QUANTISED[kind]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.pure = True
    params.quantize_output_tensor = True
    params.output_tensor_type = int(tensor_type)
    params.token_embedding_type = int(tensor_type)
    params.nthread = len(os.sched_getaffinity(0))
    params.max_buf_size = _QUANTISE_BUFFER_BYTES
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(part).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise RuntimeError(f"llama_model_quantize({source}) returned {status}")
    os.replace(part, path)


def tensor_types(path):
    """Weights by GGML type: {"Q8_0": 927000000, "F32": ...}."""
    counts = {}
    for tensor in gguf.GGUFReader(path).tensors:
        name = tensor.tensor_type.name
        counts[name] = counts.get(name, 0) + int(tensor.n_elements)
    return counts
