#include "router_service/serving_loop.h"

#include <algorithm>
#include <cstring>
#include <map>
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

// Between two looks for collapsed layers.
constexpr milliseconds kLookForCollapse(1000);

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
      step_load_(tokens_per_expert_),
      recent_load_(runner.config().num_layers, runner.config().num_experts,
                   options.load_half_life_seconds, Now()),
      collapse_(options.collapse, runner.config().num_layers,
                runner.config().top_k),
      accounts_(runner.config()),
      published_recent_(recent_load_) {
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
  const SteadyTime now = Now();
  stats.set_load_half_life_seconds(published_recent_.half_life_seconds());
  for (size_t layer = 0; layer < published_load_.size(); ++layer) {
    if (!runner_.config().is_moe_layer[layer]) continue;
    v1::LayerLoad& load = *stats.add_layer_load();
    load.set_layer(static_cast<uint32_t>(layer));
    load.mutable_tokens_per_expert()->Assign(published_load_[layer].begin(),
                                             published_load_[layer].end());
    CopyAccounts::Fill(published_copies_, load);
    const RecentLoad recent = published_recent_.Recent(layer, now);
    load.mutable_recent_tokens_per_expert()->Assign(
        recent.tokens_per_expert.begin(), recent.tokens_per_expert.end());
    load.mutable_recent_active_steps_per_expert()->Assign(
        recent.active_steps_per_expert.begin(),
        recent.active_steps_per_expert.end());
    load.set_recent_steps(recent.steps);
  }
}

void ServingLoop::Run() {
  while (true) {
    bool stop = false;
    {
      absl::MutexLock lock(&mu_);
      // A waiting sequence may only need to see its deadline.
      const auto news = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return stopping_ || !submitted_.empty() || !cancelled_.empty() ||
               !checks_.empty();
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
      AnswerChecks(stop);
      return;
    }
    PinWaiting();
    EndOverdue("");
    AnswerChecks(stop);
    std::vector<Chunk> chunks = scheduler_.Schedule();
    LeaveOutBlocked(chunks);
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
  if (what == TokenDispatcher::WaitingFor::kReplica) {
    TakeNews();  // it may be somebody new who can do without
    if (IsBlocking(chunks)) return true;
  }
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
      const bool is_blocked =
          waits_for.empty() && sequence->request.fallback.is_exact();
      const std::string& reason = !sequence->can_start ? unknown_expert_
                                  : is_blocked         ? blocked_by_
                                                       : waits_for;
      event.status = reason.empty()
                         ? absl::DeadlineExceededError(
                               absl::StrCat("deadline passed after ",
                                            sequence->num_output(), " tokens"))
                         : absl::UnavailableError(absl::StrCat(
                               reason, " until the request's deadline"));
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
  event.snapshot = sequence->first_snapshot;
  event.experts_moved_version = sequence->experts_moved_version;
  event.copies = sequence->copies;
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
    if (chunk.sequence->started == kNoDeadline) Begin(start, *chunk.sequence);
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
    SetSnapshots(chunks);
    SetPolicies(chunks);
  }
  const absl::StatusOr<ConstFloatMatrix> logits = runner_.Forward(
      batch, dispatcher_, [&](TokenDispatcher::WaitingFor what) {
        return IsToBreakOff(chunks, what, start) ? absl::AbortedError("")
                                                 : absl::OkStatus();
      });
  if (!logits.ok()) {
    // Nothing is committed: those that stay run the same step again.
    totals_.set_step_seconds(totals_.step_seconds() + Seconds(Now() - start));
    if (dispatcher_ != nullptr) dispatcher_->set_snapshots({});
    const std::string waits_for(logits.status().message());
    if (IsBlocking(chunks)) {
      blocked_by_ = waits_for;
      blocked_epoch_ = dispatcher_->placement()->epoch();
    }
    EndOverdue(waits_for);
    return;
  }
  CountLoad();
  size_t step_tokens = 0;
  for (const Chunk& chunk : chunks) {
    step_tokens += chunk.num_tokens;
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
  const double seconds = Seconds(Now() - start);
  totals_.set_steps(totals_.steps() + 1);
  totals_.set_step_seconds(totals_.step_seconds() + seconds);
  histograms_.step_seconds.Observe(seconds);
  histograms_.step_tokens.Observe(static_cast<double>(step_tokens));
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

  TakeMoves(chunks);
  accounts_.Add(chunks, dispatcher_, totals_);
  // Nobody is to hold a snapshot that no sequence has.
  if (dispatcher_ != nullptr) dispatcher_->set_snapshots({});
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
    event.copies = sequence.copies;
    if (std::exchange(sequence.snapshot_is_news, false)) {
      event.snapshot = sequence.first_snapshot;
      event.experts_moved_version = sequence.experts_moved_version;
    }
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
  num_kv_blocks_ = static_cast<uint32_t>(scheduler_.num_blocks());
  num_free_kv_blocks_ = static_cast<uint32_t>(scheduler_.num_free_blocks());
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
    stats.set_copies_moved_version(dispatch.copies_moved_version);
    stats.set_copies_over_capacity(dispatch.copies_over_capacity);
    v1::FailoverStats& failover = *stats.mutable_failover();
    failover.set_messages(dispatch.messages);
    failover.set_retries(dispatch.retries);
    failover.set_hedges(dispatch.hedges);
    failover.set_hedges_won(dispatch.hedges_won);
    failover.set_retries_held_back(dispatch.retries_held_back);
    failover.set_hedges_held_back(dispatch.hedges_held_back);
    CountSnapshots(stats);
  }
  stats.set_collapses(collapse_.num_collapses());
  for (v1::RoutingCollapse& layer : collapse_.Collapsed(Now())) {
    *stats.add_collapsed_layers() = std::move(layer);
  }
  if (scheduler_.num_running() + scheduler_.num_waiting() == 0) {
    CheckIntegrity();
  }
  absl::MutexLock lock(&mu_);
  published_ = std::move(stats);
  published_load_ = tokens_per_expert_;
  if (accounts_.TakeNews(dispatcher_)) {
    published_copies_ = accounts_.by_expert();
  }
  published_recent_ = recent_load_;
  num_running_ = scheduler_.num_running();
}

