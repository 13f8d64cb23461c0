#include "gateway/refusal.h"

#include <algorithm>
#include <limits>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace troupe {
namespace {

constexpr char kDelayUrl[] = "troupe/retry_delay_ms";
constexpr char kLimitUrl[] = "troupe/limit";

}  // namespace

absl::Status RefusedError(absl::string_view message, absl::string_view limit,
                          int64_t retry_delay_ms) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kDelayUrl,
                    absl::Cord(absl::StrCat(std::clamp<int64_t>(
                        retry_delay_ms, 0, std::numeric_limits<int>::max()))));
  status.SetPayload(kLimitUrl, absl::Cord(limit));
  return status;
}

int RetryDelayOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kDelayUrl);
  int delay_ms = -1;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &delay_ms)) {
    return -1;
  }
  return delay_ms;
}

std::string RefusedLimit(const absl::Status& status) {
  const auto payload = status.GetPayload(kLimitUrl);
  return payload ? std::string(*payload) : "";
}

}  // namespace troupe
