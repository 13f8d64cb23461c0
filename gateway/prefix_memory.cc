#include "gateway/prefix_memory.h"

#include <xxhash.h>

#include <algorithm>

namespace troupe {

std::vector<uint64_t> PrefixHashes(absl::Span<const uint32_t> token_ids) {
  std::vector<uint64_t> hashes;
  hashes.reserve(token_ids.size() / kPrefixBlockTokens);
  uint64_t hash = 0;
  for (size_t end = kPrefixBlockTokens; end <= token_ids.size();
       end += kPrefixBlockTokens) {
    hash = XXH3_64bits_withSeed(&token_ids[end - kPrefixBlockTokens],
                                kPrefixBlockTokens * sizeof(uint32_t), hash);
    hashes.push_back(hash);
  }
  return hashes;
}

void PrefixMemory::Remember(absl::Span<const uint64_t> prefix,
                            uint64_t router_id) {
  // From the end: the first blocks, which more prompts share, stay longest.
  for (auto hash = prefix.rbegin(); hash != prefix.rend(); ++hash) {
    const auto [entry, is_new] = blocks_.try_emplace(*hash);
    Block& block = entry->second;
    if (is_new) {
      block.use = uses_.insert(uses_.begin(), *hash);
    } else {
      uses_.splice(uses_.begin(), uses_, block.use);
    }
    if (std::find(block.router_ids.begin(), block.router_ids.end(),
                  router_id) == block.router_ids.end()) {
      block.router_ids.push_back(router_id);
    }
  }
  while (blocks_.size() > max_blocks_) {
    blocks_.erase(uses_.back());
    uses_.pop_back();
  }
}

size_t PrefixMemory::NumKnown(absl::Span<const uint64_t> prefix,
                              uint64_t router_id) const {
  size_t count = 0;
  for (const uint64_t hash : prefix) {
    const auto block = blocks_.find(hash);
    if (block == blocks_.end()) break;
    const std::vector<uint64_t>& ids = block->second.router_ids;
    if (std::find(ids.begin(), ids.end(), router_id) == ids.end()) break;
    ++count;
  }
  return count;
}

void PrefixMemory::Forget(uint64_t router_id) {
  for (auto entry = blocks_.begin(); entry != blocks_.end();) {
    std::vector<uint64_t>& ids = entry->second.router_ids;
    ids.erase(std::remove(ids.begin(), ids.end(), router_id), ids.end());
    const auto next = std::next(entry);
    if (ids.empty()) {
      uses_.erase(entry->second.use);
      blocks_.erase(entry);
    }
    entry = next;
  }
}

}  // namespace troupe