void ServingLoop::Begin(SteadyTime now, Sequence& sequence) {
  sequence.started = now;
  histograms_.queue_seconds.Observe(Seconds(now - sequence.arrived));
  if (sequence.snapshot == nullptr) return;
  sequence.first_snapshot = sequence.snapshot->Name();
  sequence.snapshot_is_news = true;
  if (sequence.is_canary) {
    totals_.set_sequences_canary(totals_.sequences_canary() + 1);
  }
  if (sequence.experts_moved_version > 0) {  // between two attempts
    totals_.set_sequences_moved_version(totals_.sequences_moved_version() + 1);
  }
}

void ServingLoop::PinWaiting() {
  if (dispatcher_ == nullptr || scheduler_.num_waiting() == 0) return;
  const std::shared_ptr<const Placement> placement = dispatcher_->placement();
  unknown_expert_ = placement->Unknown().value_or("");
  for (Sequence* sequence : scheduler_.NotStarted()) {
    if (sequence->snapshot != nullptr &&
        sequence->pinned_epoch == placement->epoch()) {
      continue;
    }
    sequence->can_start = unknown_expert_.empty();
    sequence->snapshot = nullptr;
    if (sequence->can_start) Pin(*placement, *sequence);
  }
}

void ServingLoop::Pin(const Placement& placement, Sequence& sequence) {
  const SequenceRequest& request = sequence.request;
  sequence.pinned_epoch = placement.epoch();
  sequence.experts_moved_version = 0;
  if (!request.snapshot.empty()) {
    sequence.snapshot = placement.Find(request.snapshot);
    if (sequence.snapshot != nullptr) {
      dispatcher_->experts().Register(sequence.snapshot);
      return;
    }
    // Tokens of the other snapshot are part of it.
    if (request.tokens.size() > request.prompt_length) {
      sequence.experts_moved_version = 1;
    }
  }
  sequence.snapshot = placement.SnapshotFor(request.request_id);
  sequence.is_canary = sequence.snapshot == placement.canary();
}

void ServingLoop::SetSnapshots(const std::vector<Chunk>& chunks) {
  std::vector<SnapshotRows> rows;
  for (const Chunk& chunk : chunks) {
    rows.push_back({chunk.num_tokens, chunk.sequence->snapshot});
  }
  dispatcher_->set_snapshots(std::move(rows));
}

void ServingLoop::CountLoad() {
  for (size_t layer = 0; layer < step_load_.size(); ++layer) {
    for (size_t expert = 0; expert < step_load_[layer].size(); ++expert) {
      tokens_per_expert_[layer][expert] += step_load_[layer][expert];
    }
  }
  const SteadyTime now = Now();
  recent_load_.AddStep(step_load_, now);
  if (now < next_look_) return;
  next_look_ = now + kLookForCollapse;
  for (size_t layer = 0; layer < step_load_.size(); ++layer) {
    if (!runner_.config().is_moe_layer[layer]) continue;
    const std::string warning = collapse_.Look(
        layer, recent_load_.Recent(layer, now).tokens_per_expert, now);
    if (!warning.empty()) spdlog::warn("{}", warning);
  }
}

