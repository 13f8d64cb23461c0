#include "router_service/kv_cache/block_manager.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace troupe {
namespace {

size_t NumEqual(std::span<const int32_t> a, std::span<const int32_t> b) {
  size_t i = 0;
  while (i < a.size() && i < b.size() && a[i] == b[i]) ++i;
  return i;
}

}  // namespace

BlockManager::BlockManager(BlockManagerOptions options)
    : options_(std::move(options)), blocks_(options_.num_blocks) {
  empty_.reserve(blocks_.size());
  for (size_t i = blocks_.size(); i > 0; --i) {
    empty_.push_back(static_cast<int32_t>(i - 1));
  }
}

bool BlockManager::Allocate(size_t count, std::vector<int32_t>& table) {
  if (count > num_free()) return false;
  for (size_t i = 0; i < count; ++i) {
    if (empty_.empty()) {
      const int32_t unused = by_use_.first;
      CHECK(At(unused).children.first == kNone);
      Unlink(by_use_, &Block::use, unused);
      --num_cached_;
      Forget(unused);
      empty_.push_back(unused);
      ++stats_.evictions;
    }
    const int32_t block = empty_.back();
    empty_.pop_back();
    At(block).num_tables = 1;
    table.push_back(block);
  }
  return true;
}

void BlockManager::Free(PrefixKey& key, std::vector<int32_t>& table) {
  // Children are unused before their parents.
  for (size_t i = table.size(); i > 0; --i) Release(table[i - 1]);
  table.clear();
  key.num_published = 0;
  key.publishes = true;
}

PrefixHit BlockManager::Find(PrefixKey& key, std::span<const int32_t> tokens,
                             size_t limit) {
  PrefixHit hit;
  if (!options_.prefix_cache) return hit;
  limit = std::min(limit, tokens.size());
  int32_t parent = kNone;
  size_t begin = 0;
  for (; begin + kKvBlockSize <= limit; begin += kKvBlockSize) {
    const auto found = index_.find(HashOf(key, tokens, hit.blocks.size()));
    if (found == index_.end()) break;
    if (!Holds(found->second, parent, key.salt,
               tokens.subspan(begin, kKvBlockSize))) {
      ++stats_.hash_collisions;
      break;
    }
    parent = found->second;
    hit.blocks.push_back(parent);
  }
  const std::span<const int32_t> rest = tokens.subspan(begin, limit - begin);
  int32_t child = ChildrenOf(parent).first;
  for (int i = 0; i < kMaxSiblings && child != kNone; ++i) {
    const Block& block = At(child);
    const size_t num_equal =
        NumEqual(rest, std::span(block.tokens).first(block.num_tokens));
    if (num_equal > hit.num_tail_tokens &&
        (parent != kNone || block.salt == key.salt)) {
      hit.tail = child;
      hit.num_tail_tokens = num_equal;
    }
    child = block.siblings.next;
  }
  return hit;
}

bool BlockManager::Adopt(PrefixKey& key, const PrefixHit& hit, size_t count,
                         std::vector<int32_t>& table) {
  CHECK(table.empty());
  CHECK(count > 0);
  for (const int32_t block : hit.blocks) Hold(block);
  table = hit.blocks;
  if (hit.tail != kNone && At(hit.tail).num_tables == 0) {
    Unlink(by_use_, &Block::use, hit.tail);  // used just now
    Link(by_use_, &Block::use, hit.tail);
  }
  if (!Allocate(count, table)) {
    Free(key, table);
    return false;
  }
  key.num_published = hit.blocks.size();
  const int32_t written = table[hit.blocks.size()];
  // The tail itself may have been taken; then it is where it should be.
  if (hit.tail != kNone && hit.tail != written) {
    options_.copy_block(hit.tail, written);
    ++stats_.copies;
  }
  return true;
}

void BlockManager::Publish(PrefixKey& key, std::span<const int32_t> tokens,
                           size_t num_computed, std::vector<int32_t>& table) {
  if (!options_.prefix_cache || !key.publishes) return;
  CHECK_LE(num_computed, tokens.size());
  const size_t num_full = num_computed / kKvBlockSize;
  for (; key.num_published < num_full; ++key.num_published) {
    const size_t k = key.num_published;
    const int32_t parent = k == 0 ? kNone : table[k - 1];
    const std::span<const int32_t> own =
        tokens.subspan(k * kKvBlockSize, kKvBlockSize);
    const PrefixHash& hash = HashOf(key, tokens, k);
    const auto [entry, is_new] = index_.try_emplace(hash, table[k]);
    if (is_new) {
      SetTokens(table[k], parent, key.salt, own);
      At(table[k]).hash = hash;
      continue;
    }
    const int32_t first = entry->second;
    if (!Holds(first, parent, key.salt, own)) {
      // What follows would have a parent that nobody can find.
      ++stats_.hash_collisions;
      if (At(table[k]).num_tokens > 0) Forget(table[k]);
      key.publishes = false;
      return;
    }
    // This one is dropped, not cached.
    if (At(table[k]).num_tokens > 0) Forget(table[k]);
    Release(table[k]);
    Hold(first);
    table[k] = first;
    ++stats_.duplicates;
  }
  const size_t begin = num_full * kKvBlockSize;
  if (num_computed > begin) {
    const int32_t parent = num_full == 0 ? kNone : table[num_full - 1];
    SetTokens(table[num_full], parent, key.salt,
              tokens.subspan(begin, num_computed - begin));
  }
}

