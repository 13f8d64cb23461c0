// Which KV blocks are free, which are shared, and which prefixes they hold.
#ifndef TROUPE_ROUTER_SERVICE_KV_CACHE_BLOCK_MANAGER_H_
#define TROUPE_ROUTER_SERVICE_KV_CACHE_BLOCK_MANAGER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/attention.h"
#include "router_service/kv_cache/prefix_hash.h"

namespace troupe {

struct BlockManagerOptions {
  size_t num_blocks = 0;
  bool prefix_cache = true;
  // Copies keys and values of all layers from one block to another.
  std::function<void(int32_t from, int32_t to)> copy_block;
  // Replaced in tests, to see collisions.
  std::function<PrefixHash(const PrefixHash&, std::span<const int32_t>)>
      hash_block = &HashOfBlock;
};

// The tokens of one sequence, as the cache sees them. `tokens` may grow, never
// change.
struct PrefixKey {
  std::string salt;
  // False: its blocks are never found by others.
  bool publishes = true;
  // Of the sequence's full blocks, as far as they were asked for: each block is
  // hashed once.
  std::vector<PrefixHash> hashes;
  size_t num_published = 0;  // full blocks of the table
};

// What of a sequence is in the cache.
struct PrefixHit {
  std::vector<int32_t> blocks;  // full ones, to be shared
  int32_t tail = -1;            // a block whose first tokens go on from there
  size_t num_tail_tokens = 0;

  size_t num_tokens() const {
    return blocks.size() * kKvBlockSize + num_tail_tokens;
  }
};

struct PrefixCacheStats {
  uint64_t evictions = 0;   // cached blocks that were given to somebody
  uint64_t copies = 0;      // blocks copied to be written
  uint64_t duplicates = 0;  // blocks computed although another held them
  uint64_t hash_collisions = 0;
};

// Block ids in [0, num_blocks) and the prefixes that they hold.
//
// A table is the list of a sequence's blocks by position. Blocks are counted by
// the tables that hold them. What a sequence has computed is published: its
// full blocks can then stand in the tables of others, whose tokens begin
// alike. Nobody writes into a full block, so these are never copied. The last
// block of a sequence, which it goes on writing to, belongs to it alone: who
// finds the beginning of its own block in it (or in a full one) gets a copy.
//
// Published blocks form trees: a block's parent is the one before it. A prefix
// is found by a chain of hashes, and believed only if tokens, parent and salt
// are the same. Blocks that nobody holds stay where they are, in order of their
// last use; the one that is longest unused is taken when no block is empty. A
// table gives its blocks back from the last to the first, so that children go
// before their parents.
//
// Every operation costs no more than the blocks that it is about. Not
// thread-safe: the serving loop's.
class BlockManager {
 public:
  explicit BlockManager(BlockManagerOptions options);

  size_t num_blocks() const { return blocks_.size(); }
  // That nobody holds, those of the next line included.
  size_t num_free() const { return empty_.size() + num_cached_; }
  // That nobody holds and that hold a prefix.
  size_t num_cached() const { return num_cached_; }
  const PrefixCacheStats& stats() const { return stats_; }

  // Appends `count` blocks to `table`; false, and nothing changes, when fewer
  // are free.
  bool Allocate(size_t count, std::vector<int32_t>& table);
  // Gives all blocks of the table back and empties it.
  void Free(PrefixKey& key, std::vector<int32_t>& table);

  // The longest beginning of `tokens`, at most `limit` tokens, that is cached.
  // Valid until the next call of another function.
  PrefixHit Find(PrefixKey& key, std::span<const int32_t> tokens, size_t limit);
  // Fills an empty table with the blocks of `hit` and `count` more, the first
  // of them a copy of the tail; false, and the table stays empty, when fewer
  // are free. count > 0.
  bool Adopt(PrefixKey& key, const PrefixHit& hit, size_t count,
             std::vector<int32_t>& table);
  // Keys and values of the first `num_computed` tokens are there now. A block
  // that is a duplicate of a cached one is given back, and the table shares
  // the other: their bits are equal (docs/architecture.md).
  void Publish(PrefixKey& key, std::span<const int32_t> tokens,
               size_t num_computed, std::vector<int32_t>& table);
  // The hash of the k-th block of tokens, which is full.
  const PrefixHash& HashOf(PrefixKey& key, std::span<const int32_t> tokens,
                           size_t k) const;

  // Whether exactly the blocks of `tables` are held, each as often as it
  // stands in one; and whether trees, hashes and the order of eviction are
  // sound. Internal names the first block that is not.
  absl::Status CheckIntegrity(
      absl::Span<const std::vector<int32_t>* const> tables) const;

 private:
  static constexpr int32_t kNone = -1;
  // Siblings in which a tail is looked for, the latest first.
  static constexpr int kMaxSiblings = 16;

  // Neighbours in a doubly linked list.
  struct Links {
    int32_t previous = kNone;
    int32_t next = kNone;
  };
  struct List {
    int32_t first = kNone;
    int32_t last = kNone;
  };
  struct Block {
    uint32_t num_tables = 0;
    // Published tokens; kKvBlockSize: it is in index_ and may have children.
    uint32_t num_tokens = 0;
    std::array<int32_t, kKvBlockSize> tokens;
    PrefixHash hash;         // of a full one
    int32_t parent = kNone;  // kNone: the first block of its prefix
    std::string salt;        // of a first block
    List children;           // the latest first
    Links siblings;
    Links use;  // in by_use_ while nobody holds it
  };

  Block& At(int32_t block) { return blocks_[static_cast<size_t>(block)]; }
  const Block& At(int32_t block) const {
    return blocks_[static_cast<size_t>(block)];
  }
  List& ChildrenOf(int32_t parent) {
    return parent == kNone ? roots_ : At(parent).children;
  }
  // Appends to the end.
  void Link(List& list, Links Block::*links, int32_t block);
  void LinkFirst(List& list, Links Block::*links, int32_t block);
  void Unlink(List& list, Links Block::*links, int32_t block);

  void Hold(int32_t block);
  void Release(int32_t block);
  // Takes the block out of its tree.
  void Forget(int32_t block);
  // Makes the block's first tokens known, more than there were.
  void SetTokens(int32_t block, int32_t parent, const std::string& salt,
                 std::span<const int32_t> tokens);
  bool Holds(int32_t block, int32_t parent, const std::string& salt,
             std::span<const int32_t> tokens) const;
  absl::Status CheckTrees() const;
  absl::Status CheckOrderOfUse(size_t* num_cached) const;

  const BlockManagerOptions options_;
  std::vector<Block> blocks_;
  std::vector<int32_t> empty_;  // the last one is handed out next
  List by_use_;                 // longest unused first
  size_t num_cached_ = 0;       // length of by_use_
  List roots_;                  // first blocks of all salts
  absl::flat_hash_map<PrefixHash, int32_t> index_;  // full published blocks
  PrefixCacheStats stats_;
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_KV_CACHE_BLOCK_MANAGER_H_
