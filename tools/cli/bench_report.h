// What a benchmark has measured: pure functions of the requests' times.
#ifndef TROUPE_TOOLS_CLI_BENCH_REPORT_H_
#define TROUPE_TOOLS_CLI_BENCH_REPORT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tools/cli/percentiles.h"

namespace troupe {

// One request; times in seconds since the start of the run.
struct BenchRecord {
  // When it should have been sent: by the arrival process with an open loop,
  // when a place became free with a closed one. Latencies count from here, so
  // that a client that falls behind does not hide the wait.
  double intended_s = 0;
  double first_token_s = 0;
  double end_s = 0;
  size_t prompt_tokens = 0;
  size_t cached_tokens = 0;  // of the prompt
  size_t output_tokens = 0;
  bool ok = false;
  std::string error;  // when not ok
};

struct BenchReport {
  size_t requests = 0;
  size_t failures = 0;
  std::string first_error;
  double wall_s = 0;         // start of the first to the end of the last
  size_t prompt_tokens = 0;  // of requests that succeeded; so are the rest
  size_t cached_tokens = 0;
  size_t output_tokens = 0;
  double requests_per_s = 0;
  double output_tokens_per_s = 0;
  double prompt_tokens_per_s = 0;
  Percentiles ttft_ms;
  Percentiles tpot_ms;  // of requests with two tokens and more
  Percentiles e2e_ms;
  std::vector<double> tpot_ms_samples;  // of each request, as they came
};

BenchReport MakeReport(const std::vector<BenchRecord>& records);

// As a table for people, and as JSON.
std::string FormatReport(const BenchReport& report);
std::string ReportJson(const BenchReport& report, bool with_samples = false);

// Arrival times of a Poisson process, in seconds: ascending, `count` of them.
// The same seed gives the same times everywhere.
std::vector<double> PoissonArrivals(double rate_per_s, size_t count,
                                    uint64_t seed);

// A prompt of random tokens, none of which is in `excluded` (ascending). The
// first `num_shared` of them depend on `shared_seed`, the others on `seed`.
std::vector<uint32_t> RandomPrompt(size_t num_tokens, size_t num_shared,
                                   uint32_t vocab_size,
                                   const std::vector<uint32_t>& excluded,
                                   uint64_t shared_seed, uint64_t seed);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_BENCH_REPORT_H_
