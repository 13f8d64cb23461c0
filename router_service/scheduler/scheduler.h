// Which sequences run in the next step, and with how many tokens.
#ifndef TROUPE_ROUTER_SERVICE_SCHEDULER_SCHEDULER_H_
#define TROUPE_ROUTER_SERVICE_SCHEDULER_SCHEDULER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "router_service/kv_cache/block_manager.h"
#include "router_service/scheduler/sequence.h"

namespace troupe {

struct SchedulerOptions {
  size_t max_batch_tokens = 512;  // rows of a step
  size_t max_sequences = 64;      // that run at once
  bool prefix_cache = true;
};

// Tokens [sequence->num_computed, + num_tokens) of a sequence.
struct Chunk {
  Sequence* sequence = nullptr;
  size_t num_tokens = 0;
};

// Owns all sequences. First come, first served: those that run get their next
// token or their next piece of prompt first, in order of arrival; what is left
// of the step goes to those that wait. When KV blocks run out, the latest
// arrival among the running ones gives up its blocks and waits, first in line,
// for a later step; what of its keys and values is not cached any more is
// computed again, with the same bits.
//
// A sequence starts behind the prefix that is cached. While another one
// computes the very block that it needs next, it waits for the next step, and
// those behind it wait with it. What was computed by one snapshot of the model
// is never found by a sequence of another.
//
// Not thread-safe: the serving loop's.
class Scheduler {
 public:
  // Copies keys and values of all layers from one block to another.
  using CopyBlock = std::function<void(int32_t from, int32_t to)>;

  Scheduler(SchedulerOptions options, size_t num_blocks, CopyBlock copy_block);

  void Add(std::unique_ptr<Sequence> sequence);
  // Null when it is not (or no longer) here.
  Sequence* Find(uint64_t seq_id);

  // Reserves blocks and fixes the next step; empty when nothing can run. A
  // sequence alone always fits: the caller admits none that needs more than
  // num_blocks.
  std::vector<Chunk> Schedule();

  // The step was computed: num_computed and the cached prefixes move on.
  // Before the sequences get their new tokens.
  void Commit(const std::vector<Chunk>& chunks);

  // Frees the blocks of a sequence and hands it over.
  std::unique_ptr<Sequence> Remove(Sequence* sequence);

  // All of them, running first.
  std::vector<Sequence*> Sequences();
  // That have never run, next one first; those that were preempted are left
  // out.
  std::vector<Sequence*> NotStarted();
  size_t num_running() const { return running_.size(); }
  size_t num_waiting() const { return waiting_.size(); }
  // Those that are cached included.
  size_t num_free_blocks() const { return blocks_.num_free(); }
  size_t num_cached_blocks() const { return blocks_.num_cached(); }
  size_t num_blocks() const { return blocks_.num_blocks(); }
  uint64_t num_preemptions() const { return num_preemptions_; }
  const PrefixCacheStats& cache_stats() const { return blocks_.stats(); }
  // Tokens that sequences had at their first step, and those of them that were
  // cached.
  uint64_t num_lookup_tokens() const { return num_lookup_tokens_; }
  uint64_t num_hit_tokens() const { return num_hit_tokens_; }

  // Blocks and tables agree; waiting sequences hold none.
  absl::Status CheckIntegrity() const;

 private:
  // Blocks for num_computed + num_tokens; preempts later arrivals if it must.
  // False when `sequence` itself had to give up.
  bool Reserve(Sequence* sequence, size_t num_tokens);
  void PreemptLast();
  // Whether a chunk of this step computes the block that follows `hit`.
  bool IsComing(Sequence* sequence, const PrefixHit& hit, size_t limit,
                const std::vector<Chunk>& chunks);

  const SchedulerOptions options_;
  BlockManager blocks_;
  std::list<std::unique_ptr<Sequence>> running_;  // by arrival
  std::list<std::unique_ptr<Sequence>> waiting_;  // next one first
  uint64_t num_preemptions_ = 0;
  uint64_t num_lookup_tokens_ = 0;
  uint64_t num_hit_tokens_ = 0;
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_SCHEDULER_SCHEDULER_H_
