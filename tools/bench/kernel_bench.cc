// Speed of the GEMM and of the experts as a fraction of what the machine gives,
// for every weight format (attention: attention_bench). Weights come from
// memory as they do in a model: each run takes other experts than the last, out
// of more than any cache holds.
//
// Usage: kernel_bench [threads [formats [shapes [instruction set]]]]
//   formats  comma-separated or "all": f32 bf16 f16 int8 int8-64 int4 int4-64
//            int4-zero int4-zero-64 (groups of 32 unless 64 is said)
//   shapes   comma-separated or "all": mixtral olmoe gemm cached
// Each figure is the median of many runs, in brackets its part of the peak.
// int8 and int4 are set against the peak of the integer dot products that they
// use.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu_features.h"
#include "kernels/expert_ffn.h"
#include "kernels/gemm.h"
#include "tools/bench/machine_peak.h"

namespace troupe {
namespace {

struct BenchFormat {
  const char* name;
  WeightFormat format;
  size_t group_size;
};
const BenchFormat kFormats[] = {
    {"f32", WeightFormat::kF32, 0},
    {"bf16", WeightFormat::kBF16, 0},
    {"f16", WeightFormat::kF16, 0},
    {"int8", WeightFormat::kInt8, 32},
    {"int8-64", WeightFormat::kInt8, 64},
    {"int4", WeightFormat::kInt4, 32},
    {"int4-64", WeightFormat::kInt4, 64},
    {"int4-zero", WeightFormat::kInt4Zero, 32},
    {"int4-zero-64", WeightFormat::kInt4Zero, 64},
};

struct ModelShape {
  const char* name;
  size_t hidden_size;
  size_t intermediate_size;
  size_t num_experts;
  size_t top_k;
};
const ModelShape kShapes[] = {
    {"mixtral", 1024, 2816, 8, 2},
    {"olmoe", 2048, 1024, 64, 8},
};

struct Peak {
  double bytes_per_second;
  double float_ops_per_second;
  double int8_ops_per_second;
  double int4_ops_per_second;

  double OpsFor(WeightFormat format) const {
    if (!IsQuantized(format)) return float_ops_per_second;
    return IsInt4(format) ? int4_ops_per_second : int8_ops_per_second;
  }
};

// A matrix of a checkpoint; any finite numbers do.
class Weights {
 public:
  Weights(const BenchFormat& format, size_t n, size_t k) : format_(format) {
    const size_t count = n * k;
    uint32_t state = 1;
    const auto next = [&state] {
      return state = state * 1664525u + 1013904223u;
    };
    const auto small = [&next] {
      return static_cast<float>(next() >> 8) * 0x1p-28f - 0x1p-5f;
    };
    const auto half = [&](float value) {
      return format.format == WeightFormat::kBF16 ? BF16FromF32(value)
                                                  : F16FromF32(value);
    };
    stored_ = {.format = format.format,
               .n = n,
               .k = k,
               .group_size = format.group_size};
    if (format.format == WeightFormat::kF32) {
      floats_.resize(count);
      for (float& value : floats_) value = small();
      stored_.numbers = floats_.data();
    } else if (!IsQuantized(format.format)) {
      halves_.resize(count);
      for (uint16_t& value : halves_) value = half(small());
      stored_.numbers = halves_.data();
    } else {
      numbers_.resize(IsInt4(format.format) ? count / 2 : count);
      for (uint8_t& value : numbers_) {
        value = static_cast<uint8_t>((next() >> 24) % 255 + 129);
      }
      halves_.resize(count / format.group_size);
      for (uint16_t& value : halves_) value = half(std::abs(small()) * 0.1f);
      zeros_.resize(count / format.group_size);
      for (uint8_t& value : zeros_) value = (next() >> 24) % 16;
      stored_.numbers = numbers_.data();
      stored_.scales = halves_.data();
      stored_.zeros = zeros_.data();
    }
  }

  const StoredMatrix& stored() const { return stored_; }

