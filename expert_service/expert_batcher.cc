#include "expert_service/expert_batcher.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/views.h"

namespace troupe {
namespace {

// Slots of the workspace; the kernels use the lower ones.
constexpr size_t kMergedInput = 6;
constexpr size_t kMergedOutput = 7;

absl::Status Wrong(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("ExpertBatch.", field, ": ", what));
}

float* Floats(std::string& bytes) {
  return reinterpret_cast<float*>(bytes.data());
}
const float* Floats(const std::string& bytes) {
  return reinterpret_cast<const float*>(bytes.data());
}

}  // namespace

ExpertBatcher::ExpertBatcher(const ExpertStore& store, uint64_t capacity_rows,
                             ThreadPool& pool)
    : store_(store), capacity_rows_(capacity_rows), pool_(pool) {
  thread_ = std::thread([this] { Run(); });
}

ExpertBatcher::~ExpertBatcher() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

absl::Status ExpertBatcher::Validate(const v1::ExpertBatch& batch) const {
  const uint64_t num_tokens = batch.num_tokens();
  const uint64_t row_bytes = store_.hidden_size() * sizeof(float);
  if (batch.layer() >= store_.num_layers()) {
    return Wrong("layer", absl::StrCat(batch.layer(), " of a model with ",
                                       store_.num_layers(), " layers"));
  }
  if (num_tokens == 0) return Wrong("num_tokens", "0");
  if (num_tokens * row_bytes != batch.hidden_states().size()) {
    return Wrong("hidden_states", absl::StrCat(batch.hidden_states().size(),
                                               " bytes instead of ", num_tokens,
                                               " x ", row_bytes));
  }
  if (batch.expert_ids_size() == 0) return Wrong("expert_ids", "empty");
  if (batch.copies_per_expert_size() != batch.expert_ids_size()) {
    return Wrong("copies_per_expert",
                 absl::StrCat(batch.copies_per_expert_size(), " numbers for ",
                              batch.expert_ids_size(), " experts"));
  }
  uint64_t num_copies = 0;
  for (int i = 0; i < batch.expert_ids_size(); ++i) {
    const uint32_t expert = batch.expert_ids(i);
    if (i > 0 && expert <= batch.expert_ids(i - 1)) {
      return Wrong("expert_ids", absl::StrCat("not ascending at ", expert));
    }
    if (store_.Find(batch.layer(), expert) == nullptr) {
      return Wrong("expert_ids", absl::StrCat("expert ", expert, " of layer ",
                                              batch.layer(), " is not here"));
    }
    // A token goes to an expert at most once.
    const uint32_t copies = batch.copies_per_expert(i);
    if (copies == 0 || copies > num_tokens) {
      return Wrong("copies_per_expert",
                   absl::StrCat(copies, " for ", num_tokens, " tokens"));
    }
    num_copies += copies;
  }
  // Every token is sent for at least one copy: room in rows bounds the memory.
  if (num_tokens > num_copies) {
    return Wrong("num_tokens",
                 absl::StrCat(num_tokens, " for ", num_copies, " copies"));
  }
  if (num_copies != static_cast<uint64_t>(batch.row_of_copy_size())) {
    return Wrong("row_of_copy", absl::StrCat(batch.row_of_copy_size(),
                                             " rows instead of ", num_copies));
  }
  for (const uint32_t row : batch.row_of_copy()) {
    if (row >= num_tokens) {
      return Wrong("row_of_copy",
                   absl::StrCat(row, " with ", num_tokens, " tokens"));
    }
  }
  return absl::OkStatus();
}

void ExpertBatcher::Submit(v1::ExpertBatch batch, OutputCallback done) {
  const uint64_t rows = static_cast<uint64_t>(batch.row_of_copy_size());
  v1::ExpertOutput refusal;
  {
    absl::MutexLock lock(&mu_);
    // An empty queue takes a batch of any size, or it would never run.
    const bool has_room =
        queued_rows_ == 0 || queued_rows_ + rows <= capacity_rows_;
    if (!draining_ && has_room) {
      const SteadyTime now = std::chrono::steady_clock::now();
      const SteadyTime deadline = batch.timeout_ms() == 0
                                      ? kNoDeadline
                                      : now + milliseconds(batch.timeout_ms());
      queued_rows_ += rows;
      queue_.push_back(
          {std::move(batch), std::move(done), now, deadline, rows});
      return;
    }
    refusal.set_verdict(draining_ ? v1::ExpertOutput::VERDICT_DRAINING
                                  : v1::ExpertOutput::VERDICT_REFUSED);
    refusal.set_free_rows(capacity_rows_ -
                          std::min(capacity_rows_, queued_rows_));
    stats_.set_refused_rows(stats_.refused_rows() + rows);
  }
  refusal.set_attempt_id(batch.attempt_id());
  done(std::move(refusal));
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
}

void ExpertBatcher::Run() {
  std::vector<Waiting> group;
  while (true) {
    {
      absl::MutexLock lock(&mu_);
      const auto woken = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return stopping_ || !queue_.empty();
      };
      mu_.Await(absl::Condition(&woken));
      if (queue_.empty()) return;
      running_ = true;
      const uint32_t layer = queue_.front().batch.layer();
      const auto others = std::stable_partition(
          queue_.begin(), queue_.end(),
          [layer](const Waiting& w) { return w.batch.layer() == layer; });
      group.assign(std::make_move_iterator(queue_.begin()),
                   std::make_move_iterator(others));
      queue_.erase(queue_.begin(), others);
    }
    Compute(group);
    group.clear();
    absl::MutexLock lock(&mu_);
    running_ = false;
  }
}

