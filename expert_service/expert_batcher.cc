#include "expert_service/expert_batcher.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "common/views.h"

namespace troupe {
namespace {

// Slots of the workspace, which is the batcher's alone.
constexpr size_t kMergedInput = Workspace::kFirstCallerSlot;
constexpr size_t kMergedOutput = Workspace::kFirstCallerSlot + 1;

// A process that was given the bell could keep it from being heard; then
// batches wait for this.
constexpr milliseconds kLookWithoutBell(1000);

// Of the past that the busy share is a mean of.
constexpr double kBusySeconds = 5;

uint32_t Microseconds(SteadyTime::duration duration) {
  return static_cast<uint32_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(duration).count());
}

bool IsAligned(const char* data) {
  return reinterpret_cast<uintptr_t>(data) % alignof(float) == 0;
}

bool HasAll(const ExpertSet& experts, const ExpertBatch& batch) {
  for (size_t i = 0; i < batch.expert_ids.size(); ++i) {
    if (experts.Find(batch.layer, batch.expert_ids[i], batch.version(i)) ==
        nullptr) {
      return false;
    }
  }
  return true;
}

// Leaves the `count` copies with the highest priorities in the batch, of equals
// the first ones; `refused`: the others, ascending. The tokens stay.
void KeepCopies(uint64_t count, ExpertBatch& batch,
                std::vector<uint32_t>& refused) {
  const size_t num_copies = batch.num_copies();
  refused.resize(num_copies);
  std::iota(refused.begin(), refused.end(), 0u);
  if (!batch.priorities.empty()) {
    std::stable_sort(refused.begin(), refused.end(),
                     [&batch](uint32_t a, uint32_t b) {
                       return batch.priorities[a] > batch.priorities[b];
                     });
  }
  refused.erase(refused.begin(), refused.begin() + static_cast<int64_t>(count));
  std::sort(refused.begin(), refused.end());

  size_t from = 0;
  size_t to = 0;
  size_t next_refused = 0;
  size_t num_groups = 0;
  for (size_t i = 0; i < batch.expert_ids.size(); ++i) {
    const size_t end = from + batch.copies_per_expert[i];
    const size_t begin = to;
    for (; from < end; ++from) {
      if (next_refused < refused.size() && refused[next_refused] == from) {
        ++next_refused;
        continue;
      }
      batch.row_of_copy[to++] = batch.row_of_copy[from];
    }
    if (to == begin) continue;
    batch.expert_ids[num_groups] = batch.expert_ids[i];
    batch.copies_per_expert[num_groups] = static_cast<uint32_t>(to - begin);
    if (!batch.versions.empty()) {
      batch.versions[num_groups] = batch.versions[i];
    }
    ++num_groups;
  }
  batch.expert_ids.resize(num_groups);
  batch.copies_per_expert.resize(num_groups);
  if (!batch.versions.empty()) batch.versions.resize(num_groups);
  batch.row_of_copy.resize(to);
  batch.priorities.clear();
}

}  // namespace

ExpertBatcher::ExpertBatcher(ExpertBackend& backend, uint64_t capacity_rows,
                             std::shared_ptr<Doorbell> bell,
                             BatchSource* source, Thread thread)
    : backend_(backend),
      limits_(backend.limits()),
      capacity_rows_(capacity_rows),
      bell_(bell != nullptr ? std::move(bell) : Doorbell::Create()),
      source_(source),
      busy_meter_(kBusySeconds, start_) {
  if (thread == Thread::kOwn) thread_ = std::thread([this] { Run(); });
}

ExpertBatcher::~ExpertBatcher() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  bell_->Ring();
  if (thread_.joinable()) {
    thread_.join();
  } else {
    while (RunOne()) {
    }
  }
}

