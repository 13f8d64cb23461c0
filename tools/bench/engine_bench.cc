#include "tools/bench/engine_bench.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "kernels/cpu_features.h"
#include "nlohmann/json.hpp"
#include "tools/bench/local_cluster.h"

namespace troupe {
namespace {

double SecondsSince(SteadyTime start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
      .count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct RunTimes {
  double all_first_s = 0.0;  // until every sequence has a token
  double end_s = 0.0;
  size_t decoded_tokens = 0;  // between the two, of all sequences
};

absl::StatusOr<RunTimes> RunOnce(ServingLoop& loop, size_t vocab_size,
                                 size_t concurrency, size_t prompt_tokens,
                                 size_t max_tokens, std::mt19937_64& random) {
  absl::Mutex mu;
  size_t waiting_for_first = concurrency;
  size_t running = concurrency;
  RunTimes times;
  absl::Status failure;
  const SteadyTime start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < concurrency; ++i) {
    SequenceRequest request;
    request.prompt_length = prompt_tokens;
    for (size_t t = 0; t < prompt_tokens; ++t) {
      request.tokens.push_back(static_cast<int32_t>(random() % vocab_size));
    }
    request.max_tokens = max_tokens;
    request.on_event = [&, first = true](SequenceEvent event) mutable {
      absl::MutexLock lock(&mu);
      if (waiting_for_first == 0) times.decoded_tokens += event.tokens.size();
      if (first && --waiting_for_first == 0) {
        times.all_first_s = SecondsSince(start);
      }
      first = false;
      if (!event.status.ok()) failure = event.status;
      if (event.finish != Finish::kNot || !event.status.ok()) {
        if (--running == 0) times.end_s = SecondsSince(start);
      }
    };
    ABSL_RETURN_IF_ERROR(loop.Submit(std::move(request)).status());
  }
  absl::MutexLock lock(&mu);
  const auto ended = [&running] { return running == 0; };
  mu.Await(absl::Condition(&ended));
  ABSL_RETURN_IF_ERROR(failure);
  return times;
}

}  // namespace

absl::StatusOr<EngineBenchResult> RunEngineBench(
    const EngineBenchOptions& options) {
  const size_t num_threads =
      options.num_threads == 0 ? AvailableThreads() : options.num_threads;
  const size_t longest = std::max(options.prefill_tokens,
                                  options.prompt_tokens + options.max_tokens) +
                         1;
  const size_t most =
      *std::max_element(options.concurrency.begin(), options.concurrency.end());
  LocalClusterOptions cluster_options;
  cluster_options.model_dir = options.model_dir;
  cluster_options.kv_dtype = options.kv_dtype;
  cluster_options.router_threads = num_threads;
  cluster_options.expert_threads = 0;
  cluster_options.num_kv_blocks =
      (longest + kKvBlockSize) / kKvBlockSize * most;
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<LocalCluster> cluster,
                        LocalCluster::Start(cluster_options));
  ServingLoop& loop = cluster->StartLoop();
  const size_t vocab_size = cluster->config().vocab_size;
  std::mt19937_64 random(options.seed);

  EngineBenchResult result;
  result.num_threads = num_threads;
  // The first run warms caches and scratch memory up.
  ABSL_RETURN_IF_ERROR(
      RunOnce(loop, vocab_size, 1, options.prefill_tokens, 4, random).status());
  for (size_t run = 0; run < options.num_runs; ++run) {
    ABSL_ASSIGN_OR_RETURN(
        const RunTimes times,
        RunOnce(loop, vocab_size, 1, options.prefill_tokens, 1, random));
    result.prefill_tokens_per_second.push_back(
        static_cast<double>(options.prefill_tokens) / times.end_s);
  }
  for (const size_t concurrency : options.concurrency) {
    std::vector<double> rates;
    for (size_t run = 0; run < options.num_runs; ++run) {
      ABSL_ASSIGN_OR_RETURN(
          const RunTimes times,
          RunOnce(loop, vocab_size, concurrency, options.prompt_tokens,
                  options.max_tokens, random));
      rates.push_back(static_cast<double>(times.decoded_tokens) /
                      (times.end_s - times.all_first_s));
    }
    result.decode.push_back({concurrency, std::move(rates)});
  }
  return result;
}

std::string ToString(const EngineBenchResult& result) {
  std::string text = absl::StrFormat("prefill %28.1f tokens/s\n",
                                     Median(result.prefill_tokens_per_second));
  for (const EngineBenchResult::Decode& decode : result.decode) {
    absl::StrAppendFormat(&text,
                          "decode, %3d sequences at once %7.1f tokens/s\n",
                          decode.concurrency, Median(decode.tokens_per_second));
  }
  return text;
}

std::string ToJson(const EngineBenchResult& result) {
  nlohmann::ordered_json decode = nlohmann::json::array();
  for (const EngineBenchResult::Decode& one : result.decode) {
    decode.push_back({{"concurrency", one.concurrency},
                      {"tokens_per_second", one.tokens_per_second}});
  }
  const nlohmann::ordered_json json = {
      {"instruction_set", ChosenInstructionSet()},
      {"threads", result.num_threads},
      {"prefill_tokens_per_second", result.prefill_tokens_per_second},
      {"decode", std::move(decode)}};
  return json.dump(2) + "\n";
}

}  // namespace troupe
