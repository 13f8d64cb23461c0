#include "gateway/openai/rate_limit_headers.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace troupe {
namespace {

void Add(absl::string_view what, const RateLimitState::Bucket& bucket,
         HttpResponse& response) {
  if (bucket.limit == 0) return;
  const auto add = [&](absl::string_view which, std::string value) {
    response.headers.push_back(
        {absl::StrCat("x-ratelimit-", which, "-", what), std::move(value)});
  };
  add("limit", absl::StrCat(bucket.limit));
  add("remaining", absl::StrCat(bucket.remaining));
  add("reset", FormatReset(bucket.reset_ms));
}

}  // namespace

std::string FormatReset(int64_t milliseconds) {
  milliseconds = std::max<int64_t>(milliseconds, 0);
  if (milliseconds < 1000) {
    return milliseconds == 0 ? "0s" : absl::StrCat(milliseconds, "ms");
  }
  const int64_t minutes = milliseconds / 60000;
  const std::string seconds =
      absl::FormatDuration(absl::Milliseconds(milliseconds % 60000));
  std::string text;
  if (minutes >= 60) absl::StrAppend(&text, minutes / 60, "h");
  if (minutes > 0) absl::StrAppend(&text, minutes % 60, "m");
  // "20ms" stands alone; behind minutes it is "0.02s".
  const int64_t rest = milliseconds % 60000;
  absl::StrAppend(&text, rest == 0     ? "0s"
                         : rest < 1000 ? absl::StrCat(rest / 1e3, "s")
                                       : seconds);
  return text;
}

void AddRateLimitHeaders(const RateLimitState& state, HttpResponse& response) {
  Add("requests", state.requests, response);
  Add("tokens", state.tokens, response);
}

}  // namespace troupe
