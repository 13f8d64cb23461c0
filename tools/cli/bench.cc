// troupe bench: load against a running cluster.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tools/cli/bench_report.h"
#include "tools/cli/client_flags.h"
#include "tools/cli/command.h"
#include "tools/cli/interrupts.h"
#include "tools/cli/load_generator.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

struct Flags {
  ClientFlags gateway;
  size_t requests = 0;  // 0: by concurrency, or by duration
  double duration_s = 0;
  size_t concurrency = 1;
  double rate = 0;  // 0: closed loop
  size_t prompt_tokens = 32;
  size_t shared_prefix_tokens = 0;
  uint32_t max_tokens = 64;
  size_t warmup = 1;
  uint32_t seed = std::random_device()();
  double timeout_s = 0;
  bool json = false;
  bool samples = false;
};

// The longest open loop that --duration alone asks for.
constexpr size_t kMaxRequests = 1000000;

size_t NumRequests(const Flags& flags) {
  if (flags.requests > 0) return flags.requests;
  if (flags.duration_s > 0) return kMaxRequests;
  return std::max<size_t>(4 * flags.concurrency, 16);
}

v1::GenerateRequest MakeRequest(const Flags& flags, const v1::ModelInfo& model,
                                uint64_t index) {
  std::vector<uint32_t> excluded(model.eos_token_ids().begin(),
                                 model.eos_token_ids().end());
  std::sort(excluded.begin(), excluded.end());
  const uint64_t shared_seed = uint64_t{flags.seed} << 32;
  const uint64_t seed = shared_seed + 1 + index;
  const std::vector<uint32_t> prompt =
      RandomPrompt(flags.prompt_tokens, flags.shared_prefix_tokens,
                   model.vocab_size(), excluded, shared_seed, seed);
  v1::GenerateRequest request;
  request.mutable_tokens()->mutable_token_ids()->Add(prompt.begin(),
                                                     prompt.end());
  request.set_max_tokens(flags.max_tokens);
  request.set_ignore_eos(true);
  request.set_seed(seed);
  request.mutable_sampling();  // greedy
  return request;
}

std::string DescribeLoad(const Flags& flags, const v1::ModelInfo& model) {
  const std::string loop =
      flags.rate > 0
          ? absl::StrCat("open loop, ", flags.rate, " requests/s")
          : absl::StrCat("closed loop, ", flags.concurrency, " at a time");
  const std::string shared =
      flags.shared_prefix_tokens > 0
          ? absl::StrCat(" (", flags.shared_prefix_tokens, " in common)")
          : "";
  return absl::StrCat(model.name(), ": ", loop, ", ", flags.prompt_tokens,
                      " prompt", shared, " and ", flags.max_tokens,
                      " output tokens, seed ", flags.seed);
}

