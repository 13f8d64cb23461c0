#include "model/checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/digest.h"
#include "model/strict_json.h"
#include "nlohmann/json.hpp"

namespace troupe {
namespace {

using nlohmann::json;

// The index of the largest published models has about 10 MB.
constexpr size_t kMaxIndexBytes = size_t{32} << 20;
constexpr size_t kMaxShards = 4096;
constexpr size_t kMaxWarnings = 16;
constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";

bool Exists(const std::string& path) {
  struct stat file;
  return stat(path.c_str(), &file) == 0;
}

std::string ShapeText(const std::vector<size_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// A shard is a file of the directory itself: an index cannot point elsewhere.
bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name[0] != '.' &&
         name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

std::string StorageText(const Checkpoint::Storage& storage) {
  return storage.group_size == 0
             ? std::string(Name(storage.format))
             : absl::StrCat(Name(storage.format), " in groups of ",
                            storage.group_size);
}

bool TypeFits(const TensorSpec& spec, DataType dtype,
              const ModelConfig& config) {
  return dtype == config.dtype || (spec.may_be_f32 && dtype == DataType::kF32);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(
    const std::string& model_dir) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->model_dir_ = model_dir;
  ABSL_ASSIGN_OR_RETURN(checkpoint->config_, LoadModelConfig(model_dir));
  ABSL_RETURN_IF_ERROR(checkpoint->OpenFiles());
  ABSL_RETURN_IF_ERROR(checkpoint->CheckTensors());
  return checkpoint;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::OpenExperts(
    const Checkpoint& model, const std::string& path) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->model_dir_ = path;
  checkpoint->config_ = model.config_;
  checkpoint->only_experts_ = true;
  ABSL_RETURN_IF_ERROR(checkpoint->OpenFile(path, nullptr));
  ABSL_RETURN_IF_ERROR(checkpoint->CheckExperts(model));
  return checkpoint;
}

absl::Status Checkpoint::CheckExperts(const Checkpoint& model) {
  expert_bytes_.assign(config_.num_layers * config_.num_experts, 0);
  std::unordered_set<std::string> names;
  const auto check_names = [&]() -> absl::Status {
    for (const TensorInfo& tensor : files_[0].tensors()) {
      if (names.count(tensor.name) > 0) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(files_[0].path(), ": tensor ", Printable(tensor.name),
                       ": is not of an expert of this model, which has ",
                       config_.num_experts, " in each MoE layer of ",
                       config_.num_layers, " layers"));
    }
    return absl::OkStatus();
  };
  // Names first: what is missing may have a wrong one.
  ABSL_RETURN_IF_ERROR(ForEachTensor(config_, [&](const TensorSpec& spec) {
    if (spec.owner == TensorOwner::kExpert) {
      for (const char* suffix : {"", kScaleSuffix, kZeroPointSuffix}) {
        names.insert(absl::StrCat(spec.name, suffix));
      }
    }
    return absl::OkStatus();
  }));
  ABSL_RETURN_IF_ERROR(check_names());
  names.clear();
  for (size_t layer = 0; layer < config_.num_layers; ++layer) {
    if (!config_.is_moe_layer[layer]) continue;
    for (size_t expert = 0; expert < config_.num_experts; ++expert) {
      uint64_t num_bytes = 0;
      // An expert of which the file has one tensor must be there as a whole.
      const bool is_here = std::any_of(
          std::begin(kExpertTensors), std::end(kExpertTensors),
          [&](ExpertTensor which) {
            return tensors_.count(SpecOf(config_, layer, expert, which).name) >
                   0;
          });
      if (!is_here) continue;
      for (const ExpertTensor which : kExpertTensors) {
        const TensorSpec spec = SpecOf(config_, layer, expert, which);
        ABSL_ASSIGN_OR_RETURN(const Parts parts, CheckTensor(spec));
        const Storage wanted = model.StorageOf(spec);
        if (parts.storage.format != wanted.format ||
            parts.storage.group_size != wanted.group_size) {
          return absl::InvalidArgumentError(absl::StrCat(
              Who(parts.numbers), "is ", StorageText(parts.storage),
              ", the model has it as ", StorageText(wanted)));
        }
        for (const Location& part :
             {parts.numbers, parts.scales, parts.zeros}) {
          if (part.tensor != nullptr) names.insert(part.tensor->name);
        }
        num_bytes += parts.storage.num_bytes;
      }
      expert_bytes_[layer * config_.num_experts + expert] = num_bytes;
      total_bytes_ += num_bytes;
      experts_.push_back({layer, expert});
    }
  }
  ABSL_RETURN_IF_ERROR(check_names());
  if (experts_.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(files_[0].path(), ": holds no expert"));
  }
  return absl::OkStatus();
}

std::string Checkpoint::ContentHashKey(size_t layer, size_t expert) {
  return absl::StrCat("content_hash.", layer, ".", expert);
}

absl::Status Checkpoint::CheckContentHash(size_t layer, size_t expert,
                                          const std::string& hash) const {
  if (!only_experts_) return absl::OkStatus();
  const auto it = files_[0].metadata().find(ContentHashKey(layer, expert));
  if (it == files_[0].metadata().end() || it->second == hash) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      files_[0].path(), ": the weights of expert ", expert, " of layer ", layer,
      " have the hash ", hash, ", the file says ", Printable(it->second)));
}

