// Speed of the GEMM and of the grouped experts as a fraction of what the
// machine gives. The shape is that of a Mixtral of one billion parameters;
// several layers of weights, so that they come from memory as they do in a
// model. Usage: kernel_bench [threads [bf16|f16|f32 [isa]]]
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu_features.h"
#include "kernels/expert_ffn.h"
#include "kernels/gemm.h"
#include "tools/bench/machine_peak.h"

namespace troupe {
namespace {

constexpr size_t kHiddenSize = 1024;
constexpr size_t kIntermediateSize = 2816;
constexpr size_t kNumExperts = 8;
constexpr size_t kTopK = 2;
constexpr size_t kNumLayers = 4;

struct Peak {
  double bytes_per_second;
  double flops_per_second;
};

// Weights of one layer as they come from a checkpoint; any finite numbers do.
std::vector<uint8_t> RandomWeights(DataType dtype, size_t count) {
  std::vector<uint8_t> bytes(count * SizeOf(dtype));
  uint32_t state = 1;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = static_cast<float>(state >> 8) * 0x1p-28f - 0x1p-5f;
    uint16_t half = 0;
    switch (dtype) {
      case DataType::kF32:
        std::memcpy(&bytes[i * 4], &value, 4);
        continue;
      case DataType::kBF16:
        half = BF16FromF32(value);
        break;
      case DataType::kF16:
        half = F16FromF32(value);
        break;
    }
    std::memcpy(&bytes[i * 2], &half, 2);
  }
  return bytes;
}

// The least seconds of run(i), like the peaks; i counts up so that a run can
// use other weights than the last.
template <typename Run>
double BestSeconds(const Run& run) {
  double best = 1e30;
  double total = 0;
  for (size_t i = 0; i < 4 || (total < 1.0 && i < 400); ++i) {
    const auto start = std::chrono::steady_clock::now();
    run(i);
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - start;
    best = std::min(best, elapsed.count());
    total += elapsed.count();
  }
  return best;
}

void Print(const char* name, size_t rows, double seconds, double bytes,
           double flops, const Peak& peak) {
  std::printf("%-20s %5zu %10.3f %9.1f (%3.0f%%) %9.1f (%3.0f%%)\n", name, rows,
              seconds * 1e3, bytes / seconds / 1e9,
              100 * bytes / seconds / peak.bytes_per_second,
              flops / seconds / 1e9,
              100 * flops / seconds / peak.flops_per_second);
}

void BenchGemm(const char* name, DataType dtype, size_t n, size_t k,
               const Peak& peak, ThreadPool& pool) {
  const std::vector<uint8_t> source = RandomWeights(dtype, n * k);
  // Enough copies to be larger than any cache.
  const size_t copies =
      std::max<size_t>(1, (size_t{768} << 20) / source.size());
  std::vector<PackedMatrix> weights;
  for (size_t i = 0; i < copies; ++i) {
    weights.push_back(PackedMatrix::Pack(dtype, source.data(), n, k, pool));
  }
  Workspace workspace;
  for (const size_t rows : {1, 4, 8, 32, 512}) {
    const std::vector<float> input(rows * k, 0.5f);
    std::vector<float> output(rows * n);
    const double seconds = BestSeconds([&](size_t i) {
      Gemm(ConstFloatMatrix(input.data(), rows, k), weights[i % copies],
           nullptr, FloatMatrix(output.data(), rows, n), workspace, pool);
    });
    Print(name, rows, seconds, static_cast<double>(source.size()),
          2.0 * rows * n * k, peak);
  }
}

void BenchExperts(DataType dtype, const Peak& peak, ThreadPool& pool) {
  const size_t count = kHiddenSize * kIntermediateSize;
  const std::vector<uint8_t> source = RandomWeights(dtype, count);
  std::vector<GatedMlpWeights> weights(kNumLayers * kNumExperts);
  const auto start = std::chrono::steady_clock::now();
  for (GatedMlpWeights& w : weights) {
    w.gate_up = PackedMatrix::PackGateUp(dtype, source.data(), source.data(),
                                         kIntermediateSize, kHiddenSize, pool);
    w.down = PackedMatrix::Pack(dtype, source.data(), kHiddenSize,
                                kIntermediateSize, pool);
  }
  const std::chrono::duration<double> elapsed =
      std::chrono::steady_clock::now() - start;
  const double expert_bytes = 3.0 * static_cast<double>(source.size());
  std::printf("packing: %.1f GB/s of source\n",
              expert_bytes * weights.size() / elapsed.count() / 1e9);

  Workspace workspace;
  for (const size_t rows : {1, 8, 32, 512}) {
    const std::vector<float> input(rows * kHiddenSize, 0.5f);
    std::vector<float> output(rows * kTopK * kHiddenSize);
    // Each token goes to two different experts at random.
    std::mt19937 generator(3);
    std::vector<std::vector<uint32_t>> rows_of_expert(kNumExperts);
    for (uint32_t r = 0; r < rows; ++r) {
      const size_t first = generator() % kNumExperts;
      const size_t second =
          (first + 1 + generator() % (kNumExperts - 1)) % kNumExperts;
      rows_of_expert[first].push_back(r);
      rows_of_expert[second].push_back(r);
    }
    std::vector<uint32_t> row_of_copy;
    std::vector<uint32_t> expert_offsets = {0};
    size_t active = 0;
    for (const std::vector<uint32_t>& copies : rows_of_expert) {
      row_of_copy.insert(row_of_copy.end(), copies.begin(), copies.end());
      expert_offsets.push_back(static_cast<uint32_t>(row_of_copy.size()));
      if (!copies.empty()) ++active;
    }
    const double seconds = BestSeconds([&](size_t i) {
      const GatedMlpWeights* experts[kNumExperts];
      for (size_t e = 0; e < kNumExperts; ++e) {
        experts[e] = &weights[i % kNumLayers * kNumExperts + e];
      }
      GroupedGatedMlp(ConstFloatMatrix(input.data(), rows, kHiddenSize),
                      row_of_copy, expert_offsets, experts,
                      FloatMatrix(output.data(), rows * kTopK, kHiddenSize),
                      workspace, pool);
    });
    Print("grouped experts", rows, seconds, expert_bytes * active,
          6.0 * rows * kTopK * count, peak);
  }
}

// Attention with 16 query and 4 KV heads of 64: decode of one row and prefill.
void BenchAttention(const Peak& peak, ThreadPool& pool) {
  constexpr size_t kHeads = 16;
  constexpr size_t kKvHeads = 4;
  constexpr size_t kHeadDim = 64;
  Workspace workspace;
  struct Shape {
    size_t rows;
    size_t positions;
  };
  for (const Shape& shape : {Shape{1, 4096}, {512, 512}, {512, 4096}}) {
    const size_t rows = shape.rows;
    const size_t positions = shape.positions;
    const size_t num_blocks = positions / kKvBlockSize;
    KvCacheView cache{nullptr, nullptr, kKvHeads, kHeadDim};
    std::vector<float> keys(num_blocks * cache.block_floats(), 0.01f);
    std::vector<float> values(keys.size(), 0.5f);
    cache.keys = keys.data();
    cache.values = values.data();
    std::vector<int32_t> table(num_blocks);
    for (size_t i = 0; i < num_blocks; ++i) table[i] = static_cast<int32_t>(i);
    const AttentionSequence sequence{table, 0, rows, positions - rows};
    const std::vector<float> queries(rows * kHeads * kHeadDim, 0.3f);
    std::vector<float> output(queries.size());
    const double seconds = BestSeconds([&](size_t i) {
      PagedAttention(ConstFloatMatrix(queries.data(), rows, kHeads * kHeadDim),
                     kHeads, 0.125f, 0, std::span(&sequence, 1), cache,
                     FloatMatrix(output.data(), rows, kHeads * kHeadDim),
                     workspace, pool);
    });
    const double mean_positions =
        static_cast<double>(positions) - static_cast<double>(rows) / 2;
    const std::string name = "attention to " + std::to_string(positions);
    Print(name.c_str(), rows, seconds, 8.0 * static_cast<double>(keys.size()),
          4.0 * rows * kHeads * kHeadDim * mean_positions, peak);
  }
}

int Main(int argc, char** argv) {
  const std::string missing = MissingCpuFeatures();
  if (!missing.empty()) {
    std::fprintf(stderr, "%s\n", missing.c_str());
    return 1;
  }
  const size_t threads =
      argc > 1 ? std::max(1, std::atoi(argv[1])) : AvailableThreads();
  DataType dtype = DataType::kBF16;
  if (argc > 2 && std::strcmp(argv[2], "f16") == 0) dtype = DataType::kF16;
  if (argc > 2 && std::strcmp(argv[2], "f32") == 0) dtype = DataType::kF32;
  if (argc > 3) UseInstructionSetForTest(argv[3]);

  ThreadPool pool(threads);
  const Peak peak = {MeasureReadBandwidth(pool), MeasurePeakFlops(pool)};
  std::printf("%s, %zu threads, weights %s; peak %.1f GB/s, %.1f GFLOP/s\n",
              ChosenInstructionSet().c_str(), threads, Name(dtype),
              peak.bytes_per_second / 1e9, peak.flops_per_second / 1e9);
  std::printf("%-20s %5s %10s %16s %16s\n", "", "rows", "ms", "GB/s (of peak)",
              "GFLOP/s (peak)");
  BenchGemm("gemm 32000 x 1024", dtype, 32000, kHiddenSize, peak, pool);
  BenchGemm("gemm 1024 x 1024", dtype, 1024, kHiddenSize, peak, pool);
  BenchExperts(dtype, peak, pool);
  BenchAttention(peak, pool);
  return 0;
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) { return troupe::Main(argc, argv); }