int Run(const Flags& flags) {
  LoadGenerator* running = nullptr;
  absl::Mutex mu;  // of `running`
  const Interrupts interrupts([&] {
    absl::MutexLock lock(&mu);
    if (running != nullptr) running->Stop();
  });
  GatewayClient client(flags.gateway.address, flags.gateway.api_key,
                       flags.gateway.to_gateway);
  const absl::StatusOr<v1::ModelInfo> model = client.GetModel();
  if (!model.ok()) {
    std::fprintf(stderr, "troupe: %s\n",
                 Explain(model.status(), flags.gateway.address).c_str());
    return kExitFailed;
  }
  if (flags.prompt_tokens + flags.max_tokens > model->max_context()) {
    std::fprintf(stderr,
                 "troupe: --prompt-tokens %zu and --max-tokens %u do not fit "
                 "the model's context of %u tokens\n",
                 flags.prompt_tokens, flags.max_tokens, model->max_context());
    return kExitUsage;
  }
  if (flags.shared_prefix_tokens > flags.prompt_tokens) {
    std::fprintf(stderr,
                 "troupe: --shared-prefix-tokens %zu is more than "
                 "--prompt-tokens %zu\n",
                 flags.shared_prefix_tokens, flags.prompt_tokens);
    return kExitUsage;
  }
  const bool terminal = IsTerminal(STDERR_FILENO);
  const auto run = [&](LoadOptions options, uint64_t first_index) {
    options.address = flags.gateway.address;
    options.credentials = flags.gateway.to_gateway;
    options.api_key = flags.gateway.api_key;
    options.timeout_ms = static_cast<int>(flags.timeout_s * 1000);
    options.make_request = [&, first_index](size_t index) {
      return MakeRequest(flags, *model, first_index + index);
    };
    LoadGenerator generator(std::move(options));
    {
      absl::MutexLock lock(&mu);
      running = &generator;
    }
    std::vector<BenchRecord> records = generator.Run();
    absl::MutexLock lock(&mu);
    running = nullptr;
    return records;
  };
  std::fprintf(stderr, "%s\n", DescribeLoad(flags, *model).c_str());
  if (flags.warmup > 0) {
    LoadOptions warmup;
    warmup.num_requests = flags.warmup;
    warmup.concurrency = flags.concurrency;
    run(std::move(warmup), uint64_t{1} << 31);
  }
  LoadOptions options;
  options.num_requests = NumRequests(flags);
  options.concurrency = flags.concurrency;
  options.duration_s = flags.duration_s;
  if (flags.rate > 0) {
    options.arrivals_s =
        PoissonArrivals(flags.rate, options.num_requests, flags.seed);
  }
  if (terminal) {
    options.progress = [](size_t done, size_t total) {
      std::fprintf(stderr, "\r%zu of %zu requests done ", done, total);
    };
  }
  if (interrupts.interrupted()) return kExitInterrupted;
  const BenchReport report = MakeReport(run(std::move(options), 0));
  if (terminal) std::fputs("\r\x1b[K", stderr);
  std::fputs(
      (flags.json ? ReportJson(report, flags.samples) : FormatReport(report))
          .c_str(),
      stdout);
  if (interrupts.interrupted()) return kExitInterrupted;
  return report.failures > 0 || report.requests == 0 ? kExitFailed : kExitOk;
}

}  // namespace

Command AddBench(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* app = parent.add_subcommand(
      "bench", "Measure throughput and latencies of a running cluster");
  AddClientFlags(*app, flags->gateway);
  app->add_option("--requests", flags->requests,
                  "How many; default: 4 per --concurrency, at least 16");
  app->add_option("--duration", flags->duration_s,
                  "Start no request after so many seconds")
      ->check(CLI::Range(0.0, 1e6));
  CLI::Option* concurrency =
      app->add_option("--concurrency", flags->concurrency,
                      "Closed loop: requests at a time")
          ->check(CLI::Range(1, 4096))
          ->capture_default_str();
  app->add_option("--rate", flags->rate,
                  "Open loop: Poisson arrivals per second, whatever the "
                  "cluster's speed")
      ->check(CLI::Range(0.001, 1e6))
      ->excludes(concurrency);
  app->add_option("--prompt-tokens", flags->prompt_tokens,
                  "Random tokens per prompt")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app->add_option("--shared-prefix-tokens", flags->shared_prefix_tokens,
                  "Of them, tokens that all prompts begin with")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app->add_option("--max-tokens", flags->max_tokens,
                  "Tokens generated per request (the end token is ignored)")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app->add_option("--warmup", flags->warmup, "Requests that do not count")
      ->capture_default_str();
  app->add_option("--seed", flags->seed,
                  "Of prompts and arrivals; default: drawn, since the prompts "
                  "of an earlier run may be cached")
      ->check(CLI::Range(0u, 4294967295u));
  app->add_option("--timeout", flags->timeout_s, "Seconds per request; 0: none")
      ->check(CLI::Range(0.0, 86400.0));
  CLI::Option* json =
      app->add_flag("--json", flags->json, "The report as JSON");
  app->add_flag("--samples", flags->samples,
                "With the TPOT of every request, to merge reports")
      ->needs(json);
  app->footer(
      "TTFT: time to the first token, TPOT: time per further token, E2E: to "
      "the\nlast one. With --rate they count from when a request should have "
      "been\nsent. Greedy sampling. Exit status 1 if any request failed.\n"
      "Examples:\n"
      "  troupe bench --concurrency 8 --requests 64\n"
      "  troupe bench --prompt-tokens 512 --max-tokens 1    # prefill\n"
      "  troupe bench --prompt-tokens 512 --shared-prefix-tokens 480\n"
      "  troupe bench --rate 4 --duration 60 --json");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace troupe
