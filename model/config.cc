#include "model/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/config_reader.h"
#include "model/digest.h"
#include "model/families/family.h"
#include "model/strict_json.h"
#include "nlohmann/json.hpp"

namespace troupe {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = size_t{4} << 20;
constexpr size_t kMaxStopTokens = 1024;

void ParseDtype(ConfigReader& reader, ModelConfig& config) {
  // transformers takes a model without the key as float32.
  const std::string key = reader.FirstOf({"dtype", "torch_dtype"});
  const std::string name = reader.String(key, Name(DataType::kF32));
  for (const DataType dtype :
       {DataType::kF32, DataType::kBF16, DataType::kF16}) {
    if (name == Name(dtype)) {
      config.dtype = dtype;
      return;
    }
  }
  reader.FailUnsupported(
      key, absl::StrCat("\"", Printable(name),
                        "\" is none of float32, bfloat16, float16"));
}

// What was asked for stands there too, for readers: the formats are read from
// the tensors.
void ParseQuantization(ConfigReader& reader, ModelConfig& config) {
  const json* value = reader.Get("quantization_config");
  if (value == nullptr) return;
  ConfigReader quantization(
      *value, absl::StrCat(reader.what(), ": quantization_config"));
  const std::string method = quantization.String("quant_method", "");
  if (quantization.status().ok() && method != kQuantMethod) {
    quantization.FailUnsupported(
        "quant_method", absl::StrCat("\"", Printable(method), "\" is not \"",
                                     kQuantMethod, "\""));
  }
  const size_t version = quantization.Size("version", 1, 1 << 20, 1);
  if (quantization.status().ok() && version != kQuantVersion) {
    quantization.FailUnsupported(
        "version", absl::StrCat(version, " is not ", kQuantVersion));
  }
  if (!quantization.status().ok()) reader.Fail(quantization.status());
  config.quantized = true;
}

// Widths of the attention. kv heads and head_dim may be left to the others.
void ParseAttention(ConfigReader& reader, const Family& family,
                    ModelConfig& config) {
  config.num_heads = reader.Size("num_attention_heads", 1, kMaxHeads);
  // A null means as many as there are query heads for every family.
  if (!reader.Has("num_key_value_heads") && !family.kv_heads_default_to_heads) {
    reader.FailKey("num_key_value_heads", "missing");
  }
  config.num_kv_heads =
      reader.Size("num_key_value_heads", 1, kMaxHeads, config.num_heads);
  if (config.num_heads % config.num_kv_heads != 0) {
    reader.FailKey(
        "num_key_value_heads",
        absl::StrCat("num_attention_heads (", config.num_heads,
                     ") is not a multiple of it (", config.num_kv_heads, ")"));
  }
  config.head_dim = reader.Size("head_dim", 2, kMaxHeadDim, 0);
  if (config.head_dim == 0) {
    config.head_dim = config.hidden_size / config.num_heads;
    if (config.head_dim * config.num_heads != config.hidden_size) {
      reader.FailKey("hidden_size",
                     absl::StrCat(config.hidden_size,
                                  " is not a multiple of num_attention_heads (",
                                  config.num_heads, ")"));
    }
  }
  if (config.head_dim < 2 || config.head_dim % 2 != 0 ||
      config.head_dim > kMaxHeadDim) {
    reader.FailKey("head_dim",
                   absl::StrCat("must be even and from 2 to ", kMaxHeadDim,
                                ", is ", config.head_dim));
  }
  if (config.num_heads * config.head_dim > kMaxIntermediateSize) {
    reader.FailKey("head_dim", "num_attention_heads * head_dim is too large");
  }
  config.attention_scale =
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim)));
}

