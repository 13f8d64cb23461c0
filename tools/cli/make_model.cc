#include "tools/cli/make_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/safetensors_writer.h"
#include "model/tensor_catalog.h"
#include "nlohmann/json.hpp"

namespace troupe {
namespace {

constexpr size_t kChunkElements = size_t{1} << 20;
constexpr size_t kFirstFreeId = 258;
constexpr int32_t kBeginId = 256;
constexpr int32_t kEndId = 257;

// Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (2014).
uint64_t SplitMix(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// Values are uniform in [middle - range, middle + range).
struct Distribution {
  float middle = 0.0f;
  float range = 0.0f;
};

Distribution Uniform(double standard_deviation) {
  return {0.0f, static_cast<float>(std::sqrt(3.0) * standard_deviation)};
}

Distribution DistributionOf(const ModelConfig& config, const TensorSpec& spec) {
  if (spec.shape.size() == 1) {
    const bool bias = spec.name.ends_with(".bias");
    return bias ? Distribution{0.0f, 0.05f} : Distribution{1.0f, 0.1f};
  }
  const double hidden = static_cast<double>(config.hidden_size);
  const double fan_in = std::sqrt(static_cast<double>(spec.shape[1]));
  const bool is_embedding =
      spec.name == SpecOf(config, ModelTensor::kEmbedding).name;
  const bool is_head = spec.name == SpecOf(config, ModelTensor::kLmHead).name;
  if (is_head) return Uniform(2.0 / std::sqrt(hidden));  // the tied one too
  if (is_embedding) return Uniform(1.0);
  // What maps back to hidden_size is added to the residual stream.
  if (spec.shape[0] == config.hidden_size &&
      (spec.name.find("down_proj") != std::string::npos ||
       spec.name.find(".w2.") != std::string::npos ||
       spec.name.find("o_proj") != std::string::npos)) {
    return Uniform(1.0 / (fan_in * std::sqrt(2.0 * static_cast<double>(
                                                       config.num_layers))));
  }
  return Uniform(1.0 / fan_in);
}

// Elements [begin, begin + values.size()) of the tensor with that key; `begin`
// is even.
void Fill(uint64_t key, uint64_t begin, const Distribution& distribution,
          std::vector<float>& values) {
  const auto value = [&](uint32_t bits) {
    // 24 bits: exact as float.
    const float unit =
        static_cast<float>(static_cast<int32_t>(bits >> 8) - (1 << 23)) *
        0x1p-23f;
    return distribution.middle + distribution.range * unit;
  };
  for (size_t i = 0; i < values.size(); i += 2) {
    const uint64_t bits = SplitMix(key + (begin + i) / 2);
    values[i] = value(static_cast<uint32_t>(bits));
    if (i + 1 < values.size()) {
      values[i + 1] = value(static_cast<uint32_t>(bits >> 32));
    }
  }
}

// Appends the random contents of one tensor.
absl::Status WriteTensor(const ModelConfig& config, const TensorSpec& spec,
                         uint64_t seed, SafetensorsWriter& writer,
                         const std::function<void(uint64_t)>& wrote) {
  uint64_t key = SplitMix(seed);
  for (const char c : spec.name) {
    key = SplitMix(key ^ static_cast<unsigned char>(c));
  }
  const Distribution distribution = DistributionOf(config, spec);
  const uint64_t count = NumElements(spec);
  std::vector<float> values;
  std::vector<uint16_t> halves;
  for (uint64_t begin = 0; begin < count; begin += kChunkElements) {
    values.resize(std::min<uint64_t>(kChunkElements, count - begin));
    Fill(key, begin, distribution, values);
    const size_t num_bytes = values.size() * SizeOf(config.dtype);
    if (config.dtype == DataType::kF32) {
      ABSL_RETURN_IF_ERROR(writer.Append(values.data(), num_bytes));
    } else {
      halves.resize(values.size());
      std::transform(
          values.begin(), values.end(), halves.begin(),
          config.dtype == DataType::kBF16 ? BF16FromF32 : F16FromF32);
      ABSL_RETURN_IF_ERROR(writer.Append(halves.data(), num_bytes));
    }
    wrote(num_bytes);
  }
  return absl::OkStatus();
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  const std::string temporary = absl::StrCat(path, ".part");
  {
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file.write(text.data(), static_cast<std::streamsize>(text.size()));
    file.close();
    if (!file.good()) {
      std::remove(temporary.c_str());
      return absl::UnavailableError(absl::StrCat("cannot write ", path));
    }
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

std::string Utf8(uint32_t code_point) {  // below 0x800
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | (code_point >> 6)),
          static_cast<char>(0x80 | (code_point & 0x3f))};
}

// The alphabet of byte-level BPE: printable bytes stand for themselves, the
// others for U+0100 and up, in their order.
std::vector<std::string> ByteAlphabet() {
  std::vector<std::string> alphabet(256);
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') ||
                           (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    alphabet[byte] = Utf8(printable ? byte : next++);
  }
  return alphabet;
}

nlohmann::ordered_json SpecialToken(int32_t id, const std::string& content) {
  return {{"id", id},        {"content", content}, {"single_word", false},
          {"lstrip", false}, {"rstrip", false},    {"normalized", false},
          {"special", true}};
}

std::string TokenizerJson(size_t vocab_size) {
  const nlohmann::ordered_json byte_level = {{"type", "ByteLevel"},
                                             {"add_prefix_space", false},
                                             {"trim_offsets", true},
                                             {"use_regex", true}};
  const std::vector<std::string> alphabet = ByteAlphabet();
  // Printed by hand: an ordered object searches all keys for each new one.
  std::string vocab;
  for (size_t id = 0; id < 256; ++id) {
    absl::StrAppend(&vocab, nlohmann::json(alphabet[id]).dump(), ":", id, ",");
  }
  for (size_t id = kFirstFreeId; id < vocab_size; ++id) {
    // A space and a word.
    absl::StrAppend(&vocab, "\"", alphabet[' '], "w", id, "\":", id, ",");
  }
  vocab.pop_back();
  const nlohmann::ordered_json object = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens",
       {SpecialToken(kBeginId, "<|begin|>"), SpecialToken(kEndId, "<|end|>")}},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", "@"},
        {"merges", nlohmann::json::array()}}}};
  std::string text = object.dump();
  const std::string placeholder = "\"vocab\":\"@\"";
  const size_t at = text.find(placeholder);
  CHECK(at != std::string::npos);
  text.replace(at, placeholder.size(), absl::StrCat("\"vocab\":{", vocab, "}"));
  return text + "\n";
}

