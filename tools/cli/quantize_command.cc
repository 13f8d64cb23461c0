// troupe quantize: a checkpoint of integers from one of floats.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "tools/cli/command.h"
#include "tools/cli/quantize.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

using SteadyClock = std::chrono::steady_clock;

// A line that is rewritten on a terminal, a line every ten seconds elsewhere.
std::function<void(uint64_t, uint64_t)> Progress(bool terminal) {
  const auto start = SteadyClock::now();
  auto last = std::make_shared<SteadyClock::time_point>(start);
  return [=](uint64_t done, uint64_t total) {
    const auto now = SteadyClock::now();
    if (now - *last < std::chrono::milliseconds(terminal ? 100 : 10000)) return;
    *last = now;
    const double seconds = std::chrono::duration<double>(now - start).count();
    const double rate = static_cast<double>(done) / seconds;
    std::fprintf(
        stderr, "%s%s of %s (%d %%), %s/s, %.0f s left%s",
        terminal ? "\r\x1b[K" : "",
        FormatBytes(static_cast<double>(done)).c_str(),
        FormatBytes(static_cast<double>(total)).c_str(),
        static_cast<int>(100 * done / total), FormatBytes(rate).c_str(),
        static_cast<double>(total - done) / rate, terminal ? "" : "\n");
    std::fflush(stderr);
  };
}

int RunQuantize(QuantizeOptions& options) {
  const bool terminal = IsTerminal(STDERR_FILENO);
  options.progress = Progress(terminal);
  const absl::StatusOr<QuantizeReport> report = Quantize(options);
  if (terminal) std::fputs("\r\x1b[K", stderr);
  if (!report.ok()) {
    std::fprintf(stderr, "troupe: %s\n",
                 std::string(report.status().message()).c_str());
    return kExitFailed;
  }
  std::fputs(report->ToText().c_str(), stdout);
  if (report->num_shards_found > 0) {
    std::fprintf(stderr, "%zu of %zu files were complete already\n",
                 report->num_shards_found, report->num_shards);
  }
  std::fprintf(stderr, "%s: done\n", options.output_dir.c_str());
  return kExitOk;
}

void AddChoice(CLI::App& app, const char* name, const char* text,
               std::function<void(FormatChoice)> set) {
  app.add_option_function<std::string>(
         name,
         [set = std::move(set)](const std::string& value) {
           set(*ParseFormatChoice(value));
         },
         text)
      ->check(CLI::IsMember({"int8", "int4", "int4-zero", "keep"}))
      ->default_str("int8");
}

}  // namespace

Command AddQuantize(CLI::App& parent) {
  auto options = std::make_shared<QuantizeOptions>();
  QuantizeRequest& request = options->request;
  CLI::App* app = parent.add_subcommand(
      "quantize", "Write a checkpoint with 8-bit or 4-bit weights");
  app->add_option("MODEL_DIR", options->model_dir,
                  "Checkpoint of floats in Hugging Face format")
      ->required();
  app->add_option("OUT", options->output_dir, "Folder; made if needed")
      ->required();
  AddChoice(*app, "--experts", "Experts",
            [&request](FormatChoice choice) { request.experts = choice; });
  AddChoice(*app, "--router", "Attention, dense layers, shared expert",
            [&request](FormatChoice choice) { request.router = choice; });
  AddChoice(*app, "--head", "Output matrix, where it is not the embedding",
            [&request](FormatChoice choice) { request.head = choice; });
  AddChoice(*app, "--embedding", "Embedding",
            [&request](FormatChoice choice) { request.embedding = choice; });
  app->add_option("--group-size", request.group_size, "Inputs per scale")
      ->check(CLI::IsMember({"32", "64"}))
      ->capture_default_str();
  app->add_option("--expert", request.expert_overrides,
                  "Other formats for some experts: "
                  "[LAYERS:]EXPERTS[/gate-up|/down]=FORMAT; may be repeated, "
                  "the last one that fits counts")
      ->take_all()
      ->allow_extra_args(false);
  app->add_option("--max-shard-bytes", options->max_shard_bytes,
                  "A new file begins before one is larger; a run that was "
                  "interrupted goes on after the last complete file")
      ->capture_default_str();
  app->add_option("--threads", options->num_threads,
                  "Threads (0: all that may be used)")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->footer(
      "Norms, biases and the small matrix that scores experts stay floats.\n"
      "Examples:\n"
      "  troupe quantize MODEL OUT                   # 8 bits\n"
      "  troupe quantize MODEL OUT --experts int4\n"
      "  # expert 3 of all layers, all experts of layers 0-1, and all down\n"
      "  # projections in 8 bits, the other experts in 4:\n"
      "  troupe quantize MODEL OUT --experts int4 --expert 3=int8 \\\n"
      "      --expert '0-1:*=int8' --expert '*/down=int8'");
  return {app, [options] { return RunQuantize(*options); }};
}

}  // namespace troupe