absl::StatusOr<std::string> Checkpoint::FileHash() const {
  CHECK(only_experts_);
  TensorInfo piece;
  std::vector<char> bytes(size_t{1} << 20);
  Digest digest;
  const uint64_t num_bytes = files_[0].num_bytes();
  while (piece.offset < num_bytes) {
    piece.num_bytes =
        std::min<uint64_t>(bytes.size(), num_bytes - piece.offset);
    ABSL_RETURN_IF_ERROR(files_[0].ReadInto(piece, bytes.data()));
    digest.Update(bytes.data(), piece.num_bytes);
    piece.offset += piece.num_bytes;
  }
  ABSL_RETURN_IF_ERROR(files_[0].CheckUnchanged());
  return digest.Hex();
}

absl::Status Checkpoint::OpenFiles() {
  const std::string single = absl::StrCat(model_dir_, "/", kSingleFile);
  if (Exists(single)) return OpenFile(single, nullptr);
  const std::string index = absl::StrCat(model_dir_, "/", kIndexFile);
  if (Exists(index)) return OpenShards(index);
  return absl::NotFoundError(absl::StrCat(model_dir_, ": has neither ",
                                          kSingleFile, " nor ", kIndexFile));
}

// `wanted` holds the names that the index says are in this file; null: all.
absl::Status Checkpoint::OpenFile(const std::string& path,
                                  const std::vector<std::string>* wanted) {
  ABSL_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
  const size_t file_index = files_.size();
  if (wanted == nullptr) {
    for (const TensorInfo& tensor : file.tensors()) {
      tensors_[tensor.name] = Location{file_index, &tensor};
    }
  } else {
    for (const std::string& name : *wanted) {
      const TensorInfo* tensor = file.Find(name);
      if (tensor == nullptr) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": tensor ", Printable(name),
                         ": not in this file, but the index says so"));
      }
      tensors_[name] = Location{file_index, tensor};
    }
  }
  // The tensors stay where they are when the file moves.
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status Checkpoint::OpenShards(const std::string& index_path) {
  ABSL_ASSIGN_OR_RETURN(const json index,
                        ReadJsonFile(index_path, kMaxIndexBytes));
  const auto invalid = [&](const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": ", why));
  };
  if (!index.is_object() || !index.contains("weight_map") ||
      !index["weight_map"].is_object()) {
    return invalid("has no object weight_map");
  }
  std::map<std::string, std::vector<std::string>> names_by_shard;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || !IsPlainFileName(shard.get<std::string>())) {
      return invalid(absl::StrCat("tensor ", Printable(name),
                                  ": the shard must be a plain file name"));
    }
    names_by_shard[shard.get<std::string>()].push_back(name);
    if (names_by_shard.size() > kMaxShards) {
      return invalid(absl::StrCat("more than ", kMaxShards, " shards"));
    }
  }
  for (const auto& [shard, names] : names_by_shard) {
    ABSL_RETURN_IF_ERROR(
        OpenFile(absl::StrCat(model_dir_, "/", shard), &names));
  }
  return absl::OkStatus();
}

