// The flags of every command that generates text, and one generation with
// them on the terminal.
#ifndef TROUPE_TOOLS_CLI_GENERATION_FLAGS_H_
#define TROUPE_TOOLS_CLI_GENERATION_FLAGS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "tools/cli/gateway_client.h"

namespace troupe {

struct GenerationFlags {
  SamplingFlags sampling;
  std::optional<uint64_t> seed;
  uint32_t max_tokens = 256;
  std::vector<std::string> stop;
  std::string fallback;  // empty: the server's default
  double timeout_s = 0;  // 0: none
};

// `flags` must live as long as `app`.
void AddGenerationFlags(CLI::App& app, GenerationFlags& flags);

// The flags as a request without prompt. Asks the gateway for the model's
// default sampling if a part of it is given.
absl::StatusOr<v1::GenerateRequest> MakeRequest(GatewayClient& client,
                                                const GenerationFlags& flags);

// Text as it comes on standard output; the usage goes to `usage`.
absl::Status StreamToStdout(GatewayClient& client,
                            const v1::GenerateRequest& request,
                            const GenerationFlags& flags, v1::Usage* usage,
                            std::string* text);

// "12 + 80 tokens, first after 35 ms, 41.2 tokens/s, seed 7", and what became
// of routed copies that were not computed by their first choice.
std::string DescribeUsage(const v1::Usage& usage);
// "40 by replica, 3 dropped"; empty: all by first choice.
std::string DescribeCopies(const v1::CopyUsage& copies);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_GENERATION_FLAGS_H_
