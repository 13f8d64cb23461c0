#include "model/checkpoint.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <unordered_set>

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

size_t PageSize() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

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

bool TypeFits(const TensorSpec& spec, DataType dtype,
              const ModelConfig& config) {
  return dtype == config.dtype || (spec.may_be_f32 && dtype == DataType::kF32);
}

}  // namespace

MappedTensor::MappedTensor(MappedTensor&& other) noexcept {
  *this = std::move(other);
}

MappedTensor& MappedTensor::operator=(MappedTensor&& other) noexcept {
  std::swap(dtype_, other.dtype_);
  std::swap(shape_, other.shape_);
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  std::swap(is_copy_, other.is_copy_);
  return *this;
}

MappedTensor::~MappedTensor() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

void MappedTensor::Prefetch() const {
  if (mapping_ != nullptr && !is_copy_) {
    madvise(mapping_, mapping_bytes_, MADV_WILLNEED);
  }
}

void MappedTensor::DropPages() const {
  if (mapping_ != nullptr && !is_copy_) {
    madvise(mapping_, mapping_bytes_, MADV_DONTNEED);
  }
}

void CopyToFloat(const MappedTensor& tensor, float* destination) {
  const size_t count = tensor.num_elements();
  const auto* halves = static_cast<const uint16_t*>(tensor.data());
  switch (tensor.dtype()) {
    case DataType::kF32:
      if (count > 0) std::memcpy(destination, tensor.data(), count * 4);
      return;
    case DataType::kBF16:
      std::transform(halves, halves + count, destination, F32FromBF16);
      return;
    case DataType::kF16:
      std::transform(halves, halves + count, destination, F32FromF16);
      return;
  }
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(
    const std::string& model_dir) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->model_dir_ = model_dir;
  ABSL_ASSIGN_OR_RETURN(checkpoint->config_, LoadModelConfig(model_dir));
  ABSL_RETURN_IF_ERROR(checkpoint->OpenFiles());
  ABSL_RETURN_IF_ERROR(checkpoint->CheckTensors());
  return checkpoint;
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

absl::Status Checkpoint::CheckTensor(const TensorSpec& spec) const {
  const auto it = tensors_.find(spec.name);
  if (it == tensors_.end()) {
    const std::string where =
        files_.size() == 1 && Exists(absl::StrCat(model_dir_, "/", kSingleFile))
            ? files_[0].path()
            : absl::StrCat(model_dir_, "/", kIndexFile);
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": tensor ", spec.name, ": missing"));
  }
  const TensorInfo& tensor = *it->second.tensor;
  const std::string who = absl::StrCat(files_[it->second.file].path(),
                                       ": tensor ", spec.name, ": ");
  if (tensor.shape != spec.shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(who, "has shape ", ShapeText(tensor.shape),
                     ", config.json asks for ", ShapeText(spec.shape)));
  }
  const std::optional<DataType> dtype = WeightType(tensor.type);
  if (!dtype.has_value() || !TypeFits(spec, *dtype, config_)) {
    return absl::InvalidArgumentError(
        absl::StrCat(who, "is ", Name(tensor.type), ", config.json asks for ",
                     Name(SafetensorsTypeOf(config_.dtype))));
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::CheckTensors() {
  Digest digest;
  const std::string config_fingerprint = Fingerprint(config_);
  digest.Update(config_fingerprint.data(), config_fingerprint.size());
  std::unordered_set<std::string> needed;
  const auto check = [&](const TensorSpec& spec) -> absl::Status {
    ABSL_RETURN_IF_ERROR(CheckTensor(spec));
    const TensorInfo& tensor = *tensors_.at(spec.name).tensor;
    const std::string line = absl::StrCat(spec.name, " ", Name(tensor.type),
                                          " ", ShapeText(tensor.shape), "\n");
    digest.Update(line.data(), line.size());
    total_bytes_ += tensor.num_bytes;
    if (spec.owner == TensorOwner::kRouter) router_bytes_ += tensor.num_bytes;
    needed.insert(spec.name);
    return absl::OkStatus();
  };
  ABSL_RETURN_IF_ERROR(ForEachTensor(config_, check));
  fingerprint_ = digest.Hex();
  // All experts have the same shapes and, as matrices, the config's dtype.
  if (config_.num_experts > 0) {
    expert_bytes_ = 3 * uint64_t{config_.hidden_size} *
                    config_.expert_intermediate_size * SizeOf(config_.dtype);
  }
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
  return absl::OkStatus();
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

absl::StatusOr<MappedTensor> Checkpoint::MapExpert(size_t layer, size_t expert,
                                                   ExpertTensor which) const {
  if (layer >= config_.num_layers || !config_.is_moe_layer[layer] ||
      expert >= config_.num_experts) {
    return absl::InvalidArgumentError(
        absl::StrCat(model_dir_, ": layer ", layer, " has no expert ", expert));
  }
  return Map(SpecOf(config_, layer, expert, which).name);
}

absl::StatusOr<MappedTensor> Checkpoint::Map(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return absl::NotFoundError(
        absl::StrCat(model_dir_, ": tensor ", Printable(name), ": missing"));
  }
  const SafetensorsFile& file = files_[it->second.file];
  const TensorInfo& info = *it->second.tensor;
  const std::optional<DataType> dtype = WeightType(info.type);
  if (!dtype.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": tensor ", Printable(name), ": is ",
                     Name(info.type), ", which is no format of weights"));
  }
  ABSL_RETURN_IF_ERROR(file.CheckUnchanged());

  MappedTensor tensor;
  tensor.dtype_ = *dtype;
  tensor.shape_ = info.shape;
  tensor.num_bytes_ = info.num_bytes;
  if (info.num_bytes == 0) return tensor;
  tensor.is_copy_ = info.offset % SizeOf(*dtype) != 0;
  const uint64_t begin =
      tensor.is_copy_ ? info.offset : info.offset / PageSize() * PageSize();
  tensor.mapping_bytes_ = info.offset + info.num_bytes - begin;
  void* mapping =
      tensor.is_copy_
          ? mmap(nullptr, tensor.mapping_bytes_, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
          : mmap(nullptr, tensor.mapping_bytes_, PROT_READ, MAP_PRIVATE,
                 file.fd(), static_cast<off_t>(begin));
  if (mapping == MAP_FAILED) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot map ", file.path(), ": tensor ", name));
  }
  tensor.mapping_ = mapping;
  tensor.data_ = static_cast<const char*>(mapping) + (info.offset - begin);
  if (tensor.is_copy_) {
    ABSL_RETURN_IF_ERROR(file.ReadInto(info, static_cast<char*>(mapping)));
    mprotect(mapping, tensor.mapping_bytes_, PROT_READ);
  }
  return tensor;
}

absl::StatusOr<std::string> Checkpoint::ExpertContentHash(size_t layer,
                                                          size_t expert) const {
  Digest digest;
  for (const ExpertTensor which : kExpertTensors) {
    ABSL_ASSIGN_OR_RETURN(const MappedTensor tensor,
                          MapExpert(layer, expert, which));
    const std::string head = absl::StrCat(Name(tensor.dtype()), " ",
                                          ShapeText(tensor.shape()), "\n");
    digest.Update(head.data(), head.size());
    digest.Update(tensor.data(), tensor.num_bytes());
  }
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