 private:
  const BenchFormat format_;
  StoredMatrix stored_;
  std::vector<float> floats_;
  std::vector<uint16_t> halves_;
  std::vector<uint8_t> numbers_;
  std::vector<uint8_t> zeros_;
};

struct Seconds {
  double median;
  double best;
};

// Of run(i); i counts up so that a run can use other weights than the last.
template <typename Run>
Seconds TimeOf(const Run& run) {
  std::vector<double> seconds;
  double total = 0;
  for (size_t i = 0; i < 5 || (total < 0.4 && i < 400); ++i) {
    const auto start = std::chrono::steady_clock::now();
    run(i);
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - start;
    if (i > 0) seconds.push_back(elapsed.count());
    total += elapsed.count();
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds[0]};
}

void PrintHeader(const char* what) {
  std::printf("\n%-34s %9s %9s %15s %15s\n", what, "ms", "best",
              "GB/s (of peak)", "Gop/s (of peak)");
}

void Print(const std::string& name, const Seconds& seconds, double bytes,
           double ops, double peak_bytes, double peak_ops) {
  std::printf(
      "%-34s %9.3f %9.3f %8.1f (%3.0f%%) %8.1f (%3.0f%%)\n", name.c_str(),
      seconds.median * 1e3, seconds.best * 1e3, bytes / seconds.median / 1e9,
      100 * bytes / seconds.median / peak_bytes, ops / seconds.median / 1e9,
      100 * ops / seconds.median / peak_ops);
  std::fflush(stdout);
}

// Different enough for the quantisation to do its work.
std::vector<float> Inputs(size_t count) {
  std::vector<float> values(count);
  uint32_t state = 7;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return values;
}

void BenchGemm(const BenchFormat& format, size_t n, size_t k, const Peak& peak,
               ThreadPool& pool) {
  const Weights source(format, n, k);
  std::vector<PackedMatrix> weights;
  size_t bytes = 0;
  while (bytes < size_t{384} << 20) {
    weights.push_back(PackedMatrix::Pack(source.stored(), pool));
    bytes += weights.back().num_bytes();
  }
  Workspace workspace;
  for (const size_t rows : {1, 8, 32, 512}) {
    if (rows == 512 && n > 8192) continue;  // nobody needs all logits
    const std::vector<float> input = Inputs(rows * k);
    std::vector<float> output(rows * n);
    const Seconds seconds = TimeOf([&](size_t i) {
      Gemm(ConstFloatMatrix(input.data(), rows, k), weights[i % weights.size()],
           nullptr, FloatMatrix(output.data(), rows, n), workspace, pool);
    });
    Print(std::string(format.name) + " " + std::to_string(n) + " x " +
              std::to_string(k) + ", rows " + std::to_string(rows),
          seconds, static_cast<double>(weights[0].num_bytes()),
          2.0 * rows * n * k, peak.bytes_per_second,
          peak.OpsFor(format.format));
  }
}

void BenchExperts(const ModelShape& shape, const BenchFormat& format,
                  const Peak& peak, ThreadPool& pool) {
  const Weights gate(format, shape.intermediate_size, shape.hidden_size);
  const Weights down(format, shape.hidden_size, shape.intermediate_size);
  std::vector<GatedMlpWeights> weights;
  size_t bytes = 0;
  const auto start = std::chrono::steady_clock::now();
  // Whole layers, so that grouped calls can take one after the other.
  while (bytes < size_t{384} << 20 || weights.size() % shape.num_experts != 0) {
    GatedMlpWeights& w = weights.emplace_back();
    w.gate_up = PackedMatrix::PackGateUp(gate.stored(), gate.stored(), pool);
    w.down = PackedMatrix::Pack(down.stored(), pool);
    bytes += w.gate_up.num_bytes() + w.down.num_bytes();
  }
  const std::chrono::duration<double> elapsed =
      std::chrono::steady_clock::now() - start;
  std::printf("%s: packed at %.1f GB/s\n", format.name,
              static_cast<double>(bytes) / elapsed.count() / 1e9);
  const double expert_bytes =
      static_cast<double>(bytes) / static_cast<double>(weights.size());
  const double row_ops =
      6.0 * static_cast<double>(shape.hidden_size * shape.intermediate_size);
  const double peak_ops = peak.OpsFor(format.format);

  Workspace workspace;
  for (const size_t rows : {1, 2, 4, 8, 16, 32, 64, 512}) {
    const std::vector<float> input = Inputs(rows * shape.hidden_size);
    std::vector<float> output(rows * shape.hidden_size);
    const Seconds seconds = TimeOf([&](size_t i) {
      GatedMlp(ConstFloatMatrix(input.data(), rows, shape.hidden_size),
               weights[i % weights.size()],
               FloatMatrix(output.data(), rows, shape.hidden_size), workspace,
               pool);
    });
    Print(std::string(format.name) + " expert, rows " + std::to_string(rows),
          seconds, expert_bytes, row_ops * rows, peak.bytes_per_second,
          peak_ops);
  }

  const size_t num_layers = weights.size() / shape.num_experts;
  for (const size_t tokens : {1, 8, 32, 512}) {
    const std::vector<float> input = Inputs(tokens * shape.hidden_size);
    const size_t num_copies = tokens * shape.top_k;
    std::vector<float> output(num_copies * shape.hidden_size);
    // Each token goes to different experts at random.
    std::mt19937 generator(3);
    std::vector<std::vector<uint32_t>> rows_of_expert(shape.num_experts);
    std::vector<size_t> experts(shape.num_experts);
    for (size_t e = 0; e < experts.size(); ++e) experts[e] = e;
    for (uint32_t token = 0; token < tokens; ++token) {
      for (size_t i = 0; i < shape.top_k; ++i) {
        std::swap(experts[i],
                  experts[i + generator() % (shape.num_experts - i)]);
        rows_of_expert[experts[i]].push_back(token);
      }
    }
    std::vector<uint32_t> row_of_copy;
    std::vector<uint32_t> expert_offsets = {0};
    size_t num_active = 0;
    for (const std::vector<uint32_t>& copies : rows_of_expert) {
      row_of_copy.insert(row_of_copy.end(), copies.begin(), copies.end());
      expert_offsets.push_back(static_cast<uint32_t>(row_of_copy.size()));
      if (!copies.empty()) ++num_active;
    }
    const Seconds seconds = TimeOf([&](size_t i) {
      std::vector<const GatedMlpWeights*> layer;
      for (size_t e = 0; e < shape.num_experts; ++e) {
        layer.push_back(&weights[i % num_layers * shape.num_experts + e]);
      }
      GroupedGatedMlp(ConstFloatMatrix(input.data(), tokens, shape.hidden_size),
                      row_of_copy, expert_offsets, layer,
                      FloatMatrix(output.data(), num_copies, shape.hidden_size),
                      workspace, pool);
    });
    Print(std::string(format.name) + " layer, tokens " +
              std::to_string(tokens) + ", experts " +
              std::to_string(num_active),
          seconds, expert_bytes * num_active, row_ops * num_copies,
          peak.bytes_per_second, peak_ops);
  }
}

// Weights that stay in the second level of cache: the speed of the tiles alone.
void BenchCached(const BenchFormat& format, const Peak& peak,
                 ThreadPool& pool) {
  constexpr size_t kN = 128;
  constexpr size_t kK = 1024;
  const Weights source(format, kN, kK);
  const PackedMatrix weights = PackedMatrix::Pack(source.stored(), pool);
  Workspace workspace;
  for (const size_t rows : {1, 4, 16, 240}) {
    const std::vector<float> input = Inputs(rows * kK);
    std::vector<float> output(rows * kN);
    const Seconds seconds = TimeOf([&](size_t i) {
      Gemm(ConstFloatMatrix(input.data(), rows, kK), weights, nullptr,
           FloatMatrix(output.data(), rows, kN), workspace, pool);
    });
    Print(std::string(format.name) + " " + std::to_string(kN) + " x " +
              std::to_string(kK) + ", rows " + std::to_string(rows),
          seconds, static_cast<double>(weights.num_bytes()),
          2.0 * rows * kN * kK, peak.bytes_per_second,
          peak.OpsFor(format.format));
  }
}

bool Contains(const std::string& list, const std::string& name) {
  return list == "all" ||
         ("," + list + ",").find("," + name + ",") != std::string::npos;
}

int Main(int argc, char** argv) {
  const std::string missing = MissingCpuFeatures();
  if (!missing.empty()) {
    std::fprintf(stderr, "%s\n", missing.c_str());
    return 1;
  }
  const size_t threads =
      argc > 1 ? std::max(1, std::atoi(argv[1])) : AvailableThreads();
  const std::string formats = argc > 2 ? argv[2] : "bf16,int8,int4,int4-zero";
  const std::string shapes = argc > 3 ? argv[3] : "all";
  if (argc > 4) UseInstructionSetForTest(argv[4]);

  ThreadPool pool(threads);
  const Peak peak = {MeasureReadBandwidth(pool).best, MeasurePeakFlops(pool),
                     MeasurePeakInt8Ops(pool), MeasurePeakInt4Ops(pool)};
  std::printf(
      "%s, %zu threads; peak: read %.1f GB/s, f32 %.1f, int8 %.1f, int4 %.1f "
      "Gop/s\n",
      ChosenInstructionSet().c_str(), threads, peak.bytes_per_second / 1e9,
      peak.float_ops_per_second / 1e9, peak.int8_ops_per_second / 1e9,
      peak.int4_ops_per_second / 1e9);
  for (const ModelShape& shape : kShapes) {
    if (!Contains(shapes, shape.name)) continue;
    PrintHeader((std::string(shape.name) + ": " +
                 std::to_string(shape.hidden_size) + " x " +
                 std::to_string(shape.intermediate_size))
                    .c_str());
    for (const BenchFormat& format : kFormats) {
      if (Contains(formats, format.name)) {
        BenchExperts(shape, format, peak, pool);
      }
    }
  }
  if (Contains(shapes, "gemm")) {
    PrintHeader("gemm");
    for (const BenchFormat& format : kFormats) {
      if (!Contains(formats, format.name)) continue;
      BenchGemm(format, 32000, 1024, peak, pool);
      BenchGemm(format, 1024, 1024, peak, pool);
    }
  }
  if (Contains(shapes, "cached")) {
    PrintHeader("gemm in cache");
    for (const BenchFormat& format : kFormats) {
      if (Contains(formats, format.name)) BenchCached(format, peak, pool);
    }
  }
  return 0;
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) { return troupe::Main(argc, argv); }
