// Llama: the dense baseline.
#include <algorithm>

#include "model/families/family.h"

namespace troupe {
namespace {

void Parse(ConfigReader& reader, ModelConfig& config) {
  config.dense_intermediate_size =
      reader.Size("intermediate_size", 1, kMaxIntermediateSize);
  ParseAttentionBias(reader, config);
  if (reader.Bool("mlp_bias", false)) {
    reader.FailUnsupported("mlp_bias", "biases of the MLP are not supported");
  }
}

void Write(const ModelConfig& config, nlohmann::json& object) {
  object["intermediate_size"] = config.dense_intermediate_size;
  object["attention_bias"] = config.qkv_bias;
  object["mlp_bias"] = false;
}

}  // namespace

const Family kLlamaFamily = {
    .architecture = Architecture::kLlama,
    .model_type = "llama",
    .class_name = "LlamaForCausalLM",
    .default_rope_theta = 10000.0,
    .default_rms_norm_eps = 1e-6,
    .kv_heads_default_to_heads = true,
    .parse = Parse,
    .write = Write,
    .router = "",
    .expert_prefix = "",
    .expert_gate = "",
    .expert_up = "",
    .expert_down = "",
};

}  // namespace troupe
