// Which versions new sequences use: pure functions of a Rollout.
#ifndef TROUPE_CLUSTER_ROLLOUT_H_
#define TROUPE_CLUSTER_ROLLOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "protos/cluster.pb.h"

namespace troupe {

inline constexpr uint32_t kWholeShare = 10000;

// At most 64 letters, digits and "._-"; may be empty. InvalidArgument begins
// with `field`.
absl::Status ValidateLabel(absl::string_view field, absl::string_view label);
// Revision, lists of at most 16 labels, none twice, share.
absl::Status ValidateRollout(const v1::Rollout& rollout);

// Whether `a` is to be used instead of `b`: the one with the higher revision;
// of equal ones the same one everywhere.
bool IsNewer(const v1::Rollout& a, const v1::Rollout& b);

// Whether the sequence of that request begins with the canary: a function of
// the two, so that every router, and a repeated request, decides alike, and so
// that a growing share only adds requests.
bool IsCanary(const v1::Rollout& rollout, absl::string_view request_id);

using LabelList = google::protobuf::RepeatedPtrField<v1::RolloutLabel>;
// "v2,v1", and back.
std::string LabelsText(const LabelList& labels);
std::vector<std::string> ParseLabels(absl::string_view text);
// "2:v2,v1", as a flag says it.
absl::StatusOr<v1::Rollout> ParseRollout(absl::string_view text);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_ROLLOUT_H_
