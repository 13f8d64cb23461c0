// Qwen2-MoE: routed experts beside one gated shared expert, biases on q, k, v.
#include <algorithm>

#include "model/families/family.h"

namespace troupe {
namespace {

// layer_types chooses the layers with a window. Files older than that key leave
// it out; then the even layers below max_window_layers have one, as in
// transformers 5.
void ParseWindows(ConfigReader& reader, ModelConfig& config) {
  const bool use = reader.Bool("use_sliding_window", false);
  size_t window = 0;
  if (use) window = reader.Size("sliding_window", 1, kMaxPositions, 4096);
  if (!reader.Has("layer_types")) {
    const size_t layers = reader.Size("max_window_layers", 0, kMaxLayers, 28);
    for (size_t i = 0; i < config.num_layers; ++i) {
      if (i < layers && i % 2 == 0) config.sliding_window[i] = window;
    }
    return;
  }
  const std::vector<std::string> types =
      reader.Strings("layer_types", kMaxLayers);
  if (types.size() != config.num_layers) {
    reader.FailKey("layer_types", "must have num_hidden_layers entries");
    return;
  }
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] == "sliding_attention") {
      if (window == 0) {
        reader.FailKey("layer_types",
                       "has sliding_attention without use_sliding_window");
      }
      config.sliding_window[i] = window;
    } else if (types[i] != "full_attention") {
      reader.FailUnsupported("layer_types", "unknown type of attention");
    }
  }
}

void Parse(ConfigReader& reader, ModelConfig& config) {
  config.qkv_bias = reader.Bool("qkv_bias", true);
  ParseWindows(reader, config);
  ParseExperts(reader, config);
  ParseSparseLayers(reader, config);
  if (config.num_experts > 0) {
    config.expert_intermediate_size =
        reader.Size("moe_intermediate_size", 1, kMaxIntermediateSize);
    config.shared_expert_intermediate_size =
        reader.Size("shared_expert_intermediate_size", 1, kMaxIntermediateSize);
    config.norm_topk_prob = reader.Bool("norm_topk_prob", false);
  }
}

void Write(const ModelConfig& config, nlohmann::json& object) {
  object["qkv_bias"] = config.qkv_bias;
  object["num_experts"] = config.num_experts;
  object["num_experts_per_tok"] = config.top_k;
  object["moe_intermediate_size"] = config.expert_intermediate_size;
  object["shared_expert_intermediate_size"] =
      config.shared_expert_intermediate_size;
  object["norm_topk_prob"] = config.norm_topk_prob;
  WriteSparseLayers(config, object);
  const size_t window = *std::max_element(config.sliding_window.begin(),
                                          config.sliding_window.end());
  object["use_sliding_window"] = window > 0;
  object["sliding_window"] = window;
  nlohmann::json types = nlohmann::json::array();
  for (size_t w : config.sliding_window) {
    types.push_back(w > 0 ? "sliding_attention" : "full_attention");
  }
  object["layer_types"] = types;
}

}  // namespace

const Family kQwen2MoeFamily = {
    .architecture = Architecture::kQwen2Moe,
    .model_type = "qwen2_moe",
    .class_name = "Qwen2MoeForCausalLM",
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
