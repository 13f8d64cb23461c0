#include "tests/fakes/checkpoint_builder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/dequantize.h"
#include "model/quantizer.h"
#include "model/safetensors_writer.h"
#include "model/tensor_catalog.h"
#include "nlohmann/json.hpp"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

// Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (2014).
uint64_t SplitMix(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

std::string RandomBytes(const TensorSpec& spec, DataType dtype, uint64_t seed) {
  uint64_t key = seed;
  for (const char c : spec.name) {
    key = SplitMix(key ^ static_cast<unsigned char>(c));
  }
  const bool matrix = spec.shape.size() == 2;
  const bool bias = spec.name.ends_with(".bias");
  // Uniform over +-sqrt(3 / columns) has variance 1 / columns.
  const float range =
      matrix ? std::sqrt(3.0f / static_cast<float>(spec.shape[1])) : 0.25f;
  const float middle = matrix || bias ? 0.0f : 1.0f;
  const uint64_t count = NumElements(spec);
  std::string bytes(count * SizeOf(dtype), '\0');
  for (uint64_t i = 0; i < count; ++i) {
    const double unit =
        static_cast<double>(SplitMix(key + i) >> 11) * 0x1p-52 - 1.0;
    const float value = middle + range * static_cast<float>(unit);
    if (dtype == DataType::kF32) {
      std::memcpy(&bytes[i * 4], &value, 4);
    } else {
      const uint16_t half =
          dtype == DataType::kBF16 ? BF16FromF32(value) : F16FromF32(value);
      std::memcpy(&bytes[i * 2], &half, 2);
    }
  }
  return bytes;
}

void WriteTensors(
    const std::string& path,
    const std::vector<const CheckpointBuilder::Tensor*>& tensors) {
  std::vector<TensorInfo> infos;
  for (const auto* tensor : tensors) infos.push_back(tensor->info);
  absl::StatusOr<SafetensorsWriter> writer =
      SafetensorsWriter::Create(path, infos);
  CHECK(writer.ok());
  for (const auto* tensor : tensors) {
    CHECK(writer->Append(tensor->bytes.data(), tensor->bytes.size()).ok());
  }
  CHECK(writer->Finish().ok());
}

}  // namespace

ModelConfig TinyConfig(Architecture architecture, DataType dtype) {
  ModelConfig config;
  config.architecture = architecture;
  config.dtype = dtype;
  config.hidden_size = 32;
  config.num_layers = 3;
  config.num_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.vocab_size = 264;
  config.max_position_embeddings = 128;
  config.rms_norm_eps = 1e-5f;
  config.sliding_window.assign(config.num_layers, 0);
  config.is_moe_layer.assign(config.num_layers, true);
  config.num_experts = 5;
  config.top_k = 2;
  config.expert_intermediate_size = 20;
  config.eos_token_ids = {257};
  config.bos_token_id = 256;
  switch (architecture) {
    case Architecture::kLlama:
      config.model_type = "llama";
      config.is_moe_layer.assign(config.num_layers, false);
      config.num_experts = config.top_k = config.expert_intermediate_size = 0;
      config.dense_intermediate_size = 44;
      config.tie_word_embeddings = true;
      config.qkv_bias = config.o_bias = true;
      config.rope = {.theta = 500000.0,
                     .scaling = RopeScaling::kLlama3,
                     .factor = 8.0,
                     .original_max_position_embeddings = 32,
                     .low_freq_factor = 1.0,
                     .high_freq_factor = 4.0};
      break;
    case Architecture::kMixtral:
      config.model_type = "mixtral";
      config.norm_topk_prob = true;
      config.sliding_window.assign(config.num_layers, 16);
      config.rope.theta = 1e6;
      break;
    case Architecture::kQwen2Moe:
      config.model_type = "qwen2_moe";
      config.qkv_bias = true;
      config.shared_expert_intermediate_size = 28;
      config.dense_intermediate_size = 44;
      config.is_moe_layer[1] = false;
      config.sliding_window[0] = 12;
      break;
    case Architecture::kQwen3Moe:
      config.model_type = "qwen3_moe";
      config.qkv_bias = config.o_bias = true;
      config.qk_norm = QkNorm::kPerHead;
      config.head_dim = 10;
      config.norm_topk_prob = true;
      config.dense_intermediate_size = 44;
      config.is_moe_layer[0] = false;
      config.rope = {.theta = 1e6,
                     .scaling = RopeScaling::kYarn,
                     .factor = 4.0,
                     .original_max_position_embeddings = 32,
                     .attention_factor = 1.125};
      break;
    case Architecture::kOlmoe:
      config.model_type = "olmoe";
      config.hidden_size = 48;
      config.qk_norm = QkNorm::kFull;
      config.clip_qkv = 0.75f;
      break;
  }
  config.attention_scale =
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim)));
  return config;
}

