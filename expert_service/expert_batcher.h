// Merges the batches of several routers into grouped GEMMs.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_BATCHER_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_BATCHER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/thread_pool.h"
#include "expert_service/expert_store.h"
#include "kernels/workspace.h"
#include "protos/expert.pb.h"

namespace troupe {

// A bounded queue and the thread that empties it. Takes the layer of the
// oldest batch and all waiting batches of that layer, computes them as one
// grouped GEMM, answers each. A row's bits do not depend on what it was merged
// with. Does not own store and pool; the pool is the batcher's alone.
// Thread-safe.
class ExpertBatcher {
 public:
  // Called once per batch, from the batcher's thread or before Submit returns.
  using OutputCallback = std::function<void(v1::ExpertOutput output)>;

  // capacity_rows: routed copies that may wait.
  ExpertBatcher(const ExpertStore& store, uint64_t capacity_rows,
                ThreadPool& pool);
  // Computes what is queued, then ends.
  ~ExpertBatcher();

  // Whether the frame fits the model and the experts that are here:
  // InvalidArgument names the field. Everything that Submit relies on.
  absl::Status Validate(const v1::ExpertBatch& batch) const;

  // The batch must be valid. Refused when there is no room, or when draining.
  void Submit(v1::ExpertBatch batch, OutputCallback done);

  // From here on every new batch is answered VERDICT_DRAINING.
  void StartDraining();
  // Waits until nothing is queued or running, at most for `limit`.
  bool WaitUntilIdle(milliseconds limit);

  // Fills in the counters.
  void GetStats(v1::ExpertStats& stats) const;
  uint64_t capacity_rows() const { return capacity_rows_; }

 private:
  struct Waiting {
    v1::ExpertBatch batch;
    OutputCallback done;
    SteadyTime arrived;
    SteadyTime deadline;
    uint64_t rows = 0;
  };

  void Run();
  void Compute(std::vector<Waiting>& group);

  const ExpertStore& store_;
  const uint64_t capacity_rows_;
  ThreadPool& pool_;
  Workspace workspace_;  // of the thread

  mutable absl::Mutex mu_;
  std::deque<Waiting> queue_ ABSL_GUARDED_BY(mu_);
  uint64_t queued_rows_ ABSL_GUARDED_BY(mu_) = 0;  // those that run included
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool running_ ABSL_GUARDED_BY(mu_) = false;
  v1::ExpertStats stats_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_BATCHER_H_
