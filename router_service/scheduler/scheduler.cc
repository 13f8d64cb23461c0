#include "router_service/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "kernels/attention.h"

namespace troupe {
namespace {

size_t BlocksFor(size_t num_tokens) {
  return (num_tokens + kKvBlockSize - 1) / kKvBlockSize;
}

}  // namespace

Scheduler::Scheduler(SchedulerOptions options, size_t num_blocks)
    : options_(options), blocks_(num_blocks) {}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  waiting_.push_back(std::move(sequence));
}

Sequence* Scheduler::Find(uint64_t seq_id) {
  for (Sequence* sequence : Sequences()) {
    if (sequence->seq_id == seq_id) return sequence;
  }
  return nullptr;
}

std::vector<Chunk> Scheduler::Schedule() {
  std::vector<Chunk> chunks;
  size_t budget = options_.max_batch_tokens;
  const uint64_t preemptions_before = num_preemptions_;
  // Preemption takes from the end of running_, never one before `it`.
  for (auto it = running_.begin(); it != running_.end() && budget > 0;) {
    Sequence* sequence = it->get();
    const size_t num_tokens =
        std::min(budget, sequence->tokens.size() - sequence->num_computed);
    if (!Reserve(sequence, num_tokens)) break;  // it was the last one
    chunks.push_back({sequence, num_tokens});
    budget -= num_tokens;
    ++it;
  }
  // What was just preempted would take back the blocks that it gave up.
  if (num_preemptions_ != preemptions_before) return chunks;
  while (budget > 0 && !waiting_.empty() &&
         running_.size() < options_.max_sequences) {
    Sequence* sequence = waiting_.front().get();
    const size_t num_tokens =
        std::min(budget, sequence->tokens.size() - sequence->num_computed);
    const size_t needed = BlocksFor(sequence->num_computed + num_tokens) -
                          sequence->block_table.size();
    if (!blocks_.Allocate(needed, sequence->block_table)) break;
    running_.splice(running_.end(), waiting_, waiting_.begin());
    chunks.push_back({sequence, num_tokens});
    budget -= num_tokens;
  }
  return chunks;
}

bool Scheduler::Reserve(Sequence* sequence, size_t num_tokens) {
  const size_t needed = BlocksFor(sequence->num_computed + num_tokens) -
                        sequence->block_table.size();
  while (!blocks_.Allocate(needed, sequence->block_table)) {
    const bool self = running_.back().get() == sequence;
    CHECK(!(self && running_.size() == 1));
    PreemptLast();
    if (self) return false;
  }
  return true;
}

void Scheduler::PreemptLast() {
  Sequence* sequence = running_.back().get();
  blocks_.Free(sequence->block_table);
  sequence->num_computed = 0;
  ++sequence->preemptions;
  ++num_preemptions_;
  waiting_.splice(waiting_.begin(), running_, std::prev(running_.end()));
}

std::unique_ptr<Sequence> Scheduler::Remove(Sequence* sequence) {
  for (auto* list : {&running_, &waiting_}) {
    for (auto it = list->begin(); it != list->end(); ++it) {
      if (it->get() != sequence) continue;
      std::unique_ptr<Sequence> removed = std::move(*it);
      list->erase(it);
      blocks_.Free(removed->block_table);
      return removed;
    }
  }
  CHECK(false);
  return nullptr;
}

std::vector<Sequence*> Scheduler::Sequences() {
  std::vector<Sequence*> all;
  for (const auto& sequence : running_) all.push_back(sequence.get());
  for (const auto& sequence : waiting_) all.push_back(sequence.get());
  return all;
}

absl::Status Scheduler::CheckIntegrity() const {
  std::vector<const std::vector<int32_t>*> tables;
  for (const auto& sequence : running_) {
    tables.push_back(&sequence->block_table);
    if (sequence->block_table.size() < BlocksFor(sequence->num_computed)) {
      return absl::InternalError(absl::StrCat(
          "sequence ", sequence->seq_id, " has ", sequence->block_table.size(),
          " KV blocks for ", sequence->num_computed, " tokens"));
    }
  }
  for (const auto& sequence : waiting_) {
    if (!sequence->block_table.empty() || sequence->num_computed != 0) {
      return absl::InternalError(absl::StrCat("sequence ", sequence->seq_id,
                                              " waits but holds KV blocks"));
    }
  }
  return blocks_.CheckIntegrity(tables);
}

}  // namespace troupe
