// Which KV blocks are free.
#ifndef TROUPE_ROUTER_SERVICE_KV_CACHE_BLOCK_MANAGER_H_
#define TROUPE_ROUTER_SERVICE_KV_CACHE_BLOCK_MANAGER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace troupe {

// Hands out block ids in [0, num_blocks). Not thread-safe: the serving loop's.
class BlockManager {
 public:
  explicit BlockManager(size_t num_blocks);

  size_t num_blocks() const { return in_use_.size(); }
  size_t num_free() const { return free_.size(); }

  // Appends `count` blocks to `table`; false, and nothing changes, when fewer
  // are free.
  bool Allocate(size_t count, std::vector<int32_t>& table);
  // Takes back all blocks of the table and empties it.
  void Free(std::vector<int32_t>& table);

  // Whether exactly the blocks of `tables` are in use, each once. Internal
  // names the first block that is not.
  absl::Status CheckIntegrity(
      absl::Span<const std::vector<int32_t>* const> tables) const;

 private:
  std::vector<int32_t> free_;  // the last one is handed out next
  std::vector<bool> in_use_;   // [num_blocks]
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_KV_CACHE_BLOCK_MANAGER_H_
