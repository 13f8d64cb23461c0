// Mixtral: every layer has experts, the weights of the top k always sum to 1,
// and one window, if any, for all layers.
#include <algorithm>

#include "model/families/family.h"

namespace troupe {
namespace {

void Parse(ConfigReader& reader, ModelConfig& config) {
  ParseExperts(reader, config);
  if (config.num_experts == 0) {
    reader.FailKey("num_local_experts", "must be at least 1");
  }
  config.is_moe_layer.assign(config.num_layers, true);
  config.expert_intermediate_size =
      reader.Size("intermediate_size", 1, kMaxIntermediateSize);
  config.norm_topk_prob = true;
  config.sliding_window.assign(
      config.num_layers, reader.Size("sliding_window", 0, kMaxPositions, 0));
}

void Write(const ModelConfig& config, nlohmann::json& object) {
  object["num_local_experts"] = config.num_experts;
  object["num_experts_per_tok"] = config.top_k;
  object["intermediate_size"] = config.expert_intermediate_size;
  object["sliding_window"] = nullptr;
  if (config.sliding_window[0] > 0) {
    object["sliding_window"] = config.sliding_window[0];
  }
}

}  // namespace

const Family kMixtralFamily = {
    .architecture = Architecture::kMixtral,
    .model_type = "mixtral",
    .class_name = "MixtralForCausalLM",
    .default_rope_theta = 1e6,
    .default_rms_norm_eps = 1e-5,
    .kv_heads_default_to_heads = false,
    .parse = Parse,
    .write = Write,
    .router = "block_sparse_moe.gate",
    .expert_prefix = "block_sparse_moe.experts.",
    .expert_gate = "w1",
    .expert_up = "w3",
    .expert_down = "w2",
};

}  // namespace troupe
