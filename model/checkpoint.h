// The weights of a Hugging Face directory, mapped one tensor at a time.
#ifndef TROUPE_MODEL_CHECKPOINT_H_
#define TROUPE_MODEL_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/dtype.h"
#include "model/config.h"
#include "model/safetensors.h"
#include "model/tensor_catalog.h"

namespace troupe {

// One tensor, mapped read-only and privately: only the pages that hold its
// bytes, unmapped when it goes. It outlives the Checkpoint. Not thread-safe
// while it is moved; the bytes may be read by any thread. data() is aligned for
// its dtype: a tensor that is not so in its file (the format allows it) is
// copied to memory instead.
//
// A file that is truncated while it is mapped raises SIGBUS on access, as for
// every mapping: checkpoints are replaced by renaming, never written in place.
class MappedTensor {
 public:
  MappedTensor() = default;
  MappedTensor(MappedTensor&& other) noexcept;
  MappedTensor& operator=(MappedTensor&& other) noexcept;
  ~MappedTensor();

  DataType dtype() const { return dtype_; }
  const std::vector<size_t>& shape() const { return shape_; }
  const void* data() const { return data_; }
  size_t num_bytes() const { return num_bytes_; }
  size_t num_elements() const { return num_bytes_ / SizeOf(dtype_); }
  // Rows and columns of a matrix; a vector is one row.
  size_t rows() const { return shape_.size() == 2 ? shape_[0] : 1; }
  size_t cols() const { return shape_.empty() ? 1 : shape_.back(); }
  // Tells the kernel that the bytes will be read soon (they need not be).
  void Prefetch() const;
  // Gives the pages back to the kernel; they are read again on access. After
  // the bytes were repacked elsewhere.
  void DropPages() const;

 private:
  friend class Checkpoint;

  DataType dtype_ = DataType::kF32;
  std::vector<size_t> shape_;
  const void* data_ = nullptr;
  size_t num_bytes_ = 0;
  void* mapping_ = nullptr;  // page-aligned
  size_t mapping_bytes_ = 0;
  bool is_copy_ = false;  // the mapping is anonymous memory
};

// Converts to float: exact for all formats. `destination` has
// tensor.num_elements() elements.
void CopyToFloat(const MappedTensor& tensor, float* destination);

// The tensors of one model directory. Owns the open files; thread-safe once
// opened (all methods are const). Opening reads headers only: neither Open nor
// the checkpoint itself maps any weight.
class Checkpoint {
 public:
  // Reads config.json and the headers of model.safetensors, or of all shards
  // that model.safetensors.index.json names, and checks that every tensor that
  // the config asks for is there, with its shape and dtype. The message of an
  // error names file and tensor.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(
      const std::string& model_dir);

  const ModelConfig& config() const { return config_; }
  const std::string& model_dir() const { return model_dir_; }

  // InvalidArgument when the model has no such tensor (a bias that the config
  // does not ask for, a router matrix of a dense layer).
  absl::StatusOr<MappedTensor> MapModel(ModelTensor which) const;
  absl::StatusOr<MappedTensor> MapLayer(size_t layer, LayerTensor which) const;
  absl::StatusOr<MappedTensor> MapExpert(size_t layer, size_t expert,
                                         ExpertTensor which) const;
  // By its name in the files; NotFound when no file has it.
  absl::StatusOr<MappedTensor> Map(const std::string& name) const;

  // Bytes in the files.
  uint64_t expert_bytes() const { return expert_bytes_; }  // one, in one layer
  uint64_t router_bytes() const { return router_bytes_; }  // all but experts
  uint64_t total_bytes() const { return total_bytes_; }    // needed tensors

  // Digest (32 hex digits) of the config's fingerprint and of the name, shape
  // and dtype of every needed tensor; the contents do not matter.
  const std::string& fingerprint() const { return fingerprint_; }

  // Digest (32 hex digits) of an expert's bytes: gate, up and down projection
  // with their dtype and shape, in one layer or in all MoE layers. Reads all of
  // them.
  absl::StatusOr<std::string> ExpertContentHash(size_t layer,
                                                size_t expert) const;
  absl::StatusOr<std::string> ExpertContentHash(size_t expert) const;

  // Tensors in the files that the model does not need (rotary tables, heads of
  // other tasks), and other oddities that are not errors. One line each.
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  Checkpoint() = default;

  struct Location {
    size_t file = 0;                     // files_
    const TensorInfo* tensor = nullptr;  // owned by that file
  };

  absl::Status OpenFiles();
  absl::Status OpenFile(const std::string& path,
                        const std::vector<std::string>* wanted);
  absl::Status OpenShards(const std::string& index_path);
  absl::Status CheckTensor(const TensorSpec& spec) const;
  absl::Status CheckTensors();

  std::string model_dir_;
  ModelConfig config_;
  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string, Location> tensors_;
  uint64_t expert_bytes_ = 0;
  uint64_t router_bytes_ = 0;
  uint64_t total_bytes_ = 0;
  std::string fingerprint_;
  std::vector<std::string> warnings_;
};

}  // namespace troupe

#endif  // TROUPE_MODEL_CHECKPOINT_H_
