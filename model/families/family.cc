#include "model/families/family.h"

#include <algorithm>

#include "common/check.h"

namespace troupe {

const std::vector<const Family*>& AllFamilies() {
  static const std::vector<const Family*>& families =
      *new std::vector<const Family*>{&kLlamaFamily, &kMixtralFamily,
                                      &kQwen2MoeFamily, &kQwen3MoeFamily,
                                      &kOlmoeFamily};
  return families;
}

const Family& FamilyOf(Architecture architecture) {
  for (const Family* family : AllFamilies()) {
    if (family->architecture == architecture) return *family;
  }
  CHECK(false && "architecture without a family");
  return kLlamaFamily;
}

const Family* FindFamily(const std::string& model_type) {
  for (const Family* family : AllFamilies()) {
    if (model_type == family->model_type) return family;
  }
  return nullptr;
}

void ParseExperts(ConfigReader& reader, ModelConfig& config) {
  // transformers 5 writes num_local_experts where older versions wrote
  // num_experts, and reads both.
  config.num_experts = reader.Size(
      reader.FirstOf({"num_local_experts", "num_experts"}), 0, kMaxExperts);
  if (config.num_experts > 0) {
    config.top_k = reader.Size("num_experts_per_tok", 1, config.num_experts);
  }
}

void ParseSparseLayers(ConfigReader& reader, ModelConfig& config) {
  const size_t step = reader.Size("decoder_sparse_step", 1, kMaxLayers, 1);
  const std::vector<size_t> dense =
      reader.Sizes("mlp_only_layers", kMaxLayers, kMaxLayers);
  for (size_t layer = 0; layer < config.num_layers; ++layer) {
    config.is_moe_layer[layer] =
        config.num_experts > 0 && (layer + 1) % step == 0 &&
        std::find(dense.begin(), dense.end(), layer) == dense.end();
    if (!config.is_moe_layer[layer] && config.dense_intermediate_size == 0) {
      config.dense_intermediate_size =
          reader.Size("intermediate_size", 1, kMaxIntermediateSize);
    }
  }
}

void WriteSparseLayers(const ModelConfig& config, nlohmann::json& object) {
  nlohmann::json dense = nlohmann::json::array();
  for (size_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.is_moe_layer[layer]) dense.push_back(layer);
  }
  object["decoder_sparse_step"] = 1;
  object["mlp_only_layers"] = dense;
  if (config.dense_intermediate_size > 0) {
    object["intermediate_size"] = config.dense_intermediate_size;
  }
}

void ParseAttentionBias(ConfigReader& reader, ModelConfig& config) {
  config.qkv_bias = config.o_bias = reader.Bool("attention_bias", false);
}

}  // namespace troupe
