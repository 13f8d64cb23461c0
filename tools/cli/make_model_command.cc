// troupe make-model: a random checkpoint.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>

#include "tools/cli/command.h"
#include "tools/cli/make_model.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

int Run(MakeModelOptions& options) {
  const bool terminal = IsTerminal(STDERR_FILENO);
  if (terminal) {
    options.progress = [](uint64_t done, uint64_t total) {
      std::fprintf(stderr, "\r\x1b[K%s of %s written",
                   FormatBytes(static_cast<double>(done)).c_str(),
                   FormatBytes(static_cast<double>(total)).c_str());
    };
  }
  const absl::Status status = MakeModel(options);
  if (terminal) std::fputs("\r\x1b[K", stderr);
  if (!status.ok()) {
    std::fprintf(stderr, "troupe: %s\n", std::string(status.message()).c_str());
    return kExitFailed;
  }
  std::fprintf(stderr, "%s: done\n", options.output_dir.c_str());
  return kExitOk;
}

void AddShapeFlags(CLI::App& app, MakeModelOptions& options) {
  const std::string group = "Shape";
  const auto add = [&](const char* name, size_t& value, const char* text) {
    app.add_option(name, value, text)->capture_default_str()->group(group);
  };
  add("--hidden", options.hidden_size, "Hidden size");
  add("--layers", options.num_layers, "Layers");
  add("--heads", options.num_heads, "Query heads");
  add("--kv-heads", options.num_kv_heads, "Key and value heads");
  add("--head-dim", options.head_dim, "Values per head; 0: hidden / heads");
  add("--vocab", options.vocab_size, "Tokens of the vocabulary");
  add("--context", options.max_position_embeddings, "Longest sequence");
  add("--experts", options.num_experts, "Experts per layer");
  add("--top-k", options.top_k, "Experts per token");
  add("--expert-width", options.expert_intermediate_size,
      "Intermediate size of an expert");
  add("--shared-expert-width", options.shared_expert_intermediate_size,
      "Intermediate size of the shared expert (qwen2_moe)");
  add("--dense-width", options.dense_intermediate_size,
      "Intermediate size of a dense layer (llama)");
  app.add_flag("--tie-embeddings", options.tie_word_embeddings,
               "The head is the embedding")
      ->group(group);
}

}  // namespace

Command AddMakeModel(CLI::App& parent) {
  auto options = std::make_shared<MakeModelOptions>();
  CLI::App* app = parent.add_subcommand(
      "make-model", "Write a random checkpoint for tests and benchmarks");
  app->add_option("OUT", options->output_dir, "Folder; made if needed")
      ->required();
  app->add_option("--family", options->family, "As in config.json")
      ->check(CLI::IsMember(
          {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "llama"}))
      ->capture_default_str();
  app->add_option_function<std::string>(
         "--dtype",
         [options](const std::string& name) {
           options->dtype = name == "float32"   ? DataType::kF32
                            : name == "float16" ? DataType::kF16
                                                : DataType::kBF16;
         },
         "Of the weights")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}))
      ->default_str("bfloat16");
  app->add_option("--seed", options->seed,
                  "The same seed and shape give the same bytes")
      ->capture_default_str();
  app->add_option("--max-shard-bytes", options->max_shard_bytes,
                  "A new file begins before one is larger")
      ->capture_default_str();
  AddShapeFlags(*app, *options);
  app->footer(
      "Examples:\n"
      "  troupe make-model /tmp/small\n"
      "  # about 1 billion parameters:\n"
      "  troupe make-model /tmp/1b --hidden 1024 --layers 12 --heads 16 \\\n"
      "      --kv-heads 4 --expert-width 2816 --experts 8 --top-k 2 \\\n"
      "      --vocab 32000");
  return {app, [options] { return Run(*options); }};
}

}  // namespace troupe