// The rotation of YaRN scales the scores too; arXiv 2309.00071, section 3.4.
double YarnMscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// `rope` reads rope_scaling or rope_parameters, `reader` the whole file.
void ParseRopeScaling(ConfigReader& rope, ConfigReader& reader,
                      ModelConfig& config) {
  RopeConfig& result = config.rope;
  const std::string type =
      rope.String(rope.FirstOf({"rope_type", "type"}), "default");
  if (type == "default") return;
  if (type == "linear") {
    result.scaling = RopeScaling::kLinear;
    result.factor = rope.Number("factor", 1.0, 1e6);
    return;
  }
  if (type != "llama3" && type != "yarn") {
    rope.FailUnsupported("rope_type",
                         absl::StrCat("\"", Printable(type),
                                      "\" is none of default, linear, llama3, "
                                      "yarn"));
    return;
  }
  // A value beside rope_scaling goes before the one inside.
  const char* original = "original_max_position_embeddings";
  result.original_max_position_embeddings =
      reader.Has(original) ? reader.Size(original, 1, kMaxPositions)
                           : rope.Size(original, 1, kMaxPositions,
                                       config.max_position_embeddings);
  if (type == "llama3") {
    result.scaling = RopeScaling::kLlama3;
    result.factor = rope.Number("factor", 1.0, 1e6);
    result.low_freq_factor = rope.Number("low_freq_factor", 1e-3, 1e6);
    result.high_freq_factor = rope.Number("high_freq_factor", 1e-3, 1e6);
    if (result.high_freq_factor <= result.low_freq_factor) {
      rope.FailKey("high_freq_factor", "must be above low_freq_factor");
    }
    return;
  }
  result.scaling = RopeScaling::kYarn;
  result.factor = rope.Number(
      "factor", 1.0, 1e6,
      static_cast<double>(config.max_position_embeddings) /
          static_cast<double>(result.original_max_position_embeddings));
  if (result.factor < 1.0) {
    rope.FailKey("factor",
                 "missing, and max_position_embeddings is below "
                 "original_max_position_embeddings");
  }
  result.beta_fast = rope.Number("beta_fast", 1e-3, 1e6, 32.0);
  result.beta_slow = rope.Number("beta_slow", 1e-3, 1e6, 1.0);
  if (result.beta_fast < result.beta_slow) {
    rope.FailKey("beta_fast", "must not be below beta_slow");
  }
  result.truncate = rope.Bool("truncate", true);
  const double mscale = rope.Number("mscale", 0.0, 1e3, 0.0);
  const double mscale_all_dim = rope.Number("mscale_all_dim", 0.0, 1e3, 0.0);
  const double inferred = mscale > 0.0 && mscale_all_dim > 0.0
                              ? YarnMscale(result.factor, mscale) /
                                    YarnMscale(result.factor, mscale_all_dim)
                              : YarnMscale(result.factor, 1.0);
  result.attention_factor =
      rope.Number("attention_factor", 1e-3, 1e3, inferred);
}

// Keys of transformers before 5 (rope_theta, rope_scaling) and since
// (rope_parameters, which holds the theta too).
void ParseRope(ConfigReader& reader, const Family& family,
               ModelConfig& config) {
  const std::string key = reader.FirstOf({"rope_scaling", "rope_parameters"});
  static const json& none = *new json(json::object());
  const json* value = reader.Get(key);
  ConfigReader rope(value == nullptr ? none : *value,
                    absl::StrCat(reader.what(), ": ", key));
  for (const char* nested : {"full_attention", "sliding_attention"}) {
    if (rope.Has(nested)) {
      rope.FailUnsupported(nested, "one rotation per layer type");
    }
  }
  const double theta =
      reader.Number("rope_theta", 2.0, 1e12, family.default_rope_theta);
  config.rope.theta = rope.Number("rope_theta", 2.0, 1e12, theta);
  for (ConfigReader* r : {&rope, &reader}) {
    if (r->Number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0) {
      r->FailUnsupported("partial_rotary_factor",
                         "rotation of a part of the head");
    }
  }
  ParseRopeScaling(rope, reader, config);
  if (!rope.status().ok()) reader.Fail(rope.status());
}

// A token that the vocabulary does not have cannot occur (small models keep the
// ids of their large relatives), so that it is left out.
std::vector<int32_t> TokenIds(ConfigReader& reader, const std::string& key,
                              size_t vocab_size) {
  std::vector<int32_t> ids;
  const json* value = reader.Get(key);
  if (value == nullptr) return ids;
  const json list = value->is_array() ? *value : json::array({*value});
  if (list.size() > kMaxStopTokens) {
    reader.FailKey(key, absl::StrCat("more than ", kMaxStopTokens, " tokens"));
    return ids;
  }
  for (const json& id : list) {
    if (!id.is_number_unsigned()) {
      reader.FailKey(key, "must be a token id or a list of them");
      return {};
    }
    if (id.get<uint64_t>() < vocab_size) {
      ids.push_back(static_cast<int32_t>(id.get<uint64_t>()));
    }
  }
  return ids;
}

