// What distinguishes one model family from another in its files: the keys of
// config.json and the names of tensors. A new family is one more file here and
// one more row in family.cc.
#ifndef TROUPE_MODEL_FAMILIES_FAMILY_H_
#define TROUPE_MODEL_FAMILIES_FAMILY_H_

#include <string>
#include <vector>

#include "model/config.h"
#include "model/config_reader.h"
#include "nlohmann/json.hpp"

namespace troupe {

struct Family {
  Architecture architecture;
  const char* model_type;  // of config.json
  const char* class_name;  // in "architectures" of config.json

  // Values of keys that a config.json may leave out.
  double default_rope_theta;
  double default_rms_norm_eps;
  // Whether an absent num_key_value_heads means num_attention_heads.
  bool kv_heads_default_to_heads;

  // Reads what only this family has. The fields that all families share are
  // already set, sliding_window to [num_layers] zeros and is_moe_layer to
  // [num_layers] false.
  void (*parse)(ConfigReader& reader, ModelConfig& config);
  // The inverse: adds the keys to a config.json.
  void (*write)(const ModelConfig& config, nlohmann::json& object);

  // Names after "model.layers.{layer}.", without ".weight"; empty where the
  // family has no such tensor.
  const char* router;
  const char* expert_prefix;  // then the expert's number, ".", and one of:
  const char* expert_gate;
  const char* expert_up;
  const char* expert_down;
};

extern const Family kLlamaFamily;
extern const Family kMixtralFamily;
extern const Family kQwen2MoeFamily;
extern const Family kQwen3MoeFamily;
extern const Family kOlmoeFamily;

const std::vector<const Family*>& AllFamilies();
const Family& FamilyOf(Architecture architecture);
// nullptr when not supported.
const Family* FindFamily(const std::string& model_type);

// Shared by the families that have them ------------------------------------

// num_experts and top_k under any of the keys that transformers has used.
void ParseExperts(ConfigReader& reader, ModelConfig& config);

// Qwen: decoder_sparse_step and mlp_only_layers choose the MoE layers, the
// others are dense with intermediate_size.
void ParseSparseLayers(ConfigReader& reader, ModelConfig& config);
void WriteSparseLayers(const ModelConfig& config, nlohmann::json& object);

// attention_bias: biases on q, k, v and o.
void ParseAttentionBias(ConfigReader& reader, ModelConfig& config);

}  // namespace troupe

#endif  // TROUPE_MODEL_FAMILIES_FAMILY_H_
