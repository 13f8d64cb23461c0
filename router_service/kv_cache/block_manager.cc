#include "router_service/kv_cache/block_manager.h"

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace troupe {

BlockManager::BlockManager(size_t num_blocks) : in_use_(num_blocks, false) {
  free_.reserve(num_blocks);
  for (size_t i = num_blocks; i > 0; --i) {
    free_.push_back(static_cast<int32_t>(i - 1));
  }
}

bool BlockManager::Allocate(size_t count, std::vector<int32_t>& table) {
  if (count > free_.size()) return false;
  for (size_t i = 0; i < count; ++i) {
    const int32_t block = free_.back();
    free_.pop_back();
    in_use_[static_cast<size_t>(block)] = true;
    table.push_back(block);
  }
  return true;
}

void BlockManager::Free(std::vector<int32_t>& table) {
  for (const int32_t block : table) {
    CHECK(in_use_[static_cast<size_t>(block)]);
    in_use_[static_cast<size_t>(block)] = false;
    free_.push_back(block);
  }
  table.clear();
}

absl::Status BlockManager::CheckIntegrity(
    absl::Span<const std::vector<int32_t>* const> tables) const {
  std::vector<bool> seen(in_use_.size(), false);
  size_t num_seen = 0;
  for (const std::vector<int32_t>* table : tables) {
    for (const int32_t block : *table) {
      const size_t i = static_cast<size_t>(block);
      if (i >= in_use_.size() || seen[i] || !in_use_[i]) {
        return absl::InternalError(absl::StrCat(
            "KV block ", block, " is in a table but free, or in two tables"));
      }
      seen[i] = true;
      ++num_seen;
    }
  }
  if (num_seen + free_.size() != in_use_.size()) {
    return absl::InternalError(
        absl::StrCat(in_use_.size() - num_seen - free_.size(),
                     " KV blocks are neither free nor in a table"));
  }
  return absl::OkStatus();
}

}  // namespace troupe