std::string Checkpoint::Who(const Location& location) const {
  return absl::StrCat(files_[location.file].path(), ": tensor ",
                      Printable(location.tensor->name), ": ");
}

absl::StatusOr<Checkpoint::Location> Checkpoint::FindTensor(
    const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it != tensors_.end()) return it->second;
  const std::string where =
      only_experts_ || (files_.size() == 1 &&
                        Exists(absl::StrCat(model_dir_, "/", kSingleFile)))
          ? files_[0].path()
          : absl::StrCat(model_dir_, "/", kIndexFile);
  return absl::NotFoundError(
      absl::StrCat(where, ": tensor ", Printable(name), ": missing"));
}

absl::StatusOr<Checkpoint::Parts> Checkpoint::FindParts(
    const std::string& name) const {
  Parts parts;
  ABSL_ASSIGN_OR_RETURN(parts.numbers, FindTensor(name));
  const TensorInfo& info = *parts.numbers.tensor;
  parts.shape = info.shape;
  parts.storage.num_bytes = info.num_bytes;
  if (const std::optional<DataType> dtype = WeightType(info.type)) {
    parts.storage.format = FormatOf(*dtype);
    if (config_.quantized && tensors_.count(name + kScaleSuffix) > 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(Who(parts.numbers), "is ", Name(info.type),
                       ", but there is a ", Printable(name), kScaleSuffix));
    }
    return parts;
  }
  const bool may_be_numbers =
      info.type == SafetensorsType::kI8 || info.type == SafetensorsType::kU8;
  if (!config_.quantized || !may_be_numbers) {
    return absl::InvalidArgumentError(
        absl::StrCat(Who(parts.numbers), "is ", Name(info.type),
                     ", which is no format of weights"));
  }
  ABSL_RETURN_IF_ERROR(FindQuantization(name, parts));
  return parts;
}

// The numbers are known: I8 [n, k] or U8 [n, k / 2].
absl::Status Checkpoint::FindQuantization(const std::string& name,
                                          Parts& parts) const {
  const auto invalid = [&](const Location& location, const auto&... why) {
    return absl::InvalidArgumentError(absl::StrCat(Who(location), why...));
  };
  const TensorInfo& numbers = *parts.numbers.tensor;
  if (numbers.shape.size() != 2) {
    return invalid(parts.numbers, "is ", Name(numbers.type), " of shape ",
                   ShapeText(numbers.shape), ", must be a matrix");
  }
  const bool is_int8 = numbers.type == SafetensorsType::kI8;
  const size_t n = numbers.shape[0];
  const size_t k = is_int8 ? numbers.shape[1] : 2 * numbers.shape[1];
  parts.shape = {n, k};

  const absl::StatusOr<Location> scales = FindTensor(name + kScaleSuffix);
  if (!scales.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(scales.status().message(), "; ", Printable(name), " is ",
                     Name(numbers.type), " and needs it"));
  }
  parts.scales = *scales;
  const TensorInfo& scale = *scales->tensor;
  if (scale.type != SafetensorsType::kF16) {
    return invalid(*scales, "is ", Name(scale.type), ", must be F16");
  }
  const size_t num_groups = scale.shape.size() == 2 ? scale.shape[1] : 0;
  size_t& group_size = parts.storage.group_size;
  for (const size_t size : kGroupSizes) {
    if (k > 0 && k % size == 0 && num_groups == k / size) group_size = size;
  }
  if (group_size == 0 || scale.shape[0] != n) {
    return invalid(*scales, "has shape ", ShapeText(scale.shape), ", a matrix ",
                   ShapeText(parts.shape), " in groups of 32 or 64 asks for [",
                   n, ", ", k, " / 32] or [", n, ", ", k, " / 64]");
  }
  parts.storage.num_bytes += scale.num_bytes;
  parts.storage.format = is_int8 ? WeightFormat::kInt8 : WeightFormat::kInt4;

  const auto zeros = tensors_.find(name + kZeroPointSuffix);
  if (zeros == tensors_.end()) return absl::OkStatus();
  parts.zeros = zeros->second;
  const TensorInfo& zero = *parts.zeros.tensor;
  if (is_int8) {
    return invalid(parts.zeros, "numbers that are I8 have no zero point");
  }
  if (zero.type != SafetensorsType::kU8) {
    return invalid(parts.zeros, "is ", Name(zero.type), ", must be U8");
  }
  if (zero.shape != scale.shape) {
    return invalid(parts.zeros, "has shape ", ShapeText(zero.shape),
                   ", the scales have ", ShapeText(scale.shape));
  }
  parts.storage.num_bytes += zero.num_bytes;
  parts.storage.format = WeightFormat::kInt4Zero;
  return absl::OkStatus();
}