const PrefixHash& BlockManager::HashOf(PrefixKey& key,
                                       std::span<const int32_t> tokens,
                                       size_t k) const {
  while (key.hashes.size() <= k) {
    const size_t next = key.hashes.size();
    key.hashes.push_back(options_.hash_block(
        next == 0 ? HashOfRoot(key.salt) : key.hashes.back(),
        tokens.subspan(next * kKvBlockSize, kKvBlockSize)));
  }
  return key.hashes[k];
}

void BlockManager::Link(List& list, Links Block::*links, int32_t block) {
  At(block).*links = {list.last, kNone};
  (list.last == kNone ? list.first : (At(list.last).*links).next) = block;
  list.last = block;
}

void BlockManager::LinkFirst(List& list, Links Block::*links, int32_t block) {
  At(block).*links = {kNone, list.first};
  (list.first == kNone ? list.last : (At(list.first).*links).previous) = block;
  list.first = block;
}

void BlockManager::Unlink(List& list, Links Block::*links, int32_t block) {
  const Links out = std::exchange(At(block).*links, Links());
  (out.previous == kNone ? list.first : (At(out.previous).*links).next) =
      out.next;
  (out.next == kNone ? list.last : (At(out.next).*links).previous) =
      out.previous;
}

void BlockManager::Hold(int32_t block) {
  if (At(block).num_tables++ == 0) {
    Unlink(by_use_, &Block::use, block);
    --num_cached_;
  }
}

void BlockManager::Release(int32_t block) {
  CHECK(At(block).num_tables > 0);
  if (--At(block).num_tables > 0) return;
  if (At(block).num_tokens == 0) {
    empty_.push_back(block);
  } else {
    Link(by_use_, &Block::use, block);
    ++num_cached_;
  }
}

void BlockManager::Forget(int32_t block) {
  Block& forgotten = At(block);
  Unlink(ChildrenOf(forgotten.parent), &Block::siblings, block);
  if (forgotten.num_tokens == kKvBlockSize) index_.erase(forgotten.hash);
  forgotten.num_tokens = 0;
  forgotten.parent = kNone;
  forgotten.salt.clear();
}

void BlockManager::SetTokens(int32_t block, int32_t parent,
                             const std::string& salt,
                             std::span<const int32_t> tokens) {
  Block& published = At(block);
  if (published.num_tokens == 0) {
    published.parent = parent;
    if (parent == kNone) published.salt = salt;
    LinkFirst(ChildrenOf(parent), &Block::siblings, block);
  }
  CHECK(published.parent == parent);
  std::copy(tokens.begin() + published.num_tokens, tokens.end(),
            published.tokens.begin() + published.num_tokens);
  published.num_tokens = static_cast<uint32_t>(tokens.size());
}

bool BlockManager::Holds(int32_t block, int32_t parent, const std::string& salt,
                         std::span<const int32_t> tokens) const {
  const Block& b = At(block);
  return b.parent == parent && b.num_tokens == tokens.size() &&
         (parent != kNone || b.salt == salt) &&
         std::equal(tokens.begin(), tokens.end(), b.tokens.begin());
}

