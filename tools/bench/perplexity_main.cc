// troupe-perplexity: how well checkpoints predict a text.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "common/logging.h"
#include "kernels/cpu_features.h"
#include "tools/bench/perplexity.h"

namespace troupe {
namespace {

int Main(int argc, char** argv) {
  PerplexityOptions options;
  std::string text_path;
  std::vector<std::string> model_dirs;
  CLI::App app(
      "Perplexity of checkpoints of one model on a text, and how far they are "
      "from the first of them");
  app.add_option("TEXT", text_path,
                 "UTF-8, documents end with a line <|endoftext|>; - is the "
                 "standard input")
      ->required();
  app.add_option("MODEL_DIR", model_dirs, "Checkpoints, the reference first")
      ->required();
  app.add_option("--documents", options.max_documents, "Of the text; 0: all");
  app.add_option("--threads", options.num_threads, "0: all");
  app.footer(
      "Example:\n"
      "  zcat stories-valid.txt.gz | troupe-perplexity - models/demo "
      "demo-int8");
  CLI11_PARSE(app, argc, argv);
  InitLogging("perplexity", "warn");
  const std::string missing = MissingCpuFeatures();
  if (!missing.empty()) {
    std::fprintf(stderr, "%s\n", missing.c_str());
    return 1;
  }
  std::ifstream file;
  if (text_path != "-") file.open(text_path, std::ios::binary);
  std::istream& text = text_path == "-" ? std::cin : file;
  options.text.assign(std::istreambuf_iterator<char>(text), {});
  if (text.bad() || (text_path != "-" && !file.is_open())) {
    std::fprintf(stderr, "cannot read %s\n", text_path.c_str());
    return 1;
  }
  std::printf("%-28s %8s %10s %10s %12s %10s\n", "checkpoint", "tokens", "nats",
              "perplexity", "divergence", "same best");
  for (size_t i = 0; i < model_dirs.size(); ++i) {
    options.model_dir = model_dirs[i];
    options.reference_dir = i == 0 ? "" : model_dirs[0];
    const auto result = MeasurePerplexity(options);
    if (!result.ok()) {
      std::fprintf(stderr, "%s\n",
                   std::string(result.status().message()).c_str());
      return 1;
    }
    std::printf("%-28s %8zu %10.5f %10.4f", model_dirs[i].c_str(),
                result->num_tokens, result->nats_per_token, result->perplexity);
    if (i > 0) {
      std::printf(" %12.6f %8.2f %%", result->divergence,
                  100 * result->same_best);
    }
    std::printf("\n");
  }
  return 0;
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) { return troupe::Main(argc, argv); }