absl::Status ExpertBatcher::Validate(const ExpertBatch& batch,
                                     uint64_t payload_bytes) const {
  absl::Status status = ValidateFrame(batch, payload_bytes, limits_);
  if (!status.ok()) return status;
  if (!batch.versions.empty()) return absl::OkStatus();
  const std::shared_ptr<const ExpertSet> experts = backend_.experts();
  for (const uint32_t expert : batch.expert_ids) {
    const size_t num_versions = experts->Versions(batch.layer, expert).size();
    if (num_versions == 1) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "ExpertBatch.expert_ids: expert ", expert, " of layer ", batch.layer,
        num_versions == 0 ? " is not here"
                          : " has several versions here, versions is empty"));
  }
  return absl::OkStatus();
}

void ExpertBatcher::Submit(ExpertCall* call) {
  const uint64_t rows = call->batch.num_copies();
  call->refused_copies.clear();
  ExpertOutput refusal;
  std::shared_ptr<const ExpertSet> experts = backend_.experts();
  const bool is_here = HasAll(*experts, call->batch);
  {
    absl::MutexLock lock(&mu_);
    const uint64_t room =
        capacity_rows_ - std::min(capacity_rows_, queued_rows_);
    if (!draining_ && is_here && room > 0) {
      if (room < rows) {
        KeepCopies(room, call->batch, call->refused_copies);
        stats_.set_refused_rows(stats_.refused_rows() +
                                call->refused_copies.size());
      }
      Waiting waiting;
      waiting.call = call;
      waiting.experts = std::move(experts);
      waiting.arrived = std::chrono::steady_clock::now();
      waiting.deadline =
          call->batch.timeout_ms == 0
              ? kNoDeadline
              : waiting.arrived + milliseconds(call->batch.timeout_ms);
      queued_rows_ += waiting.rows();
      queue_.push_back(std::move(waiting));
    } else {
      refusal.verdict = draining_  ? Verdict::kDraining
                        : !is_here ? Verdict::kGone
                                   : Verdict::kRefused;
      refusal.free_rows = room;
      stats_.set_refused_rows(stats_.refused_rows() + rows);
    }
  }
  if (refusal.verdict == Verdict::kUnspecified) {
    bell_->Ring();
    return;
  }
  refusal.attempt_id = call->batch.attempt_id;
  refusal.dtype = call->batch.dtype;
  call->Finish(refusal);
}

void ExpertBatcher::StartDraining() {
  absl::MutexLock lock(&mu_);
  draining_ = true;
}

bool ExpertBatcher::WaitUntilIdle(milliseconds limit) {
  absl::MutexLock lock(&mu_);
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return queue_.empty() && !running_;
  };
  return mu_.AwaitWithTimeout(absl::Condition(&idle), absl::FromChrono(limit));
}

void ExpertBatcher::GetStats(v1::ExpertStats& stats) const {
  absl::MutexLock lock(&mu_);
  stats.MergeFrom(stats_);
  stats.set_queued_rows(queued_rows_);
  stats.set_free_rows(capacity_rows_ - std::min(capacity_rows_, queued_rows_));
  const SteadyTime now = std::chrono::steady_clock::now();
  stats.set_busy_share(busy_meter_.Share(now));
  stats.set_uptime_seconds(std::chrono::duration<double>(now - start_).count());
}

absl::Status ExpertBatcher::CheckIntegrity() const {
  absl::MutexLock lock(&mu_);
  uint64_t waiting_rows = 0;
  for (const Waiting& waiting : queue_) waiting_rows += waiting.rows();
  // Those that run have left the queue; how many is for the thread to know.
  const bool sound =
      running_ ? queued_rows_ >= waiting_rows : queued_rows_ == waiting_rows;
  if (sound) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("of ", queued_rows_, " queued rows ",
                                          waiting_rows, " wait",
                                          running_ ? "" : " and none runs"));
}