CheckpointBuilder::CheckpointBuilder(const ModelConfig& config, uint64_t seed)
    : config_(config) {
  const absl::Status status =
      ForEachTensor(config, [&](const TensorSpec& spec) {
        Tensor tensor;
        tensor.info.name = spec.name;
        tensor.info.type = SafetensorsTypeOf(config.dtype);
        tensor.info.shape = spec.shape;
        tensor.bytes = RandomBytes(spec, config.dtype, seed);
        tensors_.push_back(std::move(tensor));
        return absl::OkStatus();
      });
  CHECK(status.ok());
}

CheckpointBuilder::Tensor& CheckpointBuilder::Find(const std::string& name) {
  const auto it =
      std::find_if(tensors_.begin(), tensors_.end(),
                   [&](const Tensor& t) { return t.info.name == name; });
  CHECK(it != tensors_.end());
  return *it;
}

void CheckpointBuilder::Remove(const std::string& name) {
  const Tensor& tensor = Find(name);
  tensors_.erase(tensors_.begin() + (&tensor - tensors_.data()));
}

void CheckpointBuilder::Quantize(const std::string& name, WeightFormat format,
                                 size_t group_size) {
  Tensor& numbers = Find(name);
  const size_t n = numbers.info.shape.at(0);
  const size_t k = numbers.info.shape.at(1);
  const std::string floats = numbers.bytes;
  const StoredMatrix source = {
      .format = FormatOf(*WeightType(numbers.info.type)),
      .n = n,
      .k = k,
      .numbers = floats.data()};
  const size_t row_bytes = NumberBytes(format, k);
  const size_t num_groups = k / group_size;
  Tensor scales;
  scales.info = {name + kScaleSuffix, SafetensorsType::kF16, {n, num_groups}};
  scales.bytes.resize(2 * n * num_groups);
  Tensor zeros;
  zeros.info = {name + kZeroPointSuffix, SafetensorsType::kU8, {n, num_groups}};
  zeros.bytes.resize(n * num_groups);
  const bool is_int4 = IsInt4(format);
  numbers.info.type = is_int4 ? SafetensorsType::kU8 : SafetensorsType::kI8;
  numbers.info.shape = {n, row_bytes};
  numbers.bytes.assign(n * row_bytes, '\0');
  std::vector<float> row(k);
  for (size_t i = 0; i < n; ++i) {
    DequantizeRow(source, i, row.data());
    const absl::Status status = QuantizeRow(
        row.data(), k, format, group_size,
        reinterpret_cast<uint8_t*>(&numbers.bytes[i * row_bytes]),
        reinterpret_cast<uint16_t*>(&scales.bytes[2 * i * num_groups]),
        reinterpret_cast<uint8_t*>(&zeros.bytes[i * num_groups]));
    CHECK(status.ok());
  }
  tensors_.push_back(std::move(scales));
  if (format == WeightFormat::kInt4Zero) tensors_.push_back(std::move(zeros));
  config_.quantized = true;
}

void CheckpointBuilder::AddExtra(const std::string& name, size_t num_elements) {
  Tensor tensor;
  tensor.info.name = name;
  tensor.info.type = SafetensorsType::kI64;
  tensor.info.shape = {num_elements};
  tensor.bytes.assign(num_elements * 8, '\1');
  tensors_.insert(tensors_.begin(), std::move(tensor));
}

std::vector<std::string> CheckpointBuilder::Write(const std::string& dir,
                                                  size_t num_shards) const {
  CHECK_GE(num_shards, 1u);
  WriteFile(dir + "/config.json", ConfigJson(config_));
  WriteFile(dir + "/generation_config.json", GenerationConfigJson(config_));
  std::vector<std::vector<const Tensor*>> shards(num_shards);
  for (size_t i = 0; i < tensors_.size(); ++i) {
    shards[i % num_shards].push_back(&tensors_[i]);
  }
  if (num_shards == 1) {
    WriteTensors(dir + "/model.safetensors", shards[0]);
    return {"model.safetensors"};
  }
  std::vector<std::string> names;
  nlohmann::json weight_map = nlohmann::json::object();
  for (size_t i = 0; i < num_shards; ++i) {
    names.push_back(
        absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, num_shards));
    WriteTensors(dir + "/" + names[i], shards[i]);
    for (const Tensor* tensor : shards[i]) {
      weight_map[tensor->info.name] = names[i];
    }
  }
  const nlohmann::json index = {{"metadata", nlohmann::json::object()},
                                {"weight_map", weight_map}};
  WriteFile(dir + "/model.safetensors.index.json", index.dump(1));
  return names;
}

}  // namespace troupe
