// The weights of a Hugging Face directory, mapped one tensor at a time.
#ifndef TROUPE_MODEL_CHECKPOINT_H_
#define TROUPE_MODEL_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "absl/status/statusor.h"
#include "common/stored_matrix.h"
#include "model/config.h"
#include "model/mapped_tensor.h"
#include "model/safetensors.h"
#include "model/tensor_catalog.h"

namespace troupe {

struct ExpertOfLayer {
  size_t layer = 0;
  size_t expert = 0;
  bool operator==(const ExpertOfLayer&) const = default;
};

// The tensors of one model directory, or of one file that holds experts of it.
// Owns the open files; thread-safe once opened (all methods are const). Opening
// reads headers only: neither Open nor the checkpoint itself maps any weight.
class Checkpoint {
 public:
  // Reads config.json and the headers of model.safetensors, or of all shards
  // that model.safetensors.index.json names, and checks that every tensor that
  // the config asks for is there, with its shape and dtype. Where the config
  // allows it (ModelConfig::quantized), matrices may be quantised, each in its
  // own format, with scales and zero points that fit (docs/quantisation.md);
  // gate and up projection of one MLP have the same. The message of an error
  // names file and tensor.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(
      const std::string& model_dir);

  // A safetensors file that holds nothing but experts of `model`, each with all
  // its tensors under their names there, in the shape and format that they
  // have there. MapExpert reads them into memory, so that a file that is cut
  // meanwhile is an error, and takes no NaN and no infinity. The file's
  // metadata may say what each expert's content hash is (ContentHashKey).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> OpenExperts(
      const Checkpoint& model, const std::string& path);
  // What OpenExperts has found, ascending by layer and expert.
  const std::vector<ExpertOfLayer>& experts() const { return experts_; }
  static std::string ContentHashKey(size_t layer, size_t expert);
  // InvalidArgument when the file's metadata has another one for that expert.
  absl::Status CheckContentHash(size_t layer, size_t expert,
                                const std::string& hash) const;
  // Digest (32 hex digits) of all bytes of OpenExperts' file.
  absl::StatusOr<std::string> FileHash() const;

  const ModelConfig& config() const { return config_; }
  const std::string& model_dir() const { return model_dir_; }

  // InvalidArgument when the model has no such tensor (a bias that the config
  // does not ask for, a router matrix of a dense layer), and when a quantised
  // one has contents that its format does not allow, for which it is read as a
  // whole.
  absl::StatusOr<MappedTensor> MapModel(ModelTensor which) const;
  absl::StatusOr<MappedTensor> MapLayer(size_t layer, LayerTensor which) const;
  absl::StatusOr<MappedTensor> MapExpert(size_t layer, size_t expert,
                                         ExpertTensor which) const;
  // How its tensors are called, and that it has them: InvalidArgument.
  absl::Status HasExpert(size_t layer, size_t expert) const;
  // By its name in the files; NotFound when no file has it.
  absl::StatusOr<MappedTensor> Map(const std::string& name) const;

  // Tells the kernel that an expert's bytes will be read soon; it reads them in
  // the background. Does nothing when the model has no such expert.
  void PrefetchExpert(size_t layer, size_t expert) const;

  // Bytes in the files, scales and zero points included: of one expert in one
  // layer (0 in a dense one), of everything but experts, of all that is needed.
  uint64_t expert_bytes(size_t layer, size_t expert) const {
    return expert_bytes_.at(layer * config_.num_experts + expert);
  }
  uint64_t router_bytes() const { return router_bytes_; }
  uint64_t total_bytes() const { return total_bytes_; }

  // How the files store a tensor of the model.
  struct Storage {
    WeightFormat format = WeightFormat::kF32;
    size_t group_size = 0;   // 0 for floats
    uint64_t num_bytes = 0;  // scales and zero points included
  };
  Storage StorageOf(const TensorSpec& spec) const;

  // Everything that is stored of a tensor: itself, and what belongs to it if it
  // is quantised. As long as the checkpoint is there.
  struct StoredPart {
    const SafetensorsFile* file = nullptr;
    const TensorInfo* tensor = nullptr;
  };
  absl::StatusOr<std::vector<StoredPart>> StoredParts(
      const std::string& name) const;

  // Digest (32 hex digits) of the config's fingerprint and of the name, shape
  // and dtype of every needed tensor; the contents do not matter.
  const std::string& fingerprint() const { return fingerprint_; }

  // Digest (32 hex digits) of an expert's bytes: gate, up and down projection
  // with their format and shape, in one layer or in all MoE layers. Reads all
  // of them.
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

  // Where a tensor is and how it is stored.
  struct Parts {
    Storage storage;
    std::vector<size_t> shape;        // [n, k] also where numbers share bytes
    Location numbers, scales, zeros;  // without tensor: none
  };

  absl::Status OpenFiles();
  absl::Status OpenFile(const std::string& path,
                        const std::vector<std::string>* wanted);
  absl::Status OpenShards(const std::string& index_path);
  // "FILE: tensor NAME: "
  std::string Who(const Location& location) const;
  absl::StatusOr<Location> FindTensor(const std::string& name) const;
  absl::StatusOr<Parts> FindParts(const std::string& name) const;
  absl::Status FindQuantization(const std::string& name, Parts& parts) const;
  absl::StatusOr<Parts> CheckTensor(const TensorSpec& spec) const;
  absl::Status CheckTensors();
  absl::Status CheckGateAndUp() const;
  absl::Status CheckExperts(const Checkpoint& model);
  void WarnOfOthers(const std::unordered_set<std::string>& needed);

  std::string model_dir_;
  ModelConfig config_;
  bool only_experts_ = false;  // see OpenExperts
  std::vector<ExpertOfLayer> experts_;
  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string, Location> tensors_;
  std::vector<uint64_t> expert_bytes_;  // [num_layers * num_experts]
  uint64_t router_bytes_ = 0;
  uint64_t total_bytes_ = 0;
  std::string fingerprint_;
  std::vector<std::string> warnings_;
};

// The digest that ExpertContentHash gives, of an expert that is mapped already.
std::string ExpertContentHashOf(const MappedTensor& gate,
                                const MappedTensor& up,
                                const MappedTensor& down);

}  // namespace troupe

#endif  // TROUPE_MODEL_CHECKPOINT_H_