void ExpertBatcher::Run() {
  while (true) {
    // Whatever is published after this rings the bell again.
    const uint32_t seen = bell_->Current();
    if (source_ != nullptr) source_->Poll(*this);
    if (RunOne()) continue;
    {
      absl::MutexLock lock(&mu_);
      if (stopping_) return;
    }
    bell_->Wait(seen, source_ == nullptr ? kNoDeadline
                                         : std::chrono::steady_clock::now() +
                                               kLookWithoutBell);
  }
}

bool ExpertBatcher::RunOne() {
  if (!TakeGroup()) return false;
  Compute();
  absl::MutexLock lock(&mu_);
  running_ = false;
  return true;
}

bool ExpertBatcher::TakeGroup() {
  absl::MutexLock lock(&mu_);
  if (queue_.empty()) return false;
  running_ = true;
  busy_meter_.Begin(std::chrono::steady_clock::now());
  const uint32_t layer = queue_.front().call->batch.layer;
  const auto others = std::stable_partition(
      queue_.begin(), queue_.end(),
      [layer](const Waiting& w) { return w.call->batch.layer == layer; });
  group_.assign(std::make_move_iterator(queue_.begin()),
                std::make_move_iterator(others));
  queue_.erase(queue_.begin(), others);
  return true;
}

void ExpertBatcher::Compute() {
  const SteadyTime start = std::chrono::steady_clock::now();
  // Batches that nobody waits for any more cost their rows, not their work.
  uint64_t rows = 0;
  size_t num_live = 0;
  size_t num_tokens = 0;
  size_t num_copies = 0;
  for (Waiting& waiting : group_) {
    rows += waiting.rows();
    const ExpertBatch& batch = waiting.call->batch;
    if (waiting.deadline > start) {
      waiting.output = waiting.call->Reserve(
          waiting.rows() * limits_.hidden_size * SizeOf(batch.dtype));
    }
    if (waiting.output == nullptr) continue;
    waiting.first_token = num_tokens;
    num_tokens += batch.num_tokens;
    num_copies += waiting.rows();
    ++num_live;
  }
  // The live ones first; both in their order.
  std::stable_partition(
      group_.begin(), group_.end(),
      [](const Waiting& waiting) { return waiting.output != nullptr; });
  if (num_live > 0) {
    RunBackend(absl::MakeSpan(group_).first(num_live), num_tokens, num_copies);
  }

  const SteadyTime end = std::chrono::steady_clock::now();
  uint64_t free_rows = 0;
  {
    absl::MutexLock lock(&mu_);
    queued_rows_ -= rows;
    busy_meter_.End(end);
    free_rows = capacity_rows_ - std::min(capacity_rows_, queued_rows_);
    stats_.set_batches(stats_.batches() + (num_live == 0 ? 0 : 1));
    stats_.set_messages(stats_.messages() + num_live);
    stats_.set_rows(stats_.rows() + num_copies);
    stats_.set_busy_seconds(stats_.busy_seconds() +
                            std::chrono::duration<double>(end - start).count());
  }
  if (num_live > 0) {
    histograms_.service_seconds.Observe(
        std::chrono::duration<double>(end - start).count());
    histograms_.batch_rows.Observe(static_cast<double>(num_copies));
  }
  for (const Waiting& waiting : group_) {
    ExpertOutput output;
    histograms_.queue_seconds.Observe(
        std::chrono::duration<double>(start - waiting.arrived).count());
    if (waiting.output != nullptr) {
      output.verdict = Verdict::kComputed;
      if (!waiting.call->refused_copies.empty()) {
        output.verdict = Verdict::kPartial;
        output.refused_copies = waiting.call->refused_copies;
      }
      output.compute_us = Microseconds(end - start);
    } else {
      output.verdict = Verdict::kRefused;
    }
    output.attempt_id = waiting.call->batch.attempt_id;
    output.dtype = waiting.call->batch.dtype;
    output.free_rows = free_rows;
    output.queue_us = Microseconds(start - waiting.arrived);
    waiting.call->Finish(output);
  }
  group_.clear();
}