void ExpertBatcher::Compute(std::vector<Waiting>& group) {
  const SteadyTime start = std::chrono::steady_clock::now();
  const size_t hidden_size = store_.hidden_size();

  // Batches that nobody waits for any more cost their rows, not their work.
  std::vector<Waiting*> live;
  for (Waiting& waiting : group) {
    if (waiting.deadline > start) live.push_back(&waiting);
  }

  std::vector<v1::ExpertOutput> outputs(live.size());
  size_t num_tokens = 0;
  size_t num_copies = 0;
  std::vector<size_t> first_token(live.size());  // in the merged input
  std::vector<uint32_t> experts;
  for (size_t i = 0; i < live.size(); ++i) {
    const v1::ExpertBatch& batch = live[i]->batch;
    first_token[i] = num_tokens;
    num_tokens += batch.num_tokens();
    num_copies += live[i]->rows;
    experts.insert(experts.end(), batch.expert_ids().begin(),
                   batch.expert_ids().end());
    outputs[i].mutable_outputs()->resize(live[i]->rows * hidden_size *
                                         sizeof(float));
  }
  std::sort(experts.begin(), experts.end());
  experts.erase(std::unique(experts.begin(), experts.end()), experts.end());

  if (!live.empty()) {
    // The copies of the merged batch: by expert, then by batch. `origin` says
    // where an output row belongs.
    struct Origin {
      size_t batch;
      size_t row;
    };
    std::vector<uint32_t> row_of_copy;
    std::vector<Origin> origin;
    row_of_copy.reserve(num_copies);
    origin.reserve(num_copies);
    std::vector<uint32_t> offsets = {0};
    std::vector<const GatedMlpWeights*> weights;
    std::vector<int> next_expert(live.size(), 0);
    std::vector<int> next_copy(live.size(), 0);
    for (const uint32_t expert : experts) {
      for (size_t i = 0; i < live.size(); ++i) {
        const v1::ExpertBatch& batch = live[i]->batch;
        const int at = next_expert[i];
        if (at == batch.expert_ids_size() || batch.expert_ids(at) != expert) {
          continue;
        }
        ++next_expert[i];
        for (uint32_t c = 0; c < batch.copies_per_expert(at); ++c) {
          const int copy = next_copy[i]++;
          row_of_copy.push_back(
              static_cast<uint32_t>(first_token[i] + batch.row_of_copy(copy)));
          origin.push_back({i, static_cast<size_t>(copy)});
        }
      }
      offsets.push_back(static_cast<uint32_t>(row_of_copy.size()));
      weights.push_back(store_.Find(live[0]->batch.layer(), expert));
    }

    // One batch alone, the common case, is computed where it lies.
    const bool alone = live.size() == 1;
    ConstFloatMatrix input(Floats(live[0]->batch.hidden_states()), num_tokens,
                           hidden_size);
    FloatMatrix output(Floats(*outputs[0].mutable_outputs()), num_copies,
                       hidden_size);
    if (!alone) {
      float* merged = workspace_.Floats(kMergedInput, num_tokens * hidden_size);
      for (size_t i = 0; i < live.size(); ++i) {
        const std::string& bytes = live[i]->batch.hidden_states();
        std::memcpy(merged + first_token[i] * hidden_size, bytes.data(),
                    bytes.size());
      }
      input.data = merged;
      output.data = workspace_.Floats(kMergedOutput, num_copies * hidden_size);
    }
    GroupedGatedMlp(input, row_of_copy, offsets, weights, output, workspace_,
                    pool_);
    if (!alone) {
      for (size_t copy = 0; copy < num_copies; ++copy) {
        std::memcpy(Floats(*outputs[origin[copy].batch].mutable_outputs()) +
                        origin[copy].row * hidden_size,
                    output.row(copy), hidden_size * sizeof(float));
      }
    }
  }

  const SteadyTime end = std::chrono::steady_clock::now();
  const auto microseconds = [](SteadyTime::duration duration) {
    return static_cast<uint32_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(duration)
            .count());
  };
  uint64_t free_rows = 0;
  {
    absl::MutexLock lock(&mu_);
    for (const Waiting& waiting : group) queued_rows_ -= waiting.rows;
    free_rows = capacity_rows_ - std::min(capacity_rows_, queued_rows_);
    stats_.set_batches(stats_.batches() + (live.empty() ? 0 : 1));
    stats_.set_messages(stats_.messages() + live.size());
    stats_.set_rows(stats_.rows() + num_copies);
    stats_.set_busy_seconds(stats_.busy_seconds() +
                            std::chrono::duration<double>(end - start).count());
  }
  size_t i = 0;
  for (Waiting& waiting : group) {
    v1::ExpertOutput output;
    if (i < live.size() && live[i] == &waiting) {
      output = std::move(outputs[i++]);
      output.set_verdict(v1::ExpertOutput::VERDICT_COMPUTED);
      output.set_compute_us(microseconds(end - start));
    } else {
      output.set_verdict(v1::ExpertOutput::VERDICT_REFUSED);
    }
    output.set_attempt_id(waiting.batch.attempt_id());
    output.set_free_rows(free_rows);
    output.set_queue_us(microseconds(start - waiting.arrived));
    waiting.done(std::move(output));
  }
}

}  // namespace troupe
