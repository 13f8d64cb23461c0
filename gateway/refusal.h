// Refusals that say when to come back.
#ifndef TROUPE_GATEWAY_REFUSAL_H_
#define TROUPE_GATEWAY_REFUSAL_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace troupe {

// What was too little, as it is named in messages and metrics.
inline constexpr absl::string_view kRequestsPerMinute = "requests_per_minute";
inline constexpr absl::string_view kTokensPerMinute = "tokens_per_minute";
inline constexpr absl::string_view kMaxConcurrent = "max_concurrent";
inline constexpr absl::string_view kPlaces = "places";
inline constexpr absl::string_view kFairShare = "fair_share";
inline constexpr absl::string_view kWaitingTokens = "waiting_prompt_tokens";

// RESOURCE_EXHAUSTED with both as payloads, that every edge turns into its own
// form: google.rpc.RetryInfo, Retry-After.
absl::Status RefusedError(absl::string_view message, absl::string_view limit,
                          int64_t retry_delay_ms);

// -1: not a refusal that waiting would help.
int RetryDelayOf(const absl::Status& status);
// Empty: not a refusal.
std::string RefusedLimit(const absl::Status& status);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_REFUSAL_H_
