// Merges the batches of several routers into grouped GEMMs.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_BATCHER_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_BATCHER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "cluster/busy_meter.h"
#include "common/clock.h"
#include "common/rpc/doorbell.h"
#include "expert_service/batcher_histograms.h"
#include "expert_service/expert_backend.h"
#include "expert_service/expert_call.h"
#include "kernels/workspace.h"
#include "protos/cluster.pb.h"

namespace troupe {

class ExpertBatcher;

// Where the batcher's own thread looks for batches before it chooses what to
// compute: rings of shared memory. Whoever puts one there rings the batcher's
// bell, so that a batch wakes one thread and no other.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // Submits what has come. From the batcher's thread alone.
  virtual void Poll(ExpertBatcher& batcher) = 0;
};

// A bounded queue and the thread that empties it. Takes the layer of the
// oldest batch and all waiting batches of that layer, computes them as one
// grouped GEMM, answers each. A row's bits do not depend on what it was merged
// with. Does not own backend and source; computing is the batcher's alone.
// Thread-safe, except RunOne.
class ExpertBatcher {
 public:
  enum class Thread { kOwn, kCallers };
  // capacity_rows: routed copies that may wait. `bell` null: one of its own;
  // `source` null: batches come by Submit alone. Thread::kCallers: no thread
  // empties the queue, but who calls RunOne.
  ExpertBatcher(ExpertBackend& backend, uint64_t capacity_rows,
                std::shared_ptr<Doorbell> bell = nullptr,
                BatchSource* source = nullptr, Thread thread = Thread::kOwn);
  // Computes what is queued, then ends.
  ~ExpertBatcher();

  // Whether a batch fits the model: InvalidArgument names the field. Everything
  // that Submit relies on. A batch that does not say which versions it wants
  // must ask for experts of which there is one here.
  absl::Status Validate(const ExpertBatch& batch, uint64_t payload_bytes) const;
  FrameLimits limits() const { return limits_; }

  // The call's batch must be valid. Refused when there is no room, when
  // draining, or when a version that it wants is not here. With room for some
  // of its copies those with the highest priorities are computed, the others
  // refused.
  void Submit(ExpertCall* call);

  // Computes and answers the batches of one layer; false: none waits. For
  // Thread::kCallers, one thread at a time.
  bool RunOne();
  bool has_own_thread() const { return thread_.joinable(); }

  // From here on every new batch is answered kDraining.
  void StartDraining();
  // Waits until nothing is queued or running, at most for `limit`.
  bool WaitUntilIdle(milliseconds limit);

  const BatcherHistograms& histograms() const { return histograms_; }
  // Fills in the counters.
  void GetStats(v1::ExpertStats& stats) const;
  // Whether the rows that are counted are those that wait.
  absl::Status CheckIntegrity() const;
  uint64_t capacity_rows() const { return capacity_rows_; }

 private:
  struct Waiting {
    ExpertCall* call = nullptr;
    // What was here when it came; has all that the batch asks for.
    std::shared_ptr<const ExpertSet> experts;
    SteadyTime arrived;
    SteadyTime deadline;
    char* output = nullptr;  // reserved
    size_t first_token = 0;  // in the merged input
    size_t next_expert = 0;
    size_t next_copy = 0;
    uint64_t rows() const { return call->batch.num_copies(); }
  };
  // One version of one expert, as frames name it; ascending.
  struct Group {
    uint32_t expert;
    uint64_t version;
    const LoadedExpert* loaded;
    bool operator<(const Group& other) const {
      return expert != other.expert ? expert < other.expert
                                    : version < other.version;
    }
    bool operator==(const Group& other) const {
      return expert == other.expert && version == other.version;
    }
  };
  // Where an output row of a merged batch belongs.
  struct Origin {
    size_t batch;
    size_t row;
  };

  void Run();
  bool TakeGroup();  // false: nothing waits
  void Compute();
  // Computes batches of one layer, which have reserved their outputs.
  void RunBackend(absl::Span<Waiting> group, size_t num_tokens,
                  size_t num_copies);

  ExpertBackend& backend_;
  const FrameLimits limits_;
  const uint64_t capacity_rows_;
  const SteadyTime start_ = std::chrono::steady_clock::now();
  const std::shared_ptr<Doorbell> bell_;
  BatchSource* const source_;

  // Of the thread; kept, so that nothing is allocated once they have grown.
  Workspace workspace_;
  std::vector<Waiting> group_;
  std::vector<Group> groups_;
  std::vector<const LoadedExpert*> experts_;
  std::vector<uint32_t> offsets_;
  std::vector<uint32_t> row_of_copy_;
  std::vector<Origin> origin_;

  BatcherHistograms histograms_;

  mutable absl::Mutex mu_;
  std::deque<Waiting> queue_ ABSL_GUARDED_BY(mu_);
  uint64_t queued_rows_ ABSL_GUARDED_BY(mu_) = 0;  // those that run included
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool running_ ABSL_GUARDED_BY(mu_) = false;
  v1::ExpertStats stats_ ABSL_GUARDED_BY(mu_);
  BusyMeter busy_meter_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_BATCHER_H_
