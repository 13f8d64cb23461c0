// Speed of the engine alone: one process, no client, no network.
#ifndef TROUPE_TOOLS_BENCH_ENGINE_BENCH_H_
#define TROUPE_TOOLS_BENCH_ENGINE_BENCH_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/dtype.h"

namespace troupe {

struct EngineBenchOptions {
  std::string model_dir;
  std::vector<size_t> concurrency = {1, 8, 32};  // sequences at once
  size_t prompt_tokens = 16;                     // of a decode run
  size_t max_tokens = 64;
  size_t prefill_tokens = 512;
  size_t num_runs = 3;     // of each
  size_t num_threads = 0;  // of router and experts; 0: all
  DataType kv_dtype = DataType::kF32;
  uint64_t seed = 1;
};

struct EngineBenchResult {
  struct Decode {
    size_t concurrency = 0;
    // Tokens of all sequences per second, from the moment when the last one
    // has its first token; [num_runs].
    std::vector<double> tokens_per_second;
  };
  size_t num_threads = 0;
  std::vector<Decode> decode;
  std::vector<double> prefill_tokens_per_second;  // [num_runs]; one prompt
};

// Runs the model with local experts in this process; random prompts by seed,
// greedy.
absl::StatusOr<EngineBenchResult> RunEngineBench(
    const EngineBenchOptions& options);

// A table of medians for people.
std::string ToString(const EngineBenchResult& result);
// Every run, for programs.
std::string ToJson(const EngineBenchResult& result);

}  // namespace troupe

#endif  // TROUPE_TOOLS_BENCH_ENGINE_BENCH_H_
