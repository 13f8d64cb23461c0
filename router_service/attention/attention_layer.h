// The attention block of one layer.
#ifndef TROUPE_ROUTER_SERVICE_ATTENTION_ATTENTION_LAYER_H_
#define TROUPE_ROUTER_SERVICE_ATTENTION_ATTENTION_LAYER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/thread_pool.h"
#include "common/views.h"
#include "kernels/attention.h"
#include "kernels/packed_matrix.h"
#include "kernels/workspace.h"
#include "model/checkpoint.h"

namespace troupe {

// The rows of a step, as attention sees them.
struct AttentionBatch {
  std::span<const int32_t> positions;  // [num_rows]
  std::span<const AttentionSequence> sequences;
};

// Grouped-query attention with rotary positions: projections, optional biases,
// clamp and QK norm, paged attention, output projection. Owns packed weights;
// immutable after Load, any thread may read; the scratch is the caller's.
class AttentionLayer {
 public:
  // Activations between the projections and the output, reused from layer to
  // layer.
  struct Scratch {
    std::vector<float> queries, keys, values, attended;
  };

  static absl::StatusOr<AttentionLayer> Load(const Checkpoint& checkpoint,
                                             size_t layer, ThreadPool& pool);

  // input [num_rows, hidden_size], after the layer's norm; output the same
  // shape, overwritten. cosines, sines [max_position, head_dim / 2]. Writes
  // keys and values of the rows to `cache`.
  void Run(ConstFloatMatrix input, const AttentionBatch& batch,
           ConstFloatMatrix cosines, ConstFloatMatrix sines,
           const KvCacheView& cache, FloatMatrix output, Scratch& scratch,
           Workspace& workspace, ThreadPool& pool) const;

  uint64_t num_bytes() const;

 private:
  ModelConfig config_;
  size_t window_ = 0;
  PackedMatrix q_, k_, v_, o_;
  std::vector<float> q_bias_, k_bias_, v_bias_, o_bias_;  // empty: none
  std::vector<float> q_norm_, k_norm_;
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_ATTENTION_ATTENTION_LAYER_H_
