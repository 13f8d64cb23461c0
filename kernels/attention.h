// Attention over a paged KV cache.
#ifndef TROUPE_KERNELS_ATTENTION_H_
#define TROUPE_KERNELS_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/dtype.h"
#include "common/thread_pool.h"
#include "common/views.h"
#include "kernels/workspace.h"

namespace troupe {

// The KV cache of one layer. A block holds kKvBlockSize consecutive positions
// of one sequence, aligned: position p lies in block table[p / kKvBlockSize]
// at slot p % kKvBlockSize.
// keys   [num_blocks][num_kv_heads][head_dim][kKvBlockSize]: lanes across
//        positions, one chain along head_dim for each score
// values [num_blocks][num_kv_heads][kKvBlockSize][head_dim]
// In bfloat16 two lines (of keys: dimensions 2i and 2i + 1, of values:
// positions) are one line of 32-bit words, the even one in the lower halves: a
// shift and a mask widen them. An odd head_dim has one more line of keys, of
// zeros. Numbers are rounded to nearest even when they are written.
inline constexpr size_t kKvBlockSize = 16;
struct KvCacheView {
  DataType dtype = DataType::kF32;  // or kBF16
  uint8_t* keys = nullptr;
  uint8_t* values = nullptr;
  size_t num_kv_heads = 0;
  size_t head_dim = 0;

  // Of keys or values of one head in one block.
  size_t tile_bytes() const {
    const size_t lines =
        dtype == DataType::kBF16 ? head_dim + head_dim % 2 : head_dim;
    return lines * kKvBlockSize * SizeOf(dtype);
  }
  // Of keys or values of one block.
  size_t block_bytes() const { return num_kv_heads * tile_bytes(); }
};

// The rows of one sequence in a batch: consecutive positions, consecutive rows.
struct AttentionSequence {
  std::span<const int32_t> block_table;  // covers first_position + num_rows
  size_t first_row = 0;
  size_t num_rows = 0;
  size_t first_position = 0;
};

// Writes keys and values [num_rows, num_kv_heads * head_dim] of the batch to
// the blocks of their sequences.
void WriteKvCache(ConstFloatMatrix keys, ConstFloatMatrix values,
                  std::span<const AttentionSequence> sequences,
                  const KvCacheView& cache, ThreadPool& pool);

// queries, output [num_rows, num_heads * head_dim]; num_heads is a multiple of
// num_kv_heads. Each row attends to positions max(0, p - window + 1) .. p of
// its own sequence; window 0 means all. `scale` multiplies the scores.
// Softmax is computed online over tiles of kKvBlockSize positions, aligned by
// absolute position, in ascending order: a row's bits depend only on its own
// position, query and cache, whatever the chunks of prefill.
void PagedAttention(ConstFloatMatrix queries, size_t num_heads, float scale,
                    size_t window, std::span<const AttentionSequence> sequences,
                    const KvCacheView& cache, FloatMatrix output,
                    Workspace& workspace, ThreadPool& pool);

}  // namespace troupe

#endif  // TROUPE_KERNELS_ATTENTION_H_
