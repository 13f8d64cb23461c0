// Continuous batching: the loop that turns requests into tokens.
#ifndef TROUPE_ROUTER_SERVICE_SERVING_LOOP_H_
#define TROUPE_ROUTER_SERVICE_SERVING_LOOP_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "cluster/collapse_detector.h"
#include "cluster/load_tracker.h"
#include "common/clock.h"
#include "common/thread_pool.h"
#include "protos/cluster.pb.h"
#include "router_service/copy_accounts.h"
#include "router_service/dispatch/token_dispatcher.h"
#include "router_service/engine/model_runner.h"
#include "router_service/loop_histograms.h"
#include "router_service/scheduler/scheduler.h"

namespace troupe {

struct ServingLoopOptions {
  SchedulerOptions scheduler;
  size_t num_kv_blocks = 0;
  size_t max_queued_sequences = 256;   // that wait; more are refused
  double load_half_life_seconds = 30;  // of LayerLoad.recent_...
  CollapseOptions collapse;
};

// One thread that repeats: take news, schedule, run, sample, commit. Does not
// own runner, dispatcher and pool, which are the loop's alone while it lives.
// Thread-safe.
class ServingLoop {
 public:
  // `dispatcher` is null for a dense model.
  ServingLoop(ServingLoopOptions options, ModelRunner& runner,
              TokenDispatcher* dispatcher, ThreadPool& pool);
  // Ends what runs with Unavailable.
  ~ServingLoop();
  ServingLoop(const ServingLoop&) = delete;
  ServingLoop& operator=(const ServingLoop&) = delete;

  // Takes a valid request (tokens in the vocabulary, prompt and max_tokens
  // within max_context()). Returns its id. ResourceExhausted: the queue is
  // full; Unavailable: draining.
  absl::StatusOr<uint64_t> Submit(SequenceRequest request);
  // Frees the sequence's blocks and its work within a step; its last event is
  // Cancelled. No effect when it has ended.
  void Cancel(uint64_t seq_id);

  // From here on Submit is refused.
  void StartDraining();
  // Waits until no sequence is left, at most for `limit`.
  bool WaitUntilIdle(milliseconds limit);

  // Sequences that run or wait.
  size_t num_sequences() const;
  // Changes with every step and every MoE layer that is computed: whoever sees
  // it stand still while there are sequences sees a loop that is stuck.
  uint64_t progress() const { return progress_; }
  // Of the KV cache, as of the last step.
  uint32_t num_kv_blocks() const { return num_kv_blocks_; }
  uint32_t num_free_kv_blocks() const { return num_free_kv_blocks_; }

  // Longest context in tokens: that of the model, or what the KV cache holds.
  size_t max_context() const { return max_context_; }

  const LoopHistograms& histograms() const { return histograms_; }
  // Null for a dense model.
  const HopHistograms* hop_histograms() const {
    return dispatcher_ == nullptr ? nullptr : &dispatcher_->histograms();
  }

  // Fills in the counters.
  void GetStats(v1::RouterStats& stats) const;

  // Looks at all sequences and KV blocks between two steps, and calls `done`
  // from the loop's thread: with the first invariant that does not hold, or
  // Unavailable when the loop ends.
  using IntegrityCallback = std::function<void(const absl::Status&)>;
  void CheckBetweenSteps(IntegrityCallback done);

 private:
  void Run();
  // Moves submissions and cancellations into the scheduler.
  void TakeNews();
  void Step(const std::vector<Chunk>& chunks);
  Batch MakeBatch(const std::vector<Chunk>& chunks) const;
  // Samples, reports, and removes what has finished.
  void Commit(const std::vector<Chunk>& chunks, const Batch& batch,
              ConstFloatMatrix logits);
  // Ends sequences that were cancelled or whose deadline has passed;
  // `waits_for` is what the step was waiting for, if it was.
  void EndOverdue(const std::string& waits_for);
  void End(Sequence* sequence, SequenceEvent event);
  bool AnyOverdue();
  // Whether a step that began at `start` and waits is to end without a result.
  bool IsToBreakOff(const std::vector<Chunk>& chunks,
                    TokenDispatcher::WaitingFor what, SteadyTime start);
  void PublishStats();
  void Begin(SteadyTime now, Sequence& sequence);
  // Gives sequences that have not started yet the snapshot that is current.
  void PinWaiting();
  void Pin(const Placement& placement, Sequence& sequence);
  // What the rows of a step are pinned to.
  void SetSnapshots(const std::vector<Chunk>& chunks);
  // Versions that were gone in the step: their sequences go on with others.
  void TakeMoves(const std::vector<Chunk>& chunks);
  void CountSnapshots(v1::RouterStats& stats);
  void SetPolicies(const std::vector<Chunk>& chunks);
  // While an expert has no replica: sequences that may do without go on.
  void LeaveOutBlocked(std::vector<Chunk>& chunks);
  // Whether exact sequences of the step keep some other one from going on.
  bool IsBlocking(const std::vector<Chunk>& chunks);
  // Counts a step that was committed; warns of collapsed layers.
  void CountLoad();
  void CheckIntegrity();
  void AnswerChecks(bool stop);

  const ServingLoopOptions options_;
  ModelRunner& runner_;
  TokenDispatcher* const dispatcher_;
  ThreadPool& pool_;
  const size_t max_context_;

  // The loop's own.
  Scheduler scheduler_;
  std::string unknown_expert_;  // why no sequence can start; empty: they can
  v1::RouterStats totals_;
  // [layer][expert], of all steps and of the one that runs.
  std::vector<std::vector<uint64_t>> tokens_per_expert_;
  std::vector<std::vector<uint64_t>> step_load_;
  LoadTracker recent_load_;
  CollapseDetector collapse_;
  SteadyTime next_look_;   // for collapsed layers
  SteadyTime next_check_;  // of the scheduler's integrity
  CopyAccounts accounts_;
  std::vector<PolicyRows> policies_;  // of the step
  // What exact sequences wait for without holding up the others, since that
  // epoch of the placement; empty: nothing.
  std::string blocked_by_;
  uint64_t blocked_epoch_ = 0;
  std::atomic<uint64_t> progress_{0};
  std::atomic<uint32_t> num_kv_blocks_{0};
  std::atomic<uint32_t> num_free_kv_blocks_{0};
  LoopHistograms histograms_;

  mutable absl::Mutex mu_;
  std::vector<std::unique_ptr<Sequence>> submitted_ ABSL_GUARDED_BY(mu_);
  std::vector<uint64_t> cancelled_ ABSL_GUARDED_BY(mu_);
  std::vector<IntegrityCallback> checks_ ABSL_GUARDED_BY(mu_);
  size_t num_sequences_ ABSL_GUARDED_BY(mu_) = 0;  // submitted and not ended
  size_t num_running_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t last_seq_id_ ABSL_GUARDED_BY(mu_) = 0;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  v1::RouterStats published_ ABSL_GUARDED_BY(mu_);
  std::vector<std::vector<uint64_t>> published_load_ ABSL_GUARDED_BY(mu_);
  CopyAccounts::ByExpert published_copies_ ABSL_GUARDED_BY(mu_);
  LoadTracker published_recent_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_SERVING_LOOP_H_
