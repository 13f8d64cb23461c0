// troupe experts plan, apply and balance.
#ifndef TROUPE_TOOLS_CLI_BALANCE_COMMANDS_H_
#define TROUPE_TOOLS_CLI_BALANCE_COMMANDS_H_

#include <vector>

#include "tools/cli/command.h"

namespace troupe {

// Subcommands of `troupe experts`.
std::vector<Command> AddBalanceCommands(CLI::App& experts);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_BALANCE_COMMANDS_H_
