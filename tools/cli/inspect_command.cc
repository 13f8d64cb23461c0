// troupe inspect: what a checkpoint needs.
#include <cstdio>
#include <memory>
#include <string>

#include "tools/cli/command.h"
#include "tools/cli/inspect.h"

namespace troupe {
namespace {

struct Flags {
  std::string model_dir;
  InspectOptions options;
};

int Run(const Flags& flags) {
  const absl::StatusOr<std::string> text =
      Inspect(flags.model_dir, flags.options);
  if (!text.ok()) {
    std::fprintf(stderr, "troupe: %s\n",
                 std::string(text.status().message()).c_str());
    return kExitFailed;
  }
  std::fputs(text->c_str(), stdout);
  return kExitOk;
}

}  // namespace

Command AddInspect(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* app = parent.add_subcommand(
      "inspect", "Show a checkpoint's parameters, memory and arithmetic");
  app->add_option("MODEL_DIR", flags->model_dir,
                  "Checkpoint in Hugging Face format")
      ->envname("TROUPE_MODEL_DIR")
      ->required();
  app->add_option("--experts", flags->options.num_expert_processes,
                  "Expert processes to divide the experts between")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app->add_option("--context", flags->options.context_tokens,
                  "Tokens of context for the arithmetic of attention")
      ->capture_default_str();
  app->add_flag("--json", flags->options.json, "As JSON");
  app->footer(
      "Examples:\n  troupe inspect models/demo\n"
      "  troupe inspect models/demo --experts 8 --json");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace troupe