struct Shard {
  std::vector<TensorSpec> specs;
  std::vector<TensorInfo> infos;
  uint64_t num_bytes = 0;
};

std::vector<Shard> Plan(const ModelConfig& config, uint64_t max_shard_bytes) {
  std::vector<Shard> shards(1);
  const absl::Status status =
      ForEachTensor(config, [&](const TensorSpec& spec) {
        TensorInfo info;
        info.name = spec.name;
        info.type = SafetensorsTypeOf(config.dtype);
        info.shape = spec.shape;
        const uint64_t num_bytes = NumElements(spec) * SizeOf(config.dtype);
        if (shards.back().num_bytes > 0 &&
            shards.back().num_bytes + num_bytes > max_shard_bytes) {
          shards.emplace_back();
        }
        shards.back().specs.push_back(spec);
        shards.back().infos.push_back(std::move(info));
        shards.back().num_bytes += num_bytes;
        return absl::OkStatus();
      });
  CHECK(status.ok());
  return shards;
}

}  // namespace

absl::StatusOr<ModelConfig> MakeModelConfig(const MakeModelOptions& options) {
  ModelConfig config;
  config.model_type = options.family;
  config.dtype = options.dtype;
  config.hidden_size = options.hidden_size;
  config.num_layers = options.num_layers;
  config.num_heads = options.num_heads;
  config.num_kv_heads = options.num_kv_heads;
  config.head_dim = options.head_dim;
  if (config.head_dim == 0 && options.num_heads > 0) {
    config.head_dim = options.hidden_size / options.num_heads;
  }
  config.vocab_size = options.vocab_size;
  config.max_position_embeddings = options.max_position_embeddings;
  config.rms_norm_eps = 1e-5f;
  config.tie_word_embeddings = options.tie_word_embeddings;
  config.num_experts = options.num_experts;
  config.top_k = options.top_k;
  config.expert_intermediate_size = options.expert_intermediate_size;
  config.eos_token_ids = {kEndId};
  config.bos_token_id = kBeginId;
  config.norm_topk_prob = true;
  if (options.family == "llama") {
    config.architecture = Architecture::kLlama;
    config.dense_intermediate_size = options.dense_intermediate_size;
  } else if (options.family == "mixtral") {
    config.architecture = Architecture::kMixtral;
    config.rope.theta = 1e6;
  } else if (options.family == "qwen2_moe") {
    config.architecture = Architecture::kQwen2Moe;
    config.qkv_bias = true;
    config.norm_topk_prob = false;
    config.shared_expert_intermediate_size =
        options.shared_expert_intermediate_size;
  } else if (options.family == "qwen3_moe") {
    config.architecture = Architecture::kQwen3Moe;
    config.rope.theta = 1e6;
  } else if (options.family == "olmoe") {
    config.architecture = Architecture::kOlmoe;
    config.norm_topk_prob = false;
  } else {
    return absl::InvalidArgumentError(absl::StrCat(
        "family: \"", options.family,
        "\" is none of llama, mixtral, qwen2_moe, qwen3_moe, olmoe"));
  }
  if (options.num_layers > (size_t{1} << 12)) {
    return absl::InvalidArgumentError("num_layers: more than 4096");
  }
  if (options.vocab_size < kFirstFreeId) {
    return absl::InvalidArgumentError(
        absl::StrCat("vocab_size: must be at least ", kFirstFreeId, ", is ",
                     options.vocab_size));
  }
  // One entry each even without layers, which the parser then refuses.
  config.sliding_window.assign(std::max<size_t>(config.num_layers, 1), 0);
  config.is_moe_layer.assign(std::max<size_t>(config.num_layers, 1), true);
  // The parser checks every bound, and sets what follows from the family.
  return ParseModelConfig(ConfigJson(config), GenerationConfigJson(config));
}