void ParseBosEos(ConfigReader& reader, ModelConfig& config) {
  if (reader.Has("eos_token_id")) {
    config.eos_token_ids = TokenIds(reader, "eos_token_id", config.vocab_size);
  }
  if (reader.Has("bos_token_id")) {
    const std::vector<int32_t> ids =
        TokenIds(reader, "bos_token_id", config.vocab_size);
    config.bos_token_id.reset();
    if (!ids.empty()) config.bos_token_id = ids[0];
  }
}

template <typename T>
void ParseOptional(ConfigReader& reader, const char* key, double min,
                   double max, std::optional<T>& result) {
  if (!reader.Has(key)) return;
  const double value = reader.Number(key, min, max);
  if constexpr (std::is_integral_v<T>) {
    if (value != std::floor(value)) reader.FailKey(key, "must be an integer");
  }
  result = static_cast<T>(value);
}

void ParseGeneration(ConfigReader& reader, ModelConfig& config) {
  ParseBosEos(reader, config);
  GenerationDefaults& result = config.generation;
  if (reader.Has("do_sample")) {
    result.do_sample = reader.Bool("do_sample", false);
  }
  ParseOptional(reader, "temperature", 0.0, 1e3, result.temperature);
  ParseOptional(reader, "top_k", 0.0, 1 << 26, result.top_k);
  ParseOptional(reader, "top_p", 0.0, 1.0, result.top_p);
  ParseOptional(reader, "min_p", 0.0, 1.0, result.min_p);
  ParseOptional(reader, "repetition_penalty", 1e-3, 1e3,
                result.repetition_penalty);
  ParseOptional(reader, "max_new_tokens", 1.0, 1 << 30, result.max_new_tokens);
}

// All parameters, in long double so that nothing overflows.
long double NumParameters(const ModelConfig& c) {
  using Real = long double;
  const Real hidden = c.hidden_size;
  const Real attention =
      2 * hidden * Real(c.head_dim) * Real(c.num_heads + c.num_kv_heads);
  const Real expert = 3 * hidden * Real(c.expert_intermediate_size);
  const Real moe = Real(c.num_experts) * (expert + hidden) +
                   3 * hidden * Real(c.shared_expert_intermediate_size);
  const Real dense = 3 * hidden * Real(c.dense_intermediate_size);
  return 2 * hidden * Real(c.vocab_size) +
         Real(c.num_layers) * (attention + std::max(moe, dense));
}

void ParseModel(ConfigReader& reader, ModelConfig& config) {
  config.model_type = reader.String("model_type", "");
  if (config.model_type.empty()) {
    reader.FailKey("model_type", "missing");
    return;
  }
  const Family* family = FindFamily(config.model_type);
  if (family == nullptr) {
    std::vector<std::string> known;
    for (const Family* f : AllFamilies()) known.push_back(f->model_type);
    reader.FailUnsupported(
        "model_type",
        absl::StrCat("unknown architecture \"", Printable(config.model_type),
                     "\"; known are ", absl::StrJoin(known, ", ")));
    return;
  }
  config.architecture = family->architecture;
  const std::vector<std::string> classes = reader.Strings("architectures", 16);
  if (!classes.empty() && std::find(classes.begin(), classes.end(),
                                    family->class_name) == classes.end()) {
    reader.FailUnsupported(
        "architectures", absl::StrCat("\"", Printable(classes[0]), "\" is not ",
                                      family->class_name));
  }
  ParseQuantization(reader, config);
  ParseDtype(reader, config);

  config.hidden_size = reader.Size("hidden_size", 1, kMaxHiddenSize);
  config.num_layers = reader.Size("num_hidden_layers", 1, kMaxLayers);
  config.vocab_size = reader.Size("vocab_size", 1, kMaxVocabSize);
  config.max_position_embeddings =
      reader.Size("max_position_embeddings", 1, kMaxPositions);
  config.rms_norm_eps = static_cast<float>(
      reader.Number("rms_norm_eps", 0.0, 1.0, family->default_rms_norm_eps));
  config.tie_word_embeddings = reader.Bool("tie_word_embeddings", false);
  if (const std::string act = reader.String("hidden_act", "silu");
      act != "silu") {
    reader.FailUnsupported(
        "hidden_act", absl::StrCat("\"", Printable(act), "\" is not silu"));
  }
  ParseAttention(reader, *family, config);
  ParseRope(reader, *family, config);
  // What the families' parsers allocate is bounded by sizes checked so far.
  if (!reader.status().ok()) return;

  config.sliding_window.assign(config.num_layers, 0);
  config.is_moe_layer.assign(config.num_layers, false);
  family->parse(reader, config);
  if (!reader.status().ok()) return;

  const auto& moe = config.is_moe_layer;
  if (std::find(moe.begin(), moe.end(), true) == moe.end()) {
    config.num_experts = config.top_k = config.expert_intermediate_size = 0;
    config.shared_expert_intermediate_size = 0;
    config.norm_topk_prob = false;
  }
  if (NumParameters(config) > static_cast<long double>(kMaxParameters)) {
    reader.FailKey("num_hidden_layers", "the model has over 2^50 parameters");
  }
  ParseBosEos(reader, config);
}

