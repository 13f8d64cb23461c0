#include "router_service/serving_loop.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "common/logging.h"

namespace troupe {
namespace {

double Seconds(SteadyTime::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// How long a step may wait for peers that do not answer while a sequence is
// overdue and another is not.
constexpr milliseconds kPatienceWithSlowPeers(2000);

SteadyTime Now() { return std::chrono::steady_clock::now(); }

double QueueMs(const Sequence& sequence) {
  const SteadyTime started =
      sequence.started == kNoDeadline ? Now() : sequence.started;
  return 1e3 * Seconds(started - sequence.arrived);
}

}  // namespace

ServingLoop::ServingLoop(ServingLoopOptions options, ModelRunner& runner,
                         TokenDispatcher* dispatcher, ThreadPool& pool)
    : options_(options),
      runner_(runner),
      dispatcher_(dispatcher),
      pool_(pool),
      max_context_(std::min(runner.config().max_position_embeddings,
                            options.num_kv_blocks * kKvBlockSize)),
      scheduler_(options.scheduler, options.num_kv_blocks,
                 [this](int32_t from, int32_t to) {
                   runner_.kv().CopyBlock(static_cast<size_t>(from),
                                          static_cast<size_t>(to));
                 }),
      tokens_per_expert_(runner.config().num_layers,
                         std::vector<uint64_t>(runner.config().num_experts, 0)),
      step_load_(tokens_per_expert_) {
  if (dispatcher != nullptr) weights_version_ = dispatcher->weights_version();
  runner_.set_routing_observer(
      [this](size_t layer, const RoutingDecision& decision) {
        ++progress_;
        for (const int32_t expert : decision.topk_idx) {
          if (expert >= 0) {
            ++step_load_[layer][static_cast<size_t>(expert)];
          }
        }
      });
  PublishStats();
  thread_ = std::thread([this] { Run(); });
}

ServingLoop::~ServingLoop() {
  {
    absl::MutexLock lock(&mu_);
    draining_ = true;
    stopping_ = true;
  }
  thread_.join();
  runner_.set_routing_observer(nullptr);
}

absl::StatusOr<uint64_t> ServingLoop::Submit(SequenceRequest request) {
  CHECK(request.prompt_length >= 1);
  CHECK_LE(request.prompt_length, request.tokens.size());
  CHECK_LE(request.prompt_length + request.max_tokens, max_context_);
  auto sequence = std::make_unique<Sequence>();
  sequence->tokens = request.tokens;
  sequence->request = std::move(request);
  sequence->arrived = Now();
  if (sequence->request.prompt_logprobs) {
    sequence->prompt_tokens.resize(sequence->prompt_length());
    for (size_t i = 0; i < sequence->prompt_length(); ++i) {
      sequence->prompt_tokens[i].token_id = sequence->tokens[i];
    }
  }
  absl::MutexLock lock(&mu_);
  if (draining_) return absl::UnavailableError("the router is draining");
  const size_t waiting =
      num_sequences_ - std::min(num_sequences_, num_running_);
  if (waiting >= options_.max_queued_sequences) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", waiting, " sequences wait"));
  }
  const uint64_t seq_id = ++last_seq_id_;
  sequence->seq_id = seq_id;
  submitted_.push_back(std::move(sequence));
  ++num_sequences_;
  return seq_id;
}

void ServingLoop::Cancel(uint64_t seq_id) {
  absl::MutexLock lock(&mu_);
  cancelled_.push_back(seq_id);
}

void ServingLoop::StartDraining() {
  absl::MutexLock lock(&mu_);
  draining_ = true;
}

size_t ServingLoop::num_sequences() const {
  absl::MutexLock lock(&mu_);
  return num_sequences_;
}

bool ServingLoop::WaitUntilIdle(milliseconds limit) {
  absl::MutexLock lock(&mu_);
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return num_sequences_ == 0;
  };
  return mu_.AwaitWithTimeout(absl::Condition(&idle), absl::FromChrono(limit));
}

void ServingLoop::GetStats(v1::RouterStats& stats) const {
  absl::MutexLock lock(&mu_);
  stats.MergeFrom(published_);
  for (size_t layer = 0; layer < published_load_.size(); ++layer) {
    if (!runner_.config().is_moe_layer[layer]) continue;
    v1::LayerLoad& load = *stats.add_layer_load();
    load.set_layer(static_cast<uint32_t>(layer));
    load.mutable_tokens_per_expert()->Assign(published_load_[layer].begin(),
                                             published_load_[layer].end());
  }
}

