// From tensors of the checkpoint to what kernels read.
#ifndef TROUPE_ROUTER_SERVICE_ATTENTION_LOAD_WEIGHTS_H_
#define TROUPE_ROUTER_SERVICE_ATTENTION_LOAD_WEIGHTS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "common/thread_pool.h"
#include "kernels/packed_matrix.h"
#include "model/checkpoint.h"

namespace troupe {

// A matrix of a layer, packed; its own format is kept.
absl::StatusOr<PackedMatrix> LoadMatrix(const Checkpoint& checkpoint,
                                        size_t layer, LayerTensor which,
                                        ThreadPool& pool);

// A vector of a layer as float; empty when the model does not have it.
absl::StatusOr<std::vector<float>> LoadVector(const Checkpoint& checkpoint,
                                              size_t layer, LayerTensor which);

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_ATTENTION_LOAD_WEIGHTS_H_