absl::StatusOr<ModelConfig> Parse(const std::string& config_json,
                                  const std::string& config_what,
                                  const std::string& generation_json,
                                  const std::string& generation_what) {
  ABSL_ASSIGN_OR_RETURN(const json object,
                        ParseStrictJson(config_json, config_what));
  ModelConfig config;
  ConfigReader reader(object, config_what);
  if (reader.status().ok()) ParseModel(reader, config);
  ABSL_RETURN_IF_ERROR(reader.status());
  if (generation_json.empty()) return config;

  ABSL_ASSIGN_OR_RETURN(const json generation,
                        ParseStrictJson(generation_json, generation_what));
  ConfigReader generation_reader(generation, generation_what);
  if (generation_reader.status().ok()) {
    ParseGeneration(generation_reader, config);
  }
  ABSL_RETURN_IF_ERROR(generation_reader.status());
  return config;
}

// The double that prints as briefly as the float does: 1e-05, not
// 9.999999747378752e-06.
double Shortest(float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text) - 1, value);
  *end.ptr = '\0';
  return std::strtod(text, nullptr);
}

json RopeJson(const RopeConfig& rope) {
  json object = {{"rope_theta", rope.theta}};
  switch (rope.scaling) {
    case RopeScaling::kDefault:
      object["rope_type"] = "default";
      return object;
    case RopeScaling::kLinear:
      object["rope_type"] = "linear";
      break;
    case RopeScaling::kLlama3:
      object["rope_type"] = "llama3";
      object["low_freq_factor"] = rope.low_freq_factor;
      object["high_freq_factor"] = rope.high_freq_factor;
      break;
    case RopeScaling::kYarn:
      object["rope_type"] = "yarn";
      object["beta_fast"] = rope.beta_fast;
      object["beta_slow"] = rope.beta_slow;
      object["truncate"] = rope.truncate;
      object["attention_factor"] = rope.attention_factor;
      break;
  }
  object["factor"] = rope.factor;
  if (rope.scaling != RopeScaling::kLinear) {
    object["original_max_position_embeddings"] =
        rope.original_max_position_embeddings;
  }
  return object;
}

void WriteTokenIds(const ModelConfig& config, json& object) {
  object["eos_token_id"] = nullptr;
  if (config.eos_token_ids.size() == 1) {
    object["eos_token_id"] = config.eos_token_ids[0];
  } else if (!config.eos_token_ids.empty()) {
    object["eos_token_id"] = config.eos_token_ids;
  }
  object["bos_token_id"] = nullptr;
  if (config.bos_token_id.has_value()) {
    object["bos_token_id"] = *config.bos_token_id;
  }
}

// One per pair d: base^(-2d / head_dim), every step rounded to float32.
std::vector<float> UnscaledFrequencies(const ModelConfig& config) {
  const size_t half_dim = config.head_dim / 2;
  const float base = static_cast<float>(config.rope.theta);
  std::vector<float> frequencies(half_dim);
  for (size_t d = 0; d < half_dim; ++d) {
    const float exponent =
        static_cast<float>(2 * d) / static_cast<float>(config.head_dim);
    const float period = static_cast<float>(
        std::pow(static_cast<double>(base), static_cast<double>(exponent)));
    frequencies[d] = 1.0f / period;
  }
  return frequencies;
}