absl::StatusOr<Checkpoint::Parts> Checkpoint::CheckTensor(
    const TensorSpec& spec) const {
  const absl::StatusOr<Location> found = FindTensor(spec.name);
  if (!found.ok()) {
    return absl::InvalidArgumentError(found.status().message());
  }
  const Location& location = *found;
  const TensorInfo& info = *location.tensor;
  const std::optional<DataType> dtype = WeightType(info.type);
  const bool may_be_numbers =
      config_.quantized && spec.tensor_class != TensorClass::kSmall &&
      (info.type == SafetensorsType::kI8 || info.type == SafetensorsType::kU8);
  if (!may_be_numbers) {
    if (info.shape != spec.shape) {
      return absl::InvalidArgumentError(
          absl::StrCat(Who(location), "has shape ", ShapeText(info.shape),
                       ", config.json asks for ", ShapeText(spec.shape)));
    }
    if (!dtype.has_value() || !TypeFits(spec, *dtype, config_)) {
      return absl::InvalidArgumentError(absl::StrCat(
          Who(location), "is ", Name(info.type), ", config.json asks for ",
          Name(SafetensorsTypeOf(config_.dtype))));
    }
  }
  ABSL_ASSIGN_OR_RETURN(Parts parts, FindParts(spec.name));
  if (parts.shape != spec.shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(Who(location), "is ", Name(parts.storage.format),
                     " of shape ", ShapeText(parts.shape),
                     ", config.json asks for ", ShapeText(spec.shape)));
  }
  return parts;
}

absl::Status Checkpoint::CheckTensors() {
  Digest digest;
  const std::string config_fingerprint = Fingerprint(config_);
  digest.Update(config_fingerprint.data(), config_fingerprint.size());
  expert_bytes_.assign(config_.num_layers * config_.num_experts, 0);
  std::unordered_set<std::string> needed;
  const auto check = [&](const TensorSpec& spec) -> absl::Status {
    ABSL_ASSIGN_OR_RETURN(const Parts parts, CheckTensor(spec));
    for (const Location& part : {parts.numbers, parts.scales, parts.zeros}) {
      if (part.tensor == nullptr) continue;
      const TensorInfo& info = *part.tensor;
      const std::string line = absl::StrCat(info.name, " ", Name(info.type),
                                            " ", ShapeText(info.shape), "\n");
      digest.Update(line.data(), line.size());
      needed.insert(info.name);
    }
    total_bytes_ += parts.storage.num_bytes;
    if (spec.owner == TensorOwner::kRouter) {
      router_bytes_ += parts.storage.num_bytes;
    } else {
      expert_bytes_[spec.layer * config_.num_experts + spec.expert] +=
          parts.storage.num_bytes;
    }
    return absl::OkStatus();
  };
  ABSL_RETURN_IF_ERROR(ForEachTensor(config_, check));
  ABSL_RETURN_IF_ERROR(CheckGateAndUp());
  fingerprint_ = digest.Hex();
  WarnOfOthers(needed);
  return absl::OkStatus();
}