absl::Status BlockManager::CheckIntegrity(
    absl::Span<const std::vector<int32_t>* const> tables) const {
  std::vector<uint32_t> num_tables(blocks_.size(), 0);
  for (const std::vector<int32_t>* table : tables) {
    int32_t previous = kNone;
    for (const int32_t block : *table) {
      const size_t i = static_cast<size_t>(block);
      if (i >= blocks_.size() || blocks_[i].num_tables == 0) {
        return absl::InternalError(
            absl::StrCat("KV block ", block, " is in a table but free"));
      }
      if (blocks_[i].num_tokens > 0 && blocks_[i].parent != previous) {
        return absl::InternalError(
            absl::StrCat("KV block ", block, " follows ", previous,
                         " in a table, but its parent is ", blocks_[i].parent));
      }
      ++num_tables[i];
      previous = block;
    }
  }
  size_t num_held = 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i].num_tables != num_tables[i]) {
      return absl::InternalError(
          absl::StrCat("KV block ", i, " counts ", blocks_[i].num_tables,
                       " tables, but is in ", num_tables[i]));
    }
    // Full ones may have been forgotten since they were shared.
    if (num_tables[i] > 1 && blocks_[i].num_tokens > 0 &&
        blocks_[i].num_tokens < kKvBlockSize) {
      return absl::InternalError(
          absl::StrCat("KV block ", i, " is in ", num_tables[i],
                       " tables, but may still be written"));
    }
    num_held += num_tables[i] > 0;
  }
  for (const int32_t block : empty_) {
    if (At(block).num_tables > 0 || At(block).num_tokens > 0) {
      return absl::InternalError(
          absl::StrCat("KV block ", block, " is not empty"));
    }
  }
  size_t num_cached = 0;
  absl::Status status = CheckOrderOfUse(&num_cached);
  if (status.ok()) status = CheckTrees();
  if (!status.ok()) return status;
  if (num_cached != num_cached_ ||
      num_held + num_cached + empty_.size() != blocks_.size()) {
    return absl::InternalError(
        absl::StrCat("of ", blocks_.size(), " KV blocks ", num_held,
                     " are held, ", num_cached, " cached (", num_cached_,
                     " counted) and ", empty_.size(), " empty"));
  }
  return absl::OkStatus();
}

absl::Status BlockManager::CheckOrderOfUse(size_t* num_cached) const {
  std::vector<bool> seen(blocks_.size(), false);
  int32_t previous = kNone;
  *num_cached = 0;
  for (int32_t block = by_use_.first; block != kNone;
       block = At(block).use.next) {
    const Block& b = At(block);
    if (b.num_tables > 0 || b.num_tokens == 0 || b.use.previous != previous ||
        seen[static_cast<size_t>(block)]) {
      return absl::InternalError(absl::StrCat(
          "KV block ", block, " is in the order of use, but not cached"));
    }
    if (b.parent != kNone && seen[static_cast<size_t>(b.parent)]) {
      return absl::InternalError(absl::StrCat(
          "KV block ", block, " would be evicted after its parent ", b.parent));
    }
    seen[static_cast<size_t>(block)] = true;
    previous = block;
    ++*num_cached;
  }
  if (previous != by_use_.last) {
    return absl::InternalError("the order of use ends too early");
  }
  return absl::OkStatus();
}

absl::Status BlockManager::CheckTrees() const {
  const std::string no_salt;
  size_t num_published = 0;
  size_t num_full = 0;
  const auto check_children = [&](int32_t parent) {
    int32_t previous = kNone;
    const List& children = parent == kNone ? roots_ : At(parent).children;
    for (int32_t child = children.first; child != kNone;
         child = At(child).siblings.next) {
      const Block& b = At(child);
      if (b.num_tokens == 0 || b.parent != parent ||
          b.siblings.previous != previous || num_published++ > blocks_.size()) {
        return absl::InternalError(absl::StrCat(
            "KV block ", child, " is not a child of KV block ", parent));
      }
      previous = child;
    }
    return previous == children.last
               ? absl::OkStatus()
               : absl::InternalError(absl::StrCat("the children of KV block ",
                                                  parent, " end too early"));
  };
  absl::Status status = check_children(kNone);
  size_t num_with_tokens = 0;
  for (size_t i = 0; i < blocks_.size() && status.ok(); ++i) {
    const Block& b = blocks_[i];
    num_with_tokens += b.num_tokens > 0;
    status = check_children(static_cast<int32_t>(i));
    if (b.num_tokens < kKvBlockSize) {
      if (b.children.first != kNone) {
        return absl::InternalError(
            absl::StrCat("KV block ", i, " is not full but has children"));
      }
      continue;
    }
    ++num_full;
    const auto entry = index_.find(b.hash);
    const PrefixHash hash = options_.hash_block(
        b.parent == kNone ? HashOfRoot(b.salt) : At(b.parent).hash, b.tokens);
    if (entry == index_.end() || entry->second != static_cast<int32_t>(i) ||
        hash != b.hash) {
      return absl::InternalError(
          absl::StrCat("KV block ", i, " is not found by its hash"));
    }
    if (b.parent != kNone && b.num_tables > At(b.parent).num_tables) {
      return absl::InternalError(absl::StrCat("KV block ", i,
                                              " is in more tables than its "
                                              "parent ",
                                              b.parent));
    }
  }
  if (!status.ok()) return status;
  if (num_published != num_with_tokens || num_full != index_.size()) {
    return absl::InternalError(
        absl::StrCat("of ", num_with_tokens, " published KV blocks ",
                     num_published, " are in trees, of ", num_full, " full ",
                     index_.size(), " in the index"));
  }
  return absl::OkStatus();
}

}  // namespace troupe
