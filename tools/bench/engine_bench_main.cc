// troupe-engine-bench: decode and prefill rates of the engine in one process.
#include <cstdio>
#include <string>

#include "CLI/CLI.hpp"
#include "common/logging.h"
#include "kernels/cpu_features.h"
#include "tools/bench/engine_bench.h"

int main(int argc, char** argv) {
  troupe::EngineBenchOptions options;
  CLI::App app("Decode and prefill rates of the engine in one process");
  app.add_option("MODEL_DIR", options.model_dir, "Checkpoint")->required();
  app.add_option("--concurrency", options.concurrency, "Sequences at once")
      ->delimiter(',');
  app.add_option("--prompt-tokens", options.prompt_tokens, "Of a decode run");
  app.add_option("--max-tokens", options.max_tokens, "Of a decode run")
      ->check(CLI::Range(2, 100000));
  app.add_option("--prefill-tokens", options.prefill_tokens, "Of the prefill");
  app.add_option("--runs", options.num_runs, "The median counts")
      ->check(CLI::Range(1, 1000));
  app.add_option("--threads", options.num_threads, "0: all");
  std::string kv_dtype = "float32";
  app.add_option("--kv-dtype", kv_dtype, "Of the KV cache")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  bool json = false;
  app.add_flag("--json", json, "Every run as JSON");
  CLI11_PARSE(app, argc, argv);
  if (kv_dtype == "bfloat16") options.kv_dtype = troupe::DataType::kBF16;
  troupe::InitLogging("bench", "warn");
  const std::string missing = troupe::MissingCpuFeatures();
  if (!missing.empty()) {
    std::fprintf(stderr, "%s\n", missing.c_str());
    return 1;
  }
  const auto result = troupe::RunEngineBench(options);
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n",
                 std::string(result.status().message()).c_str());
    return 1;
  }
  std::printf(
      "%s",
      (json ? troupe::ToJson(*result) : troupe::ToString(*result)).c_str());
  return 0;
}
