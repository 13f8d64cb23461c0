// Files that hold experts alone, out of a CheckpointBuilder.
#ifndef TROUPE_TESTS_FAKES_EXPERT_FILE_H_
#define TROUPE_TESTS_FAKES_EXPERT_FILE_H_

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "model/safetensors_writer.h"
#include "model/tensor_catalog.h"
#include "tests/fakes/checkpoint_builder.h"

namespace troupe {

using BuiltTensors = std::vector<CheckpointBuilder::Tensor>;

inline void WriteTensorFile(
    const std::string& path, const BuiltTensors& tensors,
    const std::map<std::string, std::string>& metadata = {}) {
  std::vector<TensorInfo> infos;
  for (const auto& tensor : tensors) infos.push_back(tensor.info);
  SafetensorsWriter writer = *SafetensorsWriter::Create(path, infos, metadata);
  for (const auto& tensor : tensors) {
    CHECK(writer.Append(tensor.bytes.data(), tensor.bytes.size()).ok());
  }
  CHECK(writer.Finish().ok());
}

// The tensors of the experts that are wanted; everything that the builder has
// of them, scales included.
inline BuiltTensors ExpertTensors(
    CheckpointBuilder& builder,
    const std::function<bool(size_t layer, size_t expert)>& wanted) {
  BuiltTensors tensors;
  const ModelConfig& config = builder.config();
  for (size_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.is_moe_layer[layer]) continue;
    for (size_t e = 0; e < config.num_experts; ++e) {
      if (!wanted(layer, e)) continue;
      for (const ExpertTensor which : kExpertTensors) {
        const std::string name = SpecOf(config, layer, e, which).name;
        for (const auto& tensor : builder.tensors()) {
          if (tensor.info.name == name ||
              tensor.info.name == name + kScaleSuffix ||
              tensor.info.name == name + kZeroPointSuffix) {
            tensors.push_back(tensor);
          }
        }
      }
    }
  }
  return tensors;
}

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_EXPERT_FILE_H_