absl::Status MakeModel(const MakeModelOptions& options) {
  ABSL_ASSIGN_OR_RETURN(const ModelConfig config, MakeModelConfig(options));
  const std::string& dir = options.output_dir;
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot make directory ", dir, ": ", error.message()));
  }
  const std::string config_path = absl::StrCat(dir, "/config.json");
  for (const char* name :
       {"config.json", "model.safetensors", "model.safetensors.index.json"}) {
    const std::string path = absl::StrCat(dir, "/", name);
    if (std::filesystem::exists(path, error)) {
      return absl::AlreadyExistsError(
          absl::StrCat(path, ": exists; choose an empty directory"));
    }
  }

  const std::vector<Shard> shards = Plan(config, options.max_shard_bytes);
  uint64_t total_bytes = 0;
  for (const Shard& shard : shards) total_bytes += shard.num_bytes;
  const auto space = std::filesystem::space(dir, error);
  if (!error && space.available < total_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(dir, ": ", total_bytes, " bytes needed, ", space.available,
                     " available"));
  }

  ABSL_RETURN_IF_ERROR(WriteText(absl::StrCat(dir, "/tokenizer.json"),
                                 TokenizerJson(config.vocab_size)));
  uint64_t done_bytes = 0;
  const auto wrote = [&](uint64_t num_bytes) {
    done_bytes += num_bytes;
    if (options.progress) options.progress(done_bytes, total_bytes);
  };
  nlohmann::json weight_map = nlohmann::json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        shards.size() == 1 ? "model.safetensors"
                           : absl::StrFormat("model-%05d-of-%05d.safetensors",
                                             i + 1, shards.size());
    ABSL_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                          SafetensorsWriter::Create(
                              absl::StrCat(dir, "/", name), shards[i].infos));
    for (const TensorSpec& spec : shards[i].specs) {
      ABSL_RETURN_IF_ERROR(
          WriteTensor(config, spec, options.seed, writer, wrote));
      weight_map[spec.name] = name;
    }
    ABSL_RETURN_IF_ERROR(writer.Finish());
  }
  if (shards.size() > 1) {
    const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}},
                                  {"weight_map", std::move(weight_map)}};
    ABSL_RETURN_IF_ERROR(
        WriteText(absl::StrCat(dir, "/model.safetensors.index.json"),
                  index.dump(1) + "\n"));
  }
  ABSL_RETURN_IF_ERROR(WriteText(absl::StrCat(dir, "/generation_config.json"),
                                 GenerationConfigJson(config)));
  return WriteText(config_path, ConfigJson(config));
}

}  // namespace troupe
