// Attention over a paged KV cache.
#ifndef TROUPE_KERNELS_ATTENTION_H_
#define TROUPE_KERNELS_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <span>

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
inline constexpr size_t kKvBlockSize = 16;
struct KvCacheView {
  float* keys = nullptr;
  float* values = nullptr;
  size_t num_kv_heads = 0;
  size_t head_dim = 0;

  size_t block_floats() const { return num_kv_heads * head_dim * kKvBlockSize; }
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
