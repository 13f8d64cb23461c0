// The tokens of a request inside the router.
#ifndef TROUPE_ROUTER_SERVICE_SCHEDULER_SEQUENCE_H_
#define TROUPE_ROUTER_SERVICE_SCHEDULER_SEQUENCE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cluster/fallback_policy.h"
#include "cluster/model_snapshot.h"
#include "common/clock.h"
#include "protos/cluster.pb.h"
#include "router_service/engine/sampler.h"
#include "router_service/kv_cache/block_manager.h"

namespace troupe {

// An output token (or, with prompt_logprobs, a prompt token).
struct SequenceToken {
  int32_t token_id = 0;
  bool has_logprob = false;
  LogprobResult logprob;
};

enum class Finish { kNot, kStop, kLength };

// What happened to a sequence in a step. After `finish` or an error nothing
// follows.
struct SequenceEvent {
  std::vector<SequenceToken> prompt;  // once, before the first token
  std::vector<SequenceToken> tokens;
  Finish finish = Finish::kNot;
  absl::Status status;
  uint32_t preemptions = 0;
  double queue_ms = 0.0;
  size_t cached_tokens = 0;  // of the prompt, at the first step
  // With the first event, the last one, and when it had to leave versions:
  // ModelSnapshot::Name of what the sequence began with, and how many it left.
  std::string snapshot;
  size_t experts_moved_version = 0;
  v1::CopyUsage copies;  // so far
};

struct SequenceRequest {
  std::string request_id;
  std::vector<int32_t> tokens;  // prompt, then tokens of earlier attempts
  size_t prompt_length = 0;
  size_t max_tokens = 0;  // output tokens, those of earlier attempts included
  size_t min_tokens = 0;
  std::vector<int32_t> stop_token_ids;
  SamplingOptions sampling;
  bool logprobs = false;
  size_t top_logprobs = 0;
  bool prompt_logprobs = false;
  std::string cache_salt;  // only equal ones share cached prefixes
  // ModelSnapshot::Name of an earlier attempt; empty: there was none.
  std::string snapshot;
  FallbackPolicy fallback = FallbackPolicy::Exact();
  SteadyTime deadline = kNoDeadline;
  // Called from the serving loop; must not block. The last call carries
  // finish or an error.
  std::function<void(SequenceEvent event)> on_event;
};

// Owned by the scheduler.
struct Sequence {
  uint64_t seq_id = 0;
  SequenceRequest request;
  std::vector<int32_t> tokens;  // prompt and output
  size_t num_computed = 0;      // tokens whose keys and values are cached
  std::vector<int32_t> block_table;
  PrefixKey prefix;
  // What it is pinned to. Null: the model has no experts, or it has to wait.
  SnapshotPtr snapshot;
  bool can_start = true;
  uint64_t pinned_epoch = 0;  // of the placement; before it has started
  bool is_canary = false;
  std::string first_snapshot;  // of its first step: the name
  bool snapshot_is_news = false;
  size_t experts_moved_version = 0;
  v1::CopyUsage copies;      // of committed steps
  size_t cached_tokens = 0;  // of the prompt, found at the first step
  // [prompt_length], with prompt_logprobs; the first has none.
  std::vector<SequenceToken> prompt_tokens;
  bool prompt_reported = false;
  bool cancelled = false;
  uint32_t preemptions = 0;
  SteadyTime arrived;
  SteadyTime started = kNoDeadline;  // first step

  size_t prompt_length() const { return request.prompt_length; }
  size_t num_output() const { return tokens.size() - prompt_length(); }
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_SCHEDULER_SEQUENCE_H_