// The kernels compute both in one pass over the inputs.
absl::Status Checkpoint::CheckGateAndUp() const {
  const auto check = [&](const TensorSpec& gate,
                         const TensorSpec& up) -> absl::Status {
    const Storage a = StorageOf(gate);
    const Storage b = StorageOf(up);
    if (a.format == b.format && a.group_size == b.group_size) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat(
        Who(tensors_.at(up.name)), "is ", StorageText(b), ", but ", gate.name,
        " is ", StorageText(a), "; both must have one format"));
  };
  for (size_t layer = 0; layer < config_.num_layers; ++layer) {
    for (const auto& [gate, up] :
         {std::pair(LayerTensor::kSharedGate, LayerTensor::kSharedUp),
          std::pair(LayerTensor::kDenseGate, LayerTensor::kDenseUp)}) {
      if (!HasTensor(config_, layer, gate)) continue;
      ABSL_RETURN_IF_ERROR(
          check(SpecOf(config_, layer, gate), SpecOf(config_, layer, up)));
    }
    if (!config_.is_moe_layer[layer]) continue;
    for (size_t expert = 0; expert < config_.num_experts; ++expert) {
      ABSL_RETURN_IF_ERROR(
          check(SpecOf(config_, layer, expert, ExpertTensor::kGateProj),
                SpecOf(config_, layer, expert, ExpertTensor::kUpProj)));
    }
  }
  return absl::OkStatus();
}

void Checkpoint::WarnOfOthers(const std::unordered_set<std::string>& needed) {
  size_t num_extra = 0;
  for (const SafetensorsFile& file : files_) {
    for (const TensorInfo& tensor : file.tensors()) {
      if (needed.count(tensor.name) > 0) continue;
      if (++num_extra > kMaxWarnings) continue;
      warnings_.push_back(absl::StrCat(file.path(), ": tensor ",
                                       Printable(tensor.name),
                                       ": not used by this model"));
    }
  }
  if (num_extra > kMaxWarnings) {
    warnings_.push_back(absl::StrCat("and ", num_extra - kMaxWarnings,
                                     " more tensors that are not used"));
  }
}

Checkpoint::Storage Checkpoint::StorageOf(const TensorSpec& spec) const {
  const absl::StatusOr<Parts> parts = FindParts(spec.name);
  CHECK(parts.ok());  // Open has checked every tensor
  return parts->storage;
}

absl::StatusOr<std::vector<Checkpoint::StoredPart>> Checkpoint::StoredParts(
    const std::string& name) const {
  ABSL_ASSIGN_OR_RETURN(const Parts parts, FindParts(name));
  std::vector<StoredPart> stored;
  for (const Location& part : {parts.numbers, parts.scales, parts.zeros}) {
    if (part.tensor != nullptr) {
      stored.push_back({&files_[part.file], part.tensor});
    }
  }
  return stored;
}

absl::StatusOr<MappedTensor> Checkpoint::MapModel(ModelTensor which) const {
  return Map(SpecOf(config_, which).name);
}

absl::StatusOr<MappedTensor> Checkpoint::MapLayer(size_t layer,
                                                  LayerTensor which) const {
  if (!HasTensor(config_, layer, which)) {
    return absl::InvalidArgumentError(
        absl::StrCat(model_dir_, ": layer ", layer, " has no tensor of slot ",
                     static_cast<int>(which)));
  }
  return Map(SpecOf(config_, layer, which).name);
}

absl::Status Checkpoint::HasExpert(size_t layer, size_t expert) const {
  if (layer >= config_.num_layers || !config_.is_moe_layer[layer] ||
      expert >= config_.num_experts) {
    return absl::InvalidArgumentError(
        absl::StrCat(model_dir_, ": layer ", layer, " has no expert ", expert));
  }
  return absl::OkStatus();
}

absl::StatusOr<MappedTensor> Checkpoint::MapExpert(size_t layer, size_t expert,
                                                   ExpertTensor which) const {
  ABSL_RETURN_IF_ERROR(HasExpert(layer, expert));
  return Map(SpecOf(config_, layer, expert, which).name);
}

