// What a request allows to happen to a routed copy that its expert refuses.
#ifndef TROUPE_CLUSTER_FALLBACK_POLICY_H_
#define TROUPE_CLUSTER_FALLBACK_POLICY_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "protos/router.pb.h"

namespace troupe {

// A chain of steps, which are tried in the order of the members. A copy for
// which none is left waits for its expert. docs/fallback.md.
struct FallbackPolicy {
  bool replica = false;    // another replica: the same bytes
  bool wait = false;       // ask again, later: the same bytes
  bool next_best = false;  // the token's next expert that has room
  bool drop = false;       // leave the copy out

  static FallbackPolicy Exact() { return {true, true, false, false}; }
  static FallbackPolicy Balanced() { return {true, true, true, false}; }
  static FallbackPolicy Fast() { return {true, false, true, true}; }

  // Nothing that it allows changes a bit of the output.
  bool is_exact() const { return !next_best && !drop; }
  bool operator==(const FallbackPolicy&) const = default;
};

// "exact", "balanced", "fast", or a chain as "replica,wait,drop".
absl::StatusOr<FallbackPolicy> ParseFallback(absl::string_view text);
// Its shortest text, which ParseFallback reads.
std::string Name(const FallbackPolicy& policy);

// Nothing chosen: `by_default`. InvalidArgument names the field.
absl::StatusOr<FallbackPolicy> FromProto(const v1::FallbackPolicy& proto,
                                         const FallbackPolicy& by_default);
v1::FallbackPolicy ToProto(const FallbackPolicy& policy);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_FALLBACK_POLICY_H_