void ServingLoop::TakeMoves(const std::vector<Chunk>& chunks) {
  if (dispatcher_ == nullptr) return;
  std::map<Sequence*, std::vector<uint64_t>> moved;
  const size_t num_experts = runner_.config().num_experts;
  for (const VersionMove& move : dispatcher_->moves()) {
    Sequence* const sequence = chunks[move.sequence].sequence;
    std::vector<uint64_t>& keys =
        moved.try_emplace(sequence, sequence->snapshot->keys()).first->second;
    uint64_t& key = keys[move.layer * num_experts + move.expert];
    if (key != move.to) ++sequence->experts_moved_version;
    key = move.to;
  }
  for (auto& [sequence, keys] : moved) {
    spdlog::info("request {} goes on with other versions of its experts",
                 sequence->request.request_id);
    if (sequence->snapshot->Name() == sequence->first_snapshot) {
      totals_.set_sequences_moved_version(totals_.sequences_moved_version() +
                                          1);
    }
    auto next =
        std::make_shared<ModelSnapshot>(num_experts, std::move(keys), "moved");
    dispatcher_->experts().Register(next);
    sequence->snapshot = std::move(next);
    sequence->snapshot_is_news = true;
    // Its keys and values are those of no snapshot.
    sequence->prefix.publishes = false;
  }
}

void ServingLoop::CountSnapshots(v1::RouterStats& stats) {
  std::vector<std::pair<const ModelSnapshot*, uint32_t>> uses;
  for (const Sequence* sequence : scheduler_.Sequences()) {
    if (sequence->snapshot == nullptr) continue;
    const auto same =
        std::find_if(uses.begin(), uses.end(), [&](const auto& use) {
          return use.first->id() == sequence->snapshot->id();
        });
    if (same == uses.end()) {
      uses.emplace_back(sequence->snapshot.get(), 1);
    } else {
      ++same->second;
    }
  }
  for (const auto& [snapshot, sequences] : uses) {
    v1::SnapshotUse& use = *stats.add_snapshots();
    use.set_id(snapshot->id_text());
    use.set_labels(snapshot->labels());
    use.set_sequences(sequences);
  }
}

void ServingLoop::CheckBetweenSteps(IntegrityCallback done) {
  {
    absl::MutexLock lock(&mu_);
    if (!stopping_) {
      checks_.push_back(std::move(done));
      return;
    }
  }
  done(absl::UnavailableError("the router is shutting down"));
}

void ServingLoop::AnswerChecks(bool stop) {
  std::vector<IntegrityCallback> checks;
  {
    absl::MutexLock lock(&mu_);
    checks.swap(checks_);
  }
  if (checks.empty()) return;
  const absl::Status sound =
      stop ? absl::UnavailableError("the router is shutting down")
           : scheduler_.CheckIntegrity();
  for (const IntegrityCallback& done : checks) done(sound);
}

void ServingLoop::SetPolicies(const std::vector<Chunk>& chunks) {
  policies_.clear();
  for (const Chunk& chunk : chunks) {
    policies_.push_back({chunk.num_tokens, chunk.sequence->request.fallback});
  }
  dispatcher_->set_policies(policies_);
}

bool ServingLoop::IsBlocking(const std::vector<Chunk>& chunks) {
  const std::vector<Sequence*> all = scheduler_.Sequences();
  return std::any_of(chunks.begin(), chunks.end(),
                     [](const Chunk& chunk) {
                       return chunk.sequence->request.fallback.is_exact();
                     }) &&
         std::any_of(all.begin(), all.end(),
                     [](const Sequence* sequence) {
                       return !sequence->request.fallback.is_exact();
                     }) &&
         dispatcher_->placement()->Missing().has_value();
}

// They keep the blocks that were reserved for them, and are tried again when a
// process comes or goes.
void ServingLoop::LeaveOutBlocked(std::vector<Chunk>& chunks) {
  if (blocked_by_.empty()) return;
  if (dispatcher_->placement()->epoch() != blocked_epoch_ ||
      !IsBlocking(chunks)) {
    blocked_by_.clear();
    return;
  }
  const auto is_exact = [](const Chunk& chunk) {
    return chunk.sequence->request.fallback.is_exact();
  };
  // All of them: those that could do without do not fit the step yet.
  if (std::all_of(chunks.begin(), chunks.end(), is_exact)) return;
  std::erase_if(chunks, is_exact);
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
