// Which routers have seen which beginnings of prompts.
#ifndef TROUPE_GATEWAY_PREFIX_MEMORY_H_
#define TROUPE_GATEWAY_PREFIX_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"

namespace troupe {

// A prefix is known by whole blocks of so many tokens.
inline constexpr size_t kPrefixBlockTokens = 64;

// One per whole block: of all tokens up to its end, so that two sequences have
// the same i-th hash exactly if they begin with the same i + 1 blocks (but for
// collisions of 64 bits, which cost a cached prefix and nothing else).
std::vector<uint64_t> PrefixHashes(absl::Span<const uint32_t> token_ids);

// A guess at the routers' prefix caches from what was sent there: bounded, the
// least recently used block goes first. Not thread-safe.
class PrefixMemory {
 public:
  explicit PrefixMemory(size_t max_blocks) : max_blocks_(max_blocks) {}

  void Remember(absl::Span<const uint64_t> prefix, uint64_t router_id);
  // Blocks at the beginning that the router has seen.
  size_t NumKnown(absl::Span<const uint64_t> prefix, uint64_t router_id) const;
  // Its cache is gone.
  void Forget(uint64_t router_id);

  size_t num_blocks() const { return blocks_.size(); }

 private:
  struct Block {
    std::vector<uint64_t> router_ids;
    std::list<uint64_t>::iterator use;  // in uses_
  };

  const size_t max_blocks_;
  absl::flat_hash_map<uint64_t, Block> blocks_;
  std::list<uint64_t> uses_;  // hashes, the latest first
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_PREFIX_MEMORY_H_
