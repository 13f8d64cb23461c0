// The x-ratelimit headers.
#ifndef TROUPE_GATEWAY_OPENAI_RATE_LIMIT_HEADERS_H_
#define TROUPE_GATEWAY_OPENAI_RATE_LIMIT_HEADERS_H_

#include <cstdint>
#include <string>

#include "common/http/http_message.h"
#include "gateway/rate_limiter.h"

namespace troupe {

// As OpenAI writes them: "0s", "20ms", "1s", "1.5s", "6m0s", "1h0m2s".
std::string FormatReset(int64_t milliseconds);

// x-ratelimit-{limit,remaining,reset}-{requests,tokens}, of what has a limit.
void AddRateLimitHeaders(const RateLimitState& state, HttpResponse& response);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_OPENAI_RATE_LIMIT_HEADERS_H_
