// Writes tiny random checkpoints of every family, and broken ones.
#ifndef TROUPE_TESTS_FAKES_CHECKPOINT_BUILDER_H_
#define TROUPE_TESTS_FAKES_CHECKPOINT_BUILDER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/stored_matrix.h"
#include "model/config.h"
#include "model/safetensors.h"

namespace troupe {

inline constexpr Architecture kAllArchitectures[] = {
    Architecture::kLlama, Architecture::kMixtral, Architecture::kQwen2Moe,
    Architecture::kQwen3Moe, Architecture::kOlmoe};

// A few kilobytes, with the options of the family switched on: biases, windows,
// norms, dense layers between MoE layers. No two dimensions are equal by
// accident, so that a transposed matrix does not fit. Vocabulary of 264: the
// bytes and 8 more.
ModelConfig TinyConfig(Architecture architecture,
                       DataType dtype = DataType::kF32);

// All tensors of a config with random contents, to be edited before they are
// written. Not thread-safe.
class CheckpointBuilder {
 public:
  struct Tensor {
    TensorInfo info;  // offset and num_bytes are not used
    std::string bytes;
  };

  // The contents depend on the seed and each tensor's name alone: matrices
  // uniform with variance 1 / columns, norms around 1, biases around 0.
  explicit CheckpointBuilder(const ModelConfig& config, uint64_t seed = 1);

  const ModelConfig& config() const { return config_; }
  ModelConfig& config() { return config_; }
  std::vector<Tensor>& tensors() { return tensors_; }
  // CHECKs that it is there.
  Tensor& Find(const std::string& name);
  void Remove(const std::string& name);
  // Replaces a matrix by numbers, scales and zero points.
  void Quantize(const std::string& name, WeightFormat format,
                size_t group_size);
  // An I64 vector that no model needs, before all others.
  void AddExtra(const std::string& name, size_t num_elements);

  // Writes config.json, generation_config.json and the weights: as
  // model.safetensors, or with num_shards > 1 dealt out tensor by tensor to
  // model-0000i-of-0000n.safetensors with an index. Returns the names of the
  // files with weights.
  std::vector<std::string> Write(const std::string& dir,
                                 size_t num_shards = 1) const;

 private:
  ModelConfig config_;
  std::vector<Tensor> tensors_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_CHECKPOINT_BUILDER_H_
