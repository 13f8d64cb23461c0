// OLMoE: norms over the whole projected queries and keys, optional clamp of
// q, k and v, every layer has experts.
#include <algorithm>

#include "model/families/family.h"

namespace troupe {
namespace {

void Parse(ConfigReader& reader, ModelConfig& config) {
  config.qk_norm = QkNorm::kFull;
  ParseAttentionBias(reader, config);
  config.clip_qkv =
      static_cast<float>(reader.Number("clip_qkv", 1e-6, 1e6, 0.0));
  // The norm of the keys has (hidden_size / heads) * kv_heads values.
  if (config.num_heads * config.head_dim != config.hidden_size) {
    reader.FailUnsupported(
        "head_dim", "num_attention_heads * head_dim must be hidden_size");
  }
  if (reader.Size("sliding_window", 0, kMaxPositions, 0) > 0) {
    reader.FailUnsupported("sliding_window", "not defined for olmoe");
  }
  ParseExperts(reader, config);
  if (config.num_experts == 0) {
    reader.FailKey("num_experts", "must be at least 1");
  }
  config.is_moe_layer.assign(config.num_layers, true);
  config.expert_intermediate_size =
      reader.Size("intermediate_size", 1, kMaxIntermediateSize);
  config.norm_topk_prob = reader.Bool("norm_topk_prob", false);
}

void Write(const ModelConfig& config, nlohmann::json& object) {
  object["attention_bias"] = config.qkv_bias;
  object["clip_qkv"] = nullptr;
  if (config.clip_qkv > 0) object["clip_qkv"] = config.clip_qkv;
  object["num_experts"] = config.num_experts;
  object["num_experts_per_tok"] = config.top_k;
  object["intermediate_size"] = config.expert_intermediate_size;
  object["norm_topk_prob"] = config.norm_topk_prob;
}

}  // namespace

const Family kOlmoeFamily = {
    .architecture = Architecture::kOlmoe,
    .model_type = "olmoe",
    .class_name = "OlmoeForCausalLM",
    .default_rope_theta = 10000.0,
    .default_rms_norm_eps = 1e-5,
    .kv_heads_default_to_heads = true,
    .parse = Parse,
    .write = Write,
    .router = "mlp.gate",
    .expert_prefix = "mlp.experts.",
    .expert_gate = "gate_proj",
    .expert_up = "up_proj",
    .expert_down = "down_proj",
};

}  // namespace troupe
