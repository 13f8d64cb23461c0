#include "tools/cli/bench_report.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "nlohmann/json.hpp"

namespace troupe {
namespace {

// In (0, 1], from the upper 53 bits; std::uniform_real_distribution is not the
// same everywhere.
double Uniform(std::mt19937_64& random) {
  return static_cast<double>((random() >> 11) + 1) * 0x1.0p-53;
}

nlohmann::json Json(const Percentiles& p) {
  return {{"count", p.count}, {"mean", p.mean}, {"p50", p.p50},
          {"p90", p.p90},     {"p99", p.p99},   {"max", p.max}};
}

std::string Row(const char* name, const Percentiles& p) {
  return absl::StrFormat("%-10s %10.1f %10.1f %10.1f %10.1f %10.1f\n", name,
                         p.mean, p.p50, p.p90, p.p99, p.max);
}

}  // namespace

BenchReport MakeReport(const std::vector<BenchRecord>& records) {
  BenchReport report;
  report.requests = records.size();
  std::vector<double> ttft_ms;
  std::vector<double> tpot_ms;
  std::vector<double> e2e_ms;
  double first_start_s = INFINITY;
  double last_end_s = 0;
  for (const BenchRecord& record : records) {
    first_start_s = std::min(first_start_s, record.intended_s);
    last_end_s = std::max(last_end_s, record.end_s);
    if (!record.ok) {
      if (report.failures++ == 0) report.first_error = record.error;
      continue;
    }
    report.prompt_tokens += record.prompt_tokens;
    report.cached_tokens += record.cached_tokens;
    report.output_tokens += record.output_tokens;
    ttft_ms.push_back(1000 * (record.first_token_s - record.intended_s));
    e2e_ms.push_back(1000 * (record.end_s - record.intended_s));
    if (record.output_tokens > 1) {
      tpot_ms.push_back(1000 * (record.end_s - record.first_token_s) /
                        static_cast<double>(record.output_tokens - 1));
    }
  }
  report.wall_s = records.empty() ? 0 : last_end_s - first_start_s;
  if (report.wall_s > 0) {
    report.requests_per_s =
        static_cast<double>(report.requests - report.failures) / report.wall_s;
    report.output_tokens_per_s =
        static_cast<double>(report.output_tokens) / report.wall_s;
    report.prompt_tokens_per_s =
        static_cast<double>(report.prompt_tokens) / report.wall_s;
  }
  report.ttft_ms = ComputePercentiles(std::move(ttft_ms));
  report.tpot_ms_samples = tpot_ms;
  report.tpot_ms = ComputePercentiles(std::move(tpot_ms));
  report.e2e_ms = ComputePercentiles(std::move(e2e_ms));
  return report;
}

std::string FormatReport(const BenchReport& report) {
  std::string text = absl::StrFormat(
      "%d requests in %.2f s, %d failed\n"
      "%.2f requests/s, %.1f output tokens/s, %.1f prompt tokens/s "
      "(%.0f%% cached)\n\n"
      "%-10s %10s %10s %10s %10s %10s\n",
      report.requests, report.wall_s, report.failures, report.requests_per_s,
      report.output_tokens_per_s, report.prompt_tokens_per_s,
      report.prompt_tokens > 0
          ? 100.0 * static_cast<double>(report.cached_tokens) /
                static_cast<double>(report.prompt_tokens)
          : 0.0,
      "ms", "mean", "p50", "p90", "p99", "max");
  text += Row("TTFT", report.ttft_ms);
  text += Row("TPOT", report.tpot_ms);
  text += Row("E2E", report.e2e_ms);
  if (report.failures > 0) {
    absl::StrAppendFormat(&text, "first failure: %s\n", report.first_error);
  }
  return text;
}

std::string ReportJson(const BenchReport& report, bool with_samples) {
  nlohmann::json json = {{"requests", report.requests},
                         {"failures", report.failures},
                         {"first_error", report.first_error},
                         {"wall_s", report.wall_s},
                         {"prompt_tokens", report.prompt_tokens},
                         {"cached_tokens", report.cached_tokens},
                         {"output_tokens", report.output_tokens},
                         {"requests_per_s", report.requests_per_s},
                         {"output_tokens_per_s", report.output_tokens_per_s},
                         {"prompt_tokens_per_s", report.prompt_tokens_per_s},
                         {"ttft_ms", Json(report.ttft_ms)},
                         {"tpot_ms", Json(report.tpot_ms)},
                         {"e2e_ms", Json(report.e2e_ms)}};
  if (with_samples) json["tpot_ms_samples"] = report.tpot_ms_samples;
  return json.dump(2) + "\n";
}

std::vector<double> PoissonArrivals(double rate_per_s, size_t count,
                                    uint64_t seed) {
  CHECK(rate_per_s > 0);
  std::mt19937_64 random(seed);
  std::vector<double> times(count);
  double time_s = 0;
  for (double& time : times) {
    time_s -= std::log(Uniform(random)) / rate_per_s;
    time = time_s;
  }
  return times;
}

std::vector<uint32_t> RandomPrompt(size_t num_tokens, size_t num_shared,
                                   uint32_t vocab_size,
                                   const std::vector<uint32_t>& excluded,
                                   uint64_t shared_seed, uint64_t seed) {
  CHECK(excluded.size() < vocab_size);
  std::vector<uint32_t> token_ids;
  const auto append = [&](size_t count, uint64_t from) {
    std::mt19937_64 random(from);
    while (count > 0) {
      const auto token_id = static_cast<uint32_t>(random() % vocab_size);
      if (std::binary_search(excluded.begin(), excluded.end(), token_id)) {
        continue;
      }
      token_ids.push_back(token_id);
      --count;
    }
  };
  num_shared = std::min(num_shared, num_tokens);
  append(num_shared, shared_seed);
  append(num_tokens - num_shared, seed);
  return token_ids;
}

}  // namespace troupe
