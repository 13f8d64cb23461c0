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

// How many tokens of a sequence may come from the cache: all but the last,
// whose logits tell the next one, and none while logits of the whole prompt are
// wanted.
size_t CacheableTokens(const Sequence& sequence) {
  if (sequence.request.prompt_logprobs && !sequence.prompt_reported) return 0;
  return sequence.tokens.size() - 1;
}

// Only sequences with the same one share what they have computed.
std::string PrefixSalt(const Sequence& sequence) {
  const std::string& salt = sequence.request.cache_salt;
  return sequence.snapshot == nullptr
             ? salt
             : absl::StrCat(sequence.snapshot->id_text(), salt);
}

BlockManagerOptions BlockOptions(const SchedulerOptions& options,
                                 size_t num_blocks,
                                 Scheduler::CopyBlock copy_block) {
  BlockManagerOptions blocks;
  blocks.num_blocks = num_blocks;
  blocks.prefix_cache = options.prefix_cache;
  blocks.copy_block = std::move(copy_block);
  return blocks;
}

}  // namespace

Scheduler::Scheduler(SchedulerOptions options, size_t num_blocks,
                     CopyBlock copy_block)
    : options_(options),
      blocks_(BlockOptions(options, num_blocks, std::move(copy_block))) {}

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
    if (!sequence->can_start) break;
    const std::string salt = PrefixSalt(*sequence);
    if (sequence->prefix.salt != salt) {
      sequence->prefix = PrefixKey();
      sequence->prefix.salt = salt;
    }
    const size_t limit = CacheableTokens(*sequence);
    const PrefixHit hit =
        blocks_.Find(sequence->prefix, sequence->tokens, limit);
    if (IsComing(sequence, hit, limit, chunks)) break;
    const size_t num_tokens =
        std::min(budget, sequence->tokens.size() - hit.num_tokens());
    const size_t needed =
        BlocksFor(hit.num_tokens() + num_tokens) - hit.blocks.size();
    if (!blocks_.Adopt(sequence->prefix, hit, needed, sequence->block_table)) {
      break;
    }
    sequence->num_computed = hit.num_tokens();
    if (options_.prefix_cache && limit > 0 && sequence->preemptions == 0) {
      sequence->cached_tokens =
          std::min(hit.num_tokens(), sequence->prompt_length());
      num_lookup_tokens_ += sequence->tokens.size();
      num_hit_tokens_ += hit.num_tokens();
    }
    running_.splice(running_.end(), waiting_, waiting_.begin());
    chunks.push_back({sequence, num_tokens});
    budget -= num_tokens;
  }
  return chunks;
}

bool Scheduler::IsComing(Sequence* sequence, const PrefixHit& hit, size_t limit,
                         const std::vector<Chunk>& chunks) {
  const size_t k = hit.blocks.size();
  const size_t end = (k + 1) * kKvBlockSize;
  if (!options_.prefix_cache || end > limit) return false;
  for (const Chunk& chunk : chunks) {
    Sequence& other = *chunk.sequence;
    if (other.num_computed < end && other.prefix.publishes &&
        other.num_computed + chunk.num_tokens >= end &&
        blocks_.HashOf(other.prefix, other.tokens, k) ==
            blocks_.HashOf(sequence->prefix, sequence->tokens, k)) {
      return true;
    }
  }
  return false;
}

void Scheduler::Commit(const std::vector<Chunk>& chunks) {
  for (const Chunk& chunk : chunks) {
    Sequence& sequence = *chunk.sequence;
    sequence.num_computed += chunk.num_tokens;
    blocks_.Publish(sequence.prefix, sequence.tokens, sequence.num_computed,
                    sequence.block_table);
  }
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
  blocks_.Free(sequence->prefix, sequence->block_table);
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
      blocks_.Free(removed->prefix, removed->block_table);
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

std::vector<Sequence*> Scheduler::NotStarted() {
  std::vector<Sequence*> not_started;
  for (const auto& sequence : waiting_) {
    if (sequence->started == kNoDeadline) {
      not_started.push_back(sequence.get());
    }
  }
  return not_started;
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
