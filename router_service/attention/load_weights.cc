#include "router_service/attention/load_weights.h"

#include "common/status_macros.h"

namespace troupe {

absl::StatusOr<PackedMatrix> LoadMatrix(const Checkpoint& checkpoint,
                                        size_t layer, LayerTensor which,
                                        ThreadPool& pool) {
  ABSL_ASSIGN_OR_RETURN(const MappedTensor tensor,
                        checkpoint.MapLayer(layer, which));
  return PackedMatrix::Pack(tensor.matrix(), pool);
}

absl::StatusOr<std::vector<float>> LoadVector(const Checkpoint& checkpoint,
                                              size_t layer, LayerTensor which) {
  std::vector<float> vector;
  if (!HasTensor(checkpoint.config(), layer, which)) return vector;
  ABSL_ASSIGN_OR_RETURN(const MappedTensor tensor,
                        checkpoint.MapLayer(layer, which));
  vector.resize(tensor.num_elements());
  CopyToFloat(tensor, vector.data());
  return vector;
}

}  // namespace troupe
