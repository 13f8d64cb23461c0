// Qwen3-MoE: per-head norms of queries and keys, no shared expert.
#include <algorithm>

#include "model/families/family.h"

namespace troupe {
namespace {

void Parse(ConfigReader& reader, ModelConfig& config) {
  config.qk_norm = QkNorm::kPerHead;
  ParseAttentionBias(reader, config);
  // One window for all layers; max_window_layers has no effect here.
  if (reader.Bool("use_sliding_window", false)) {
    config.sliding_window.assign(
        config.num_layers,
        reader.Size("sliding_window", 1, kMaxPositions, 4096));
  }
  ParseExperts(reader, config);
  ParseSparseLayers(reader, config);
  if (config.num_experts > 0) {
    config.expert_intermediate_size =
        reader.Size("moe_intermediate_size", 1, kMaxIntermediateSize);
    config.norm_topk_prob = reader.Bool("norm_topk_prob", false);
  }
}

void Write(const ModelConfig& config, nlohmann::json& object) {
  object["attention_bias"] = config.qkv_bias;
  object["num_experts"] = config.num_experts;
  object["num_experts_per_tok"] = config.top_k;
  object["moe_intermediate_size"] = config.expert_intermediate_size;
  object["norm_topk_prob"] = config.norm_topk_prob;
  WriteSparseLayers(config, object);
  const size_t window = config.sliding_window[0];
  object["use_sliding_window"] = window > 0;
  object["sliding_window"] = nullptr;
  if (window > 0) object["sliding_window"] = window;
}

}  // namespace

const Family kQwen3MoeFamily = {
    .architecture = Architecture::kQwen3Moe,
    .model_type = "qwen3_moe",
    .class_name = "Qwen3MoeForCausalLM",
    .default_rope_theta = 10000.0,
    .default_rms_norm_eps = 1e-6,
    .kv_heads_default_to_heads = false,
    .parse = Parse,
    .write = Write,
    .router = "mlp.gate",
    .expert_prefix = "mlp.experts.",
    .expert_gate = "gate_proj",
    .expert_up = "up_proj",
    .expert_down = "down_proj",
};

}  // namespace troupe
