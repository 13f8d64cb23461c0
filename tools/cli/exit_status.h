// Exit statuses of `troupe`; its help lists them.
#ifndef TROUPE_TOOLS_CLI_EXIT_STATUS_H_
#define TROUPE_TOOLS_CLI_EXIT_STATUS_H_

namespace troupe {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;         // the environment or the server
inline constexpr int kExitUsage = 2;          // the command line
inline constexpr int kExitInterrupted = 130;  // Ctrl-C, as of a shell

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_EXIT_STATUS_H_