// Long wavelengths are stretched by the factor, short ones kept, those between
// blended.
void ScaleLlama3(const RopeConfig& rope, std::vector<float>& frequencies) {
  const double length =
      static_cast<double>(rope.original_max_position_embeddings);
  const float longest = static_cast<float>(length / rope.low_freq_factor);
  const float shortest = static_cast<float>(length / rope.high_freq_factor);
  const float factor = static_cast<float>(rope.factor);
  const float low = static_cast<float>(rope.low_freq_factor);
  const float range =
      static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
  for (float& frequency : frequencies) {
    const float wavelength = static_cast<float>(2.0 * M_PI) / frequency;
    if (wavelength > longest) {
      frequency = frequency / factor;
    } else if (wavelength >= shortest) {
      const float kept =
          (static_cast<float>(length) / wavelength - low) / range;
      frequency = (1.0f - kept) * frequency / factor + kept * frequency;
    }
  }
}

// arXiv 2309.00071, section 3.2: pairs that turn more than beta_fast times in
// the original context are kept, those below beta_slow interpolated, with a
// ramp over the pairs between.
void ScaleYarn(const ModelConfig& config, std::vector<float>& frequencies) {
  const RopeConfig& rope = config.rope;
  const double dim = static_cast<double>(config.head_dim);
  const auto pair_with = [&](double rotations) {
    return dim *
           std::log(static_cast<double>(rope.original_max_position_embeddings) /
                    (rotations * 2.0 * M_PI)) /
           (2.0 * std::log(rope.theta));
  };
  double low = pair_with(rope.beta_fast);
  double high = pair_with(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  const float factor = static_cast<float>(rope.factor);
  for (size_t d = 0; d < frequencies.size(); ++d) {
    const float position = (static_cast<float>(d) - static_cast<float>(low)) /
                           static_cast<float>(high - low);
    const float kept = 1.0f - std::clamp(position, 0.0f, 1.0f);
    const float period = 1.0f / frequencies[d];
    const float interpolated = 1.0f / (factor * period);
    frequencies[d] = interpolated * (1.0f - kept) + frequencies[d] * kept;
  }
}

}  // namespace

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string config_path = absl::StrCat(model_dir, "/config.json");
  ABSL_ASSIGN_OR_RETURN(const std::string config_json,
                        ReadSmallFile(config_path, kMaxConfigBytes));
  const std::string generation_path =
      absl::StrCat(model_dir, "/generation_config.json");
  absl::StatusOr<std::string> generation_json =
      ReadSmallFile(generation_path, kMaxConfigBytes);
  if (absl::IsNotFound(generation_json.status())) {
    return Parse(config_json, config_path, "", generation_path);
  }
  ABSL_RETURN_IF_ERROR(generation_json.status());
  if (generation_json->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(generation_path, ": empty"));
  }
  return Parse(config_json, config_path, *generation_json, generation_path);
}

absl::StatusOr<ModelConfig> ParseModelConfig(
    const std::string& config_json, const std::string& generation_json) {
  return Parse(config_json, "config.json", generation_json,
               "generation_config.json");
}

std::string ConfigJson(const ModelConfig& config) {
  const Family& family = FamilyOf(config.architecture);
  json object = {
      {"architectures", {family.class_name}},
      {"model_type", family.model_type},
      {"torch_dtype", Name(config.dtype)},
      {"hidden_act", "silu"},
      {"hidden_size", config.hidden_size},
      {"num_hidden_layers", config.num_layers},
      {"num_attention_heads", config.num_heads},
      {"num_key_value_heads", config.num_kv_heads},
      {"head_dim", config.head_dim},
      {"vocab_size", config.vocab_size},
      {"max_position_embeddings", config.max_position_embeddings},
      {"rms_norm_eps", Shortest(config.rms_norm_eps)},
      {"tie_word_embeddings", config.tie_word_embeddings},
      // Old key and new one: versions before 5 read the first only.
      {"rope_theta", config.rope.theta},
      {"rope_parameters", RopeJson(config.rope)},
  };
  if (config.rope.scaling != RopeScaling::kDefault) {
    object["rope_scaling"] = RopeJson(config.rope);
  }
  if (config.quantized) {
    object["quantization_config"] = {{"quant_method", kQuantMethod},
                                     {"version", kQuantVersion}};
  }
  WriteTokenIds(config, object);
  family.write(config, object);
  return object.dump(2) + "\n";
}

