// Speed of attention over the paged cache as a fraction of what the machine
// gives: prefill of one sequence in chunks of 512 rows, decode of many, each
// with keys and values of its own. 16 query and 4 KV heads of 64, 12 layers of
// cache in turn, so that it comes from memory as it does in a model. Usage:
// attention_bench [threads]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/aligned_memory.h"
#include "kernels/attention.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu_features.h"
#include "tools/bench/machine_peak.h"

namespace troupe {
namespace {

constexpr size_t kHeads = 16;
constexpr size_t kKvHeads = 4;
constexpr size_t kHeadDim = 64;
constexpr size_t kNumLayers = 12;

struct Shape {
  size_t num_sequences;
  size_t rows;       // of each
  size_t positions;  // of each, the rows included
};

// The median seconds of run(i).
template <typename Run>
double MedianSeconds(const Run& run) {
  std::vector<double> seconds;
  double total = 0;
  for (size_t i = 0; i < 5 || (total < 0.5 && i < 400); ++i) {
    const auto start = std::chrono::steady_clock::now();
    run(i);
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - start;
    seconds.push_back(elapsed.count());
    total += elapsed.count();
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2,
                   seconds.end());
  return seconds[seconds.size() / 2];
}

void Bench(const Shape& shape, DataType dtype, double peak_bytes,
           double peak_flops, ThreadPool& pool) {
  const size_t table_size = shape.positions / kKvBlockSize;
  const size_t num_blocks = shape.num_sequences * table_size;
  KvCacheView cache;
  cache.dtype = dtype;
  cache.num_kv_heads = kKvHeads;
  cache.head_dim = kHeadDim;
  const size_t layer_bytes = num_blocks * cache.block_bytes();
  // A large cache is its own layers.
  const size_t num_layers = std::min<size_t>(
      kNumLayers, std::max<size_t>(1, (size_t{1} << 30) / (2 * layer_bytes)));
  // In huge pages, as the router's; some small numbers of both formats.
  const size_t num_bytes = num_layers * layer_bytes;
  auto* const keys = static_cast<uint8_t*>(AllocateAligned(num_bytes));
  auto* const values = static_cast<uint8_t*>(AllocateAligned(num_bytes));
  std::memset(keys, 0x3c, num_bytes);
  std::memset(values, 0x3c, num_bytes);
  std::vector<int32_t> blocks(num_blocks);
  for (size_t i = 0; i < num_blocks; ++i) blocks[i] = static_cast<int32_t>(i);
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937(1));
  std::vector<AttentionSequence> sequences;
  for (size_t i = 0; i < shape.num_sequences; ++i) {
    sequences.push_back({std::span(blocks).subspan(i * table_size, table_size),
                         i * shape.rows, shape.rows,
                         shape.positions - shape.rows});
  }
  const size_t num_rows = shape.num_sequences * shape.rows;
  std::vector<float> queries(num_rows * kHeads * kHeadDim);
  std::mt19937 random(2);
  for (float& q : queries) q = static_cast<float>(random() % 2000) * 1e-3f - 1;
  std::vector<float> output(queries.size());
  Workspace workspace;
  const double seconds = MedianSeconds([&](size_t i) {
    cache.keys = keys + i % num_layers * layer_bytes;
    cache.values = values + i % num_layers * layer_bytes;
    PagedAttention(
        ConstFloatMatrix(queries.data(), num_rows, kHeads * kHeadDim), kHeads,
        0.125f, 0, sequences, cache,
        FloatMatrix(output.data(), num_rows, kHeads * kHeadDim), workspace,
        pool);
  });
  FreeAligned(keys);
  FreeAligned(values);
  const double mean_positions = static_cast<double>(shape.positions) -
                                (static_cast<double>(shape.rows) - 1) / 2;
  const double flops =
      4.0 * static_cast<double>(num_rows * kHeads * kHeadDim) * mean_positions;
  const double bytes = 2.0 * static_cast<double>(layer_bytes);
  std::printf("%-9s %9zu %5zu %9zu %9.3f %8.1f (%3.0f%%) %8.1f (%3.0f%%)\n",
              Name(dtype), shape.num_sequences, shape.rows, shape.positions,
              seconds * 1e3, bytes / seconds / 1e9,
              100 * bytes / seconds / peak_bytes, flops / seconds / 1e9,
              100 * flops / seconds / peak_flops);
}

int Main(int argc, char** argv) {
  const std::string missing = MissingCpuFeatures();
  if (!missing.empty()) {
    std::fprintf(stderr, "%s\n", missing.c_str());
    return 1;
  }
  ThreadPool pool(argc > 1 ? std::max(1, std::atoi(argv[1]))
                           : AvailableThreads());
  const double peak_bytes = MeasureReadBandwidth(pool).best;
  const double peak_flops = MeasurePeakFlops(pool);
  std::printf("%s, %zu threads; peak %.1f GB/s, %.1f GFLOP/s\n",
              ChosenInstructionSet().c_str(), pool.num_threads(),
              peak_bytes / 1e9, peak_flops / 1e9);
  std::printf("%-9s %9s %5s %9s %9s %15s %15s\n", "cache", "sequences", "rows",
              "positions", "ms", "GB/s (peak)", "GFLOP/s (peak)");
  for (const DataType dtype : {DataType::kF32, DataType::kBF16}) {
    for (const Shape& shape : {Shape{1, 512, 512},
                               {1, 512, 4096},
                               {1, 1, 128},
                               {1, 1, 1024},
                               {1, 1, 4096},
                               {8, 1, 128},
                               {8, 1, 1024},
                               {8, 1, 4096},
                               {32, 1, 128},
                               {32, 1, 1024},
                               {32, 1, 4096}}) {
      Bench(shape, dtype, peak_bytes, peak_flops, pool);
    }
  }
  return 0;
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) { return troupe::Main(argc, argv); }
