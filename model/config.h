// What a checkpoint's config.json and generation_config.json say, checked and
// in the words of this project (docs/style.md).
//
// One table row per family (model/families/) turns the keys of its config.json
// into a ModelConfig, so that nothing outside model/ knows a family's keys.
#ifndef TROUPE_MODEL_CONFIG_H_
#define TROUPE_MODEL_CONFIG_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/dtype.h"

namespace troupe {

// quantization_config of config.json: "quant_method" and "version".
inline constexpr char kQuantMethod[] = "troupe";
inline constexpr size_t kQuantVersion = 1;

enum class Architecture { kLlama, kMixtral, kQwen2Moe, kQwen3Moe, kOlmoe };

// RMS norm of queries and keys, after projection and before RoPE.
enum class QkNorm {
  kNone,
  kPerHead,  // over each head's head_dim values (Qwen3)
  kFull,     // over the whole projected vector, before the split (OLMoE)
};

enum class RopeScaling { kDefault, kLinear, kLlama3, kYarn };

// Rotary position embedding over the whole head, rotated by halves: value d is
// paired with value d + head_dim / 2.
struct RopeConfig {
  double theta = 10000.0;  // base of the wavelengths
  RopeScaling scaling = RopeScaling::kDefault;
  // How many times longer the context is than in pre-training. linear, llama3
  // and yarn.
  double factor = 1.0;
  // Length of the context in pre-training, in tokens. llama3 and yarn.
  size_t original_max_position_embeddings = 0;
  // llama3: wavelengths above original / low_freq_factor are scaled, those
  // below original / high_freq_factor are kept, in tokens.
  double low_freq_factor = 0.0;
  double high_freq_factor = 0.0;
  // yarn: rotations within the original context between which the frequencies
  // are blended, and whether the blended range is rounded outwards.
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  bool truncate = true;
  // Cosines and sines are multiplied by this (1 but for yarn).
  double attention_factor = 1.0;

  bool operator==(const RopeConfig&) const = default;
};

// What generation_config.json recommends; a field without value was absent.
struct GenerationDefaults {
  std::optional<bool> do_sample;  // false: greedy
  std::optional<float> temperature;
  std::optional<int32_t> top_k;  // 0: all tokens
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;  // 1: none
  std::optional<int32_t> max_new_tokens;

  bool operator==(const GenerationDefaults&) const = default;
};

// Everything about a model but its weights. A plain value; immutable once
// loaded, so any thread may read it. LoadModelConfig has checked every number:
// all are within the bounds of config.cc, so that products of two sizes do not
// overflow, num_heads is a multiple of num_kv_heads, head_dim is even and
// top_k <= num_experts.
struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string model_type;  // as in config.json: "mixtral"
  // Of the matrices in the files, as far as they are not quantised.
  DataType dtype = DataType::kF32;
  // Matrices may be stored as integers with scales (docs/quantisation.md): the
  // file has a quantization_config of quant_method "troupe".
  bool quantized = false;

  size_t hidden_size = 0;              // values per token
  size_t num_layers = 0;               // decoder layers
  size_t num_heads = 0;                // query heads
  size_t num_kv_heads = 0;             // key and value heads
  size_t head_dim = 0;                 // values per head
  size_t vocab_size = 0;               // rows of embedding and head, in tokens
  size_t max_position_embeddings = 0;  // longest sequence, in tokens
  float rms_norm_eps = 0.0f;           // added to the mean square
  bool tie_word_embeddings = false;    // the head is the embedding

  bool qkv_bias = false;  // q, k and v projections add a bias
  bool o_bias = false;    // the output projection adds a bias
  QkNorm qk_norm = QkNorm::kNone;
  float clip_qkv = 0.0f;  // q, k, v clamped to +-clip_qkv; 0 = not
  // [num_layers], in tokens: the query at position q sees the keys at positions
  // k with q - k < window (itself included); 0 = all before it.
  std::vector<size_t> sliding_window;
  RopeConfig rope;
  float attention_scale = 0.0f;  // scores are multiplied by this

  // MLP of layers without experts, in values; 0 when all layers have experts.
  size_t dense_intermediate_size = 0;
  bool mlp_bias = false;  // always false: no supported model has it

  std::vector<bool> is_moe_layer;  // [num_layers]
  size_t num_experts = 0;          // per MoE layer; 0 for a dense model
  size_t top_k = 0;                // experts per token; 0 for a dense model
  size_t expert_intermediate_size = 0;  // in values
  bool norm_topk_prob = false;          // weights of the top k sum to 1
  // Expert that runs for every token, its output multiplied by
  // sigmoid(shared_expert_gate . x); in values, 0 = none.
  size_t shared_expert_intermediate_size = 0;

  // From generation_config.json, else from config.json.
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  GenerationDefaults generation;

  bool operator==(const ModelConfig&) const = default;
};

// Reads DIR/config.json and, if there is one, DIR/generation_config.json.
// NotFound when config.json does not exist; InvalidArgument for anything wrong
// in a file; Unimplemented for a model that is valid but not supported. The
// message names the file and the key.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);

// The same from the text of the two files; `generation_json` may be empty.
absl::StatusOr<ModelConfig> ParseModelConfig(
    const std::string& config_json, const std::string& generation_json);

// The config.json that LoadModelConfig reads back as `config` (eos, bos and
// generation included only as far as config.json holds them), in the layout of
// transformers; for programs that write checkpoints.
std::string ConfigJson(const ModelConfig& config);
// The same for generation_config.json.
std::string GenerationConfigJson(const ModelConfig& config);

// Cosines and sines of the rotation of pair d at position p, the attention
// factor multiplied in: [num_positions, half_dim], row-major.
struct RopeTables {
  size_t num_positions = 0;
  size_t half_dim = 0;  // head_dim / 2
  std::vector<float> cosines;
  std::vector<float> sines;
};

// Frequencies and angles are rounded to float32 where transformers rounds them,
// which at long contexts matters more than cosine and sine themselves.
RopeTables MakeRopeTables(const ModelConfig& config, size_t num_positions);

// Angle per position of each pair, in radians: [head_dim / 2].
std::vector<float> RopeFrequencies(const ModelConfig& config);

// A stable digest (32 hex digits) of every field that decides shapes or
// numbers; not of token ids and sampling defaults. Two services may work
// together only if theirs are equal.
std::string Fingerprint(const ModelConfig& config);

}  // namespace troupe

#endif  // TROUPE_MODEL_CONFIG_H_
