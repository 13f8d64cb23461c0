// The API key that a client command calls with.
#ifndef TROUPE_TOOLS_CLI_API_KEY_FLAG_H_
#define TROUPE_TOOLS_CLI_API_KEY_FLAG_H_

#include <string>

#include "CLI/CLI.hpp"

namespace troupe {

// Adds --api-key-file, which puts the key that stands in that file into
// `api_key`; without it that of the environment's TROUPE_API_KEY is taken. A
// key is never an argument: everybody on the machine can read those.
// `api_key` must outlive the app.
void AddApiKeyFlag(CLI::App& app, std::string& api_key);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_API_KEY_FLAG_H_