std::string GenerationConfigJson(const ModelConfig& config) {
  json object = json::object();
  WriteTokenIds(config, object);
  const GenerationDefaults& generation = config.generation;
  if (generation.do_sample) object["do_sample"] = *generation.do_sample;
  if (generation.temperature) {
    object["temperature"] = Shortest(*generation.temperature);
  }
  if (generation.top_k) object["top_k"] = *generation.top_k;
  if (generation.top_p) object["top_p"] = Shortest(*generation.top_p);
  if (generation.min_p) object["min_p"] = Shortest(*generation.min_p);
  if (generation.repetition_penalty) {
    object["repetition_penalty"] = Shortest(*generation.repetition_penalty);
  }
  if (generation.max_new_tokens) {
    object["max_new_tokens"] = *generation.max_new_tokens;
  }
  return object.dump(2) + "\n";
}

std::vector<float> RopeFrequencies(const ModelConfig& config) {
  std::vector<float> frequencies = UnscaledFrequencies(config);
  switch (config.rope.scaling) {
    case RopeScaling::kDefault:
      break;
    case RopeScaling::kLinear:
      for (float& frequency : frequencies) {
        frequency /= static_cast<float>(config.rope.factor);
      }
      break;
    case RopeScaling::kLlama3:
      ScaleLlama3(config.rope, frequencies);
      break;
    case RopeScaling::kYarn:
      ScaleYarn(config, frequencies);
      break;
  }
  return frequencies;
}

RopeTables MakeRopeTables(const ModelConfig& config, size_t num_positions) {
  CHECK_LE(num_positions, kMaxPositions);
  const std::vector<float> frequencies = RopeFrequencies(config);
  const float scale = static_cast<float>(config.rope.attention_factor);
  RopeTables tables;
  tables.num_positions = num_positions;
  tables.half_dim = frequencies.size();
  tables.cosines.reserve(num_positions * tables.half_dim);
  tables.sines.reserve(num_positions * tables.half_dim);
  for (size_t position = 0; position < num_positions; ++position) {
    for (const float frequency : frequencies) {
      const double angle = static_cast<float>(position) * frequency;
      tables.cosines.push_back(static_cast<float>(std::cos(angle)) * scale);
      tables.sines.push_back(static_cast<float>(std::sin(angle)) * scale);
    }
  }
  return tables;
}

std::string Fingerprint(const ModelConfig& c) {
  // One line per field; floating point in hexadecimal, so that it is exact.
  std::string text = "troupe model config 1\n";
  absl::StrAppend(&text, c.model_type, "\n", Name(c.dtype), "\n");
  for (const size_t size :
       {c.hidden_size, c.num_layers, c.num_heads, c.num_kv_heads, c.head_dim,
        c.vocab_size, c.max_position_embeddings, c.dense_intermediate_size,
        c.num_experts, c.top_k, c.expert_intermediate_size,
        c.shared_expert_intermediate_size,
        c.rope.original_max_position_embeddings}) {
    absl::StrAppend(&text, size, "\n");
  }
  for (const double number :
       {double{c.rms_norm_eps}, double{c.clip_qkv}, double{c.attention_scale},
        c.rope.theta, c.rope.factor, c.rope.low_freq_factor,
        c.rope.high_freq_factor, c.rope.beta_fast, c.rope.beta_slow,
        c.rope.attention_factor}) {
    absl::StrAppendFormat(&text, "%a\n", number);
  }
  for (const int value :
       {static_cast<int>(c.qk_norm), static_cast<int>(c.rope.scaling),
        int{c.tie_word_embeddings}, int{c.qkv_bias}, int{c.o_bias},
        int{c.mlp_bias}, int{c.norm_topk_prob}, int{c.rope.truncate}}) {
    absl::StrAppend(&text, value, "\n");
  }
  for (size_t layer = 0; layer < c.num_layers; ++layer) {
    absl::StrAppend(&text, c.sliding_window[layer], " ",
                    int{c.is_moe_layer[layer]}, "\n");
  }
  Digest digest;
  digest.Update(text.data(), text.size());
  return digest.Hex();
}

}  // namespace troupe