void Checkpoint::PrefetchExpert(size_t layer, size_t expert) const {
  if (!HasExpert(layer, expert).ok()) return;
  for (const ExpertTensor which : kExpertTensors) {
    const absl::StatusOr<Parts> parts =
        FindParts(SpecOf(config_, layer, expert, which).name);
    if (!parts.ok()) continue;
    for (const Location& part : {parts->numbers, parts->scales, parts->zeros}) {
      if (part.tensor != nullptr) files_[part.file].Prefetch(*part.tensor);
    }
  }
}

absl::StatusOr<MappedTensor> Checkpoint::Map(const std::string& name) const {
  ABSL_ASSIGN_OR_RETURN(const Parts parts, FindParts(name));
  const auto map = [&](const Location& location,
                       MappedBytes& bytes) -> absl::Status {
    if (location.tensor == nullptr) return absl::OkStatus();
    ABSL_ASSIGN_OR_RETURN(
        bytes, MappedBytes::Map(files_[location.file], *location.tensor,
                                /*copy=*/only_experts_));
    return absl::OkStatus();
  };
  MappedTensor tensor;
  tensor.shape_ = parts.shape;
  ABSL_RETURN_IF_ERROR(map(parts.numbers, tensor.numbers_));
  ABSL_RETURN_IF_ERROR(map(parts.scales, tensor.scales_));
  ABSL_RETURN_IF_ERROR(map(parts.zeros, tensor.zeros_));

  StoredMatrix& matrix = tensor.matrix_;
  matrix.format = parts.storage.format;
  matrix.group_size = parts.storage.group_size;
  matrix.n = parts.shape.size() == 2 ? parts.shape[0] : 1;
  matrix.k = 1;
  for (const size_t dimension : parts.shape) matrix.k *= dimension;
  if (matrix.n > 0) matrix.k /= matrix.n;
  matrix.numbers = tensor.numbers_.data();
  matrix.scales = tensor.scales_.data();
  matrix.zeros = tensor.zeros_.data();
  if (IsQuantized(matrix.format)) {
    tensor.Populate();
    ABSL_RETURN_IF_ERROR(tensor.CheckContents(Who(parts.numbers)));
  } else if (only_experts_) {
    ABSL_RETURN_IF_ERROR(tensor.CheckFinite(Who(parts.numbers)));
  }
  // What was copied is what was checked.
  if (only_experts_) {
    ABSL_RETURN_IF_ERROR(files_[parts.numbers.file].CheckUnchanged());
  }
  return tensor;
}

absl::StatusOr<std::string> Checkpoint::ExpertContentHash(size_t layer,
                                                          size_t expert) const {
  ABSL_ASSIGN_OR_RETURN(const MappedTensor gate,
                        MapExpert(layer, expert, ExpertTensor::kGateProj));
  ABSL_ASSIGN_OR_RETURN(const MappedTensor up,
                        MapExpert(layer, expert, ExpertTensor::kUpProj));
  ABSL_ASSIGN_OR_RETURN(const MappedTensor down,
                        MapExpert(layer, expert, ExpertTensor::kDownProj));
  return ExpertContentHashOf(gate, up, down);
}

std::string ExpertContentHashOf(const MappedTensor& gate,
                                const MappedTensor& up,
                                const MappedTensor& down) {
  Digest digest;
  for (const MappedTensor* tensor : {&gate, &up, &down}) tensor->AddTo(digest);
  return digest.Hex();
}

absl::StatusOr<std::string> Checkpoint::ExpertContentHash(size_t expert) const {
  if (expert >= config_.num_experts) {
    return absl::InvalidArgumentError(
        absl::StrCat(model_dir_, ": has no expert ", expert));
  }
  Digest digest;
  for (size_t layer = 0; layer < config_.num_layers; ++layer) {
    if (!config_.is_moe_layer[layer]) continue;
    ABSL_ASSIGN_OR_RETURN(const std::string hash,
                          ExpertContentHash(layer, expert));
    const std::string line = absl::StrCat(layer, " ", hash, "\n");
    digest.Update(line.data(), line.size());
  }
  return digest.Hex();
}

}  // namespace troupe
