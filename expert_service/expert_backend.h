// What computes the experts of a process.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_BACKEND_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "cluster/expert_frame.h"
#include "common/views.h"
#include "expert_service/expert_set.h"

namespace troupe {

// Implementations: CpuExpertBackend; an echo, of tools/bench/hop_bench, that
// shows what is left of a hop without its computing. One thread at a time
// computes; any thread may ask for limits and experts.
class ExpertBackend {
 public:
  virtual ~ExpertBackend() = default;

  virtual FrameLimits limits() const = 0;
  // What is here now. A batch is computed with the experts that were here when
  // it came, whatever is loaded and unloaded meanwhile.
  virtual std::shared_ptr<const ExpertSet> experts() const = 0;

  // The routed copies of one layer.
  // hidden_states [num_tokens, hidden_size]
  // row_of_copy   [num_copies]: the token of each copy
  // expert_offsets[experts.size() + 1], half-open: copies expert_offsets[e] ..
  //               expert_offsets[e + 1] go to experts[e]; from 0 to num_copies
  // experts       not null, of a set of experts() that the caller holds
  // output        [num_copies, hidden_size], in the order of the copies
  // A copy's bits do not depend on the other copies.
  virtual void Compute(size_t layer, ConstFloatMatrix hidden_states,
                       std::span<const uint32_t> row_of_copy,
                       std::span<const uint32_t> expert_offsets,
                       std::span<const LoadedExpert* const> experts,
                       FloatMatrix output) = 0;
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_BACKEND_H_
