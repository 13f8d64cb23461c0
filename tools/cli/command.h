// The subcommands of `troupe`, each in its own file.
#ifndef TROUPE_TOOLS_CLI_COMMAND_H_
#define TROUPE_TOOLS_CLI_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"
#include "tools/cli/exit_status.h"

namespace troupe {

struct Command {
  CLI::App* app = nullptr;
  // Call when `app` was parsed; returns the exit status.
  std::function<int()> run;
};

Command AddServe(CLI::App& parent);
Command AddGenerate(CLI::App& parent);
Command AddChat(CLI::App& parent);
Command AddInspect(CLI::App& parent);
Command AddMakeModel(CLI::App& parent);
Command AddQuantize(CLI::App& parent);
Command AddStats(CLI::App& parent);
Command AddBench(CLI::App& parent);
Command AddExperts(CLI::App& parent);
Command AddCerts(CLI::App& parent);
Command AddKeys(CLI::App& parent);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_COMMAND_H_