void ServingLoop::Run() {
  while (true) {
    bool stop = false;
    {
      absl::MutexLock lock(&mu_);
      // A waiting sequence may only need to see its deadline.
      const auto news = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return stopping_ || !submitted_.empty() || !cancelled_.empty();
      };
      if (scheduler_.num_running() == 0) {
        mu_.AwaitWithTimeout(absl::Condition(&news),
                             scheduler_.num_waiting() == 0
                                 ? absl::InfiniteDuration()
                                 : absl::Milliseconds(1));
      }
      stop = stopping_;
    }
    TakeNews();
    if (stop) {
      for (Sequence* sequence : scheduler_.Sequences()) {
        SequenceEvent event;
        event.status = absl::UnavailableError("the router is shutting down");
        End(sequence, std::move(event));
      }
      return;
    }
    EndOverdue("");
    NoticeWeights();
    const std::vector<Chunk> chunks = scheduler_.Schedule();
    if (!chunks.empty()) Step(chunks);
    PublishStats();
  }
}

void ServingLoop::TakeNews() {
  std::vector<std::unique_ptr<Sequence>> submitted;
  std::vector<uint64_t> cancelled;
  {
    absl::MutexLock lock(&mu_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
  }
  for (auto& sequence : submitted) scheduler_.Add(std::move(sequence));
  for (const uint64_t seq_id : cancelled) {
    if (Sequence* sequence = scheduler_.Find(seq_id)) {
      sequence->cancelled = true;
    }
  }
}

bool ServingLoop::AnyOverdue() {
  TakeNews();
  {
    absl::MutexLock lock(&mu_);
    if (stopping_) return true;
  }
  const SteadyTime now = Now();
  for (const Sequence* sequence : scheduler_.Sequences()) {
    if (sequence->cancelled || sequence->request.deadline <= now) return true;
  }
  return false;
}

// A step whose peers are only slow goes on for those in it that still want
// their token, or requests that come and go would keep it from ever ending.
bool ServingLoop::IsToBreakOff(const std::vector<Chunk>& chunks,
                               TokenDispatcher::WaitingFor what,
                               SteadyTime start) {
  if (!AnyOverdue()) return false;
  const SteadyTime now = Now();
  if (what == TokenDispatcher::WaitingFor::kReplica ||
      now - start > kPatienceWithSlowPeers) {
    return true;
  }
  return std::all_of(chunks.begin(), chunks.end(), [now](const Chunk& chunk) {
    return chunk.sequence->cancelled || chunk.sequence->request.deadline <= now;
  });
}

void ServingLoop::EndOverdue(const std::string& waits_for) {
  const SteadyTime now = Now();
  for (Sequence* sequence : scheduler_.Sequences()) {
    SequenceEvent event;
    if (sequence->cancelled) {
      event.status = absl::CancelledError("cancelled");
    } else if (sequence->request.deadline <= now) {
      event.status = waits_for.empty()
                         ? absl::DeadlineExceededError(
                               absl::StrCat("deadline passed after ",
                                            sequence->num_output(), " tokens"))
                         : absl::UnavailableError(absl::StrCat(
                               waits_for, " until the request's deadline"));
    } else {
      continue;
    }
    End(sequence, std::move(event));
  }
}

void ServingLoop::End(Sequence* sequence, SequenceEvent event) {
  event.preemptions = sequence->preemptions;
  event.cached_tokens = sequence->cached_tokens;
  event.queue_ms = QueueMs(*sequence);
  const std::unique_ptr<Sequence> ended = scheduler_.Remove(sequence);
  if (ended->request.on_event) ended->request.on_event(std::move(event));
  absl::MutexLock lock(&mu_);
  --num_sequences_;
}

Batch ServingLoop::MakeBatch(const std::vector<Chunk>& chunks) const {
  Batch batch;
  for (const Chunk& chunk : chunks) {
    const Sequence& sequence = *chunk.sequence;
    AttentionSequence rows;
    rows.block_table = sequence.block_table;
    rows.first_row = batch.token_ids.size();
    rows.num_rows = chunk.num_tokens;
    rows.first_position = sequence.num_computed;
    batch.sequences.push_back(rows);
    for (size_t i = 0; i < chunk.num_tokens; ++i) {
      const size_t position = sequence.num_computed + i;
      batch.token_ids.push_back(sequence.tokens[position]);
      batch.positions.push_back(static_cast<int32_t>(position));
      // The logits at a position tell of the token after it.
      const bool is_last = position + 1 == sequence.tokens.size();
      const bool of_prompt = sequence.request.prompt_logprobs &&
                             !sequence.prompt_reported &&
                             position + 1 < sequence.prompt_length();
      if (is_last || of_prompt) batch.logit_rows.push_back(rows.first_row + i);
    }
  }
  return batch;
}

void ServingLoop::Step(const std::vector<Chunk>& chunks) {
  const SteadyTime start = Now();
  for (const Chunk& chunk : chunks) {
    if (chunk.sequence->started == kNoDeadline) chunk.sequence->started = start;
  }
  for (std::vector<uint64_t>& load : step_load_) {
    std::fill(load.begin(), load.end(), 0);
  }
  const Batch batch = MakeBatch(chunks);
  if (dispatcher_ != nullptr) {
    // Of the request that waits longest: after that nobody wants the outputs.
    SteadyTime deadline = SteadyTime::min();
    for (const Chunk& chunk : chunks) {
      deadline = std::max(deadline, chunk.sequence->request.deadline);
    }
    dispatcher_->set_deadline(deadline);
  }
  const absl::StatusOr<ConstFloatMatrix> logits = runner_.Forward(
      batch, dispatcher_, [&](TokenDispatcher::WaitingFor what) {
        return IsToBreakOff(chunks, what, start) ? absl::AbortedError("")
                                                 : absl::OkStatus();
      });
  if (!logits.ok()) {
    // Nothing is committed: those that stay run the same step again.
    totals_.set_step_seconds(totals_.step_seconds() + Seconds(Now() - start));
    EndOverdue(std::string(logits.status().message()));
    return;
  }
  for (size_t layer = 0; layer < step_load_.size(); ++layer) {
    for (size_t expert = 0; expert < step_load_[layer].size(); ++expert) {
      tokens_per_expert_[layer][expert] += step_load_[layer][expert];
    }
  }
  for (const Chunk& chunk : chunks) {
    const bool prefill =
        chunk.sequence->num_computed < chunk.sequence->prompt_length();
    if (prefill) {
      totals_.set_prefill_tokens(totals_.prefill_tokens() + chunk.num_tokens);
    } else {
      totals_.set_decode_tokens(totals_.decode_tokens() + chunk.num_tokens);
    }
  }
  totals_.set_logit_rows(totals_.logit_rows() + logits->rows);
  Commit(chunks, batch, *logits);
  ++progress_;
  totals_.set_steps(totals_.steps() + 1);
  totals_.set_step_seconds(totals_.step_seconds() + Seconds(Now() - start));
}

void ServingLoop::Commit(const std::vector<Chunk>& chunks, const Batch& batch,
                         ConstFloatMatrix logits) {
  // What each wanted row is for.
  struct Task {
    Sequence* sequence;
    size_t position;  // of the row
    SequenceToken token;
  };
  std::vector<Task> tasks;
  size_t chunk = 0;
  for (const size_t row : batch.logit_rows) {
    while (row >= batch.sequences[chunk].first_row + chunks[chunk].num_tokens) {
      ++chunk;
    }
    const AttentionSequence& rows = batch.sequences[chunk];
    tasks.push_back({chunks[chunk].sequence,
                     rows.first_position + (row - rows.first_row),
                     {}});
  }
  pool_.ParallelFor(tasks.size(), [&](size_t i, size_t) {
    Task& task = tasks[i];
    const Sequence& sequence = *task.sequence;
    const SequenceRequest& request = sequence.request;
    const std::span<const float> row(logits.row(i), logits.cols);
    const bool is_new = task.position + 1 == sequence.tokens.size();
    const bool wants_token =
        is_new && sequence.num_output() < request.max_tokens;
    if (is_new && !wants_token) return;
    if (is_new) {
      const std::span<const int32_t> forbidden =
          sequence.num_output() < request.min_tokens
              ? std::span<const int32_t>(request.stop_token_ids)
              : std::span<const int32_t>();
      task.token.token_id =
          SampleToken(row, request.sampling, sequence.tokens,
                      sequence.prompt_length(), forbidden, task.position + 1);
    } else {
      task.token.token_id = sequence.tokens[task.position + 1];
    }
    if (request.logprobs || !is_new) {
      task.token.has_logprob = true;
      task.token.logprob =
          ComputeLogprob(row, task.token.token_id, request.top_logprobs);
    }
  });

  NoticeWeights();  // they may have changed within the step
  scheduler_.Commit(chunks);
  for (Task& task : tasks) {
    Sequence& sequence = *task.sequence;
    if (task.position + 1 < sequence.prompt_length()) {
      sequence.prompt_tokens[task.position + 1] = std::move(task.token);
      continue;
    }
    // The row is the sequence's last.
    SequenceEvent event;
    event.preemptions = sequence.preemptions;
    event.queue_ms = QueueMs(sequence);
    event.cached_tokens = sequence.cached_tokens;
    if (sequence.request.prompt_logprobs && !sequence.prompt_reported) {
      sequence.prompt_reported = true;
      event.prompt = sequence.prompt_tokens;
    }
    if (sequence.num_output() < sequence.request.max_tokens) {
      const int32_t token_id = task.token.token_id;
      sequence.tokens.push_back(token_id);
      event.tokens.push_back(std::move(task.token));
      const std::vector<int32_t>& stops = sequence.request.stop_token_ids;
      if (std::find(stops.begin(), stops.end(), token_id) != stops.end()) {
        event.finish = Finish::kStop;
      }
    }
    if (event.finish == Finish::kNot &&
        sequence.num_output() >= sequence.request.max_tokens) {
      event.finish = Finish::kLength;
    }
    if (event.finish != Finish::kNot) {
      End(&sequence, std::move(event));
    } else if (sequence.request.on_event) {
      sequence.request.on_event(std::move(event));
    }
  }
}

void ServingLoop::PublishStats() {
  v1::RouterStats stats = totals_;
  stats.set_running_sequences(static_cast<uint32_t>(scheduler_.num_running()));
  stats.set_waiting_sequences(static_cast<uint32_t>(scheduler_.num_waiting()));
  stats.set_kv_blocks_total(scheduler_.num_blocks());
  stats.set_kv_blocks_free(scheduler_.num_free_blocks());
  stats.set_kv_blocks_cached(scheduler_.num_cached_blocks());
  stats.set_preemptions(scheduler_.num_preemptions());
  stats.set_prefix_lookup_tokens(scheduler_.num_lookup_tokens());
  stats.set_prefix_hit_tokens(scheduler_.num_hit_tokens());
  const PrefixCacheStats& cache = scheduler_.cache_stats();
  stats.set_prefix_evictions(cache.evictions);
  stats.set_prefix_copies(cache.copies);
  if (dispatcher_ != nullptr) {
    const DispatchStats dispatch = dispatcher_->stats();
    stats.set_copies_dispatched(dispatch.copies_dispatched);
    stats.set_copies_resent(dispatch.copies_resent);
    stats.set_copies_refused(dispatch.copies_refused);
    stats.set_expert_wait_seconds(dispatch.wait_seconds);
    stats.set_hop_seconds(dispatch.hop_seconds);
    stats.set_hops(dispatch.hops);
  }
  if (scheduler_.num_running() + scheduler_.num_waiting() == 0) {
    CheckIntegrity();
  }
  absl::MutexLock lock(&mu_);
  published_ = std::move(stats);
  published_load_ = tokens_per_expert_;
  num_running_ = scheduler_.num_running();
}

void ServingLoop::NoticeWeights() {
  if (dispatcher_ == nullptr) return;
  const uint64_t version = dispatcher_->weights_version();
  if (version == weights_version_) return;
  spdlog::info("experts have other weights: cached prefixes are dropped");
  weights_version_ = version;
  scheduler_.ForgetPrefixes();
}

void ServingLoop::CheckIntegrity() {
  // It walks all blocks: at most a hundredth of the time.
  const SteadyTime start = Now();
  if (start < next_check_) return;
  const absl::Status sound = scheduler_.CheckIntegrity();
  if (!sound.ok()) {
    spdlog::critical("{}", std::string(sound.message()));
    CHECK(sound.ok());
  }
  const SteadyTime end = Now();
  next_check_ = end + 100 * (end - start);
}

}  // namespace troupe