void ExpertBatcher::RunBackend(absl::Span<Waiting> group, size_t num_tokens,
                               size_t num_copies) {
  const size_t hidden_size = limits_.hidden_size;
  const size_t layer = group.front().call->batch.layer;
  groups_.clear();
  for (const Waiting& waiting : group) {
    const ExpertBatch& batch = waiting.call->batch;
    for (size_t i = 0; i < batch.expert_ids.size(); ++i) {
      const LoadedExpert* const loaded =
          waiting.experts->Find(layer, batch.expert_ids[i], batch.version(i));
      groups_.push_back({batch.expert_ids[i], loaded->key, loaded});
    }
  }
  // One batch alone, the common case, is computed where it lies.
  const ExpertBatch& first = group.front().call->batch;
  const bool alone = group.size() == 1;
  const bool in_place = alone && first.dtype == DataType::kF32 &&
                        IsAligned(group.front().call->hidden_states.data()) &&
                        IsAligned(group.front().output);
  offsets_.assign(1, 0);
  if (alone) {
    for (const uint32_t copies : first.copies_per_expert) {
      offsets_.push_back(offsets_.back() + copies);
    }
  } else {
    // Batches that do not say which version they want mean the only one.
    std::sort(groups_.begin(), groups_.end());
    groups_.erase(std::unique(groups_.begin(), groups_.end()), groups_.end());
    // The copies of the merged batch: by expert and version, then by batch.
    row_of_copy_.clear();
    origin_.clear();
    for (const Group& expert : groups_) {
      for (size_t i = 0; i < group.size(); ++i) {
        Waiting& waiting = group[i];
        const ExpertBatch& batch = waiting.call->batch;
        const size_t at = waiting.next_expert;
        if (at == batch.expert_ids.size() ||
            batch.expert_ids[at] != expert.expert ||
            (batch.version(at) != 0 && batch.version(at) != expert.version)) {
          continue;
        }
        ++waiting.next_expert;
        for (uint32_t c = 0; c < batch.copies_per_expert[at]; ++c) {
          const size_t copy = waiting.next_copy++;
          row_of_copy_.push_back(static_cast<uint32_t>(waiting.first_token) +
                                 batch.row_of_copy[copy]);
          origin_.push_back({i, copy});
        }
      }
      offsets_.push_back(static_cast<uint32_t>(row_of_copy_.size()));
    }
  }

  ConstFloatMatrix input;
  FloatMatrix output;
  if (in_place) {
    input = ConstFloatMatrix(reinterpret_cast<const float*>(
                                 group.front().call->hidden_states.data()),
                             num_tokens, hidden_size);
    output = FloatMatrix(reinterpret_cast<float*>(group.front().output),
                         num_copies, hidden_size);
  } else {
    float* merged = workspace_.Floats(kMergedInput, num_tokens * hidden_size);
    for (const Waiting& waiting : group) {
      const ExpertBatch& batch = waiting.call->batch;
      ReadElements(batch.dtype, waiting.call->hidden_states.data(),
                   batch.num_tokens * hidden_size,
                   merged + waiting.first_token * hidden_size);
    }
    input = ConstFloatMatrix(merged, num_tokens, hidden_size);
    output =
        FloatMatrix(workspace_.Floats(kMergedOutput, num_copies * hidden_size),
                    num_copies, hidden_size);
  }
  experts_.clear();
  for (const Group& expert : groups_) experts_.push_back(expert.loaded);
  backend_.Compute(layer, input, alone ? first.row_of_copy : row_of_copy_,
                   offsets_, experts_, output);
  if (in_place) return;
  for (size_t copy = 0; copy < num_copies; ++copy) {
    const Origin origin = alone ? Origin{0, copy} : origin_[copy];
    const Waiting& waiting = group[origin.batch];
    const DataType dtype = waiting.call->batch.dtype;
    WriteElements(dtype, output.row(copy), hidden_size,
                  waiting.output + origin.row * hidden_size * SizeOf(dtype));
  }
}

}  // namespace troupe
