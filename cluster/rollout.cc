#include "cluster/rollout.h"

#include <xxhash.h>

#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace troupe {
namespace {

constexpr size_t kMaxLabelBytes = 64;
constexpr int kMaxLabels = 16;

absl::Status ValidateLabels(absl::string_view field, const LabelList& labels) {
  if (labels.size() > kMaxLabels) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, " has ", labels.size(), " labels, at most ", kMaxLabels));
  }
  std::set<std::string> seen;
  for (const v1::RolloutLabel& label : labels) {
    const absl::Status valid = ValidateLabel(field, label.label());
    if (!valid.ok()) return valid;
    if (!seen.insert(label.label()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, " names \"", label.label(), "\" twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateLabel(absl::string_view field, absl::string_view label) {
  bool valid = label.size() <= kMaxLabelBytes;
  for (const char c : label) {
    valid = valid && (absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                      c == '.' || c == '_' || c == '-');
  }
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, ": the label \"", absl::CHexEscape(label.substr(0, 80)),
      "\" is not at most ", kMaxLabelBytes,
      " letters, digits, dots, dashes and underscores"));
}

absl::Status ValidateRollout(const v1::Rollout& rollout) {
  if (rollout.revision() == 0) {
    return absl::InvalidArgumentError("rollout.revision is 0");
  }
  for (const absl::Status& status :
       {ValidateLabels("rollout.labels", rollout.labels()),
        ValidateLabels("rollout.canary_labels", rollout.canary_labels()),
        ValidateLabels("rollout.previous_labels", rollout.previous_labels())}) {
    if (!status.ok()) return status;
  }
  if (rollout.labels().empty()) {
    return absl::InvalidArgumentError("rollout.labels is empty");
  }
  if (rollout.canary_share() > kWholeShare) {
    return absl::InvalidArgumentError(absl::StrCat("rollout.canary_share is ",
                                                   rollout.canary_share(),
                                                   " of ", kWholeShare));
  }
  return absl::OkStatus();
}

bool IsNewer(const v1::Rollout& a, const v1::Rollout& b) {
  if (a.revision() != b.revision()) return a.revision() > b.revision();
  return a.SerializeAsString() > b.SerializeAsString();
}

bool IsCanary(const v1::Rollout& rollout, absl::string_view request_id) {
  if (rollout.canary_labels().empty()) return false;
  return XXH3_64bits(request_id.data(), request_id.size()) % kWholeShare <
         rollout.canary_share();
}

std::string LabelsText(const LabelList& labels) {
  std::string text;
  for (const v1::RolloutLabel& label : labels) {
    absl::StrAppend(&text, &label == &labels[0] ? "" : ",", label.label());
  }
  return text;
}

std::vector<std::string> ParseLabels(absl::string_view text) {
  return absl::StrSplit(text, ',');
}

absl::StatusOr<v1::Rollout> ParseRollout(absl::string_view text) {
  const std::vector<std::string> parts =
      absl::StrSplit(text, absl::MaxSplits(':', 1));
  v1::Rollout rollout;
  uint64_t revision = 0;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &revision)) {
    return absl::InvalidArgumentError(
        absl::StrCat("rollout: \"", absl::CHexEscape(text.substr(0, 80)),
                     "\" is not REVISION:LABEL,..."));
  }
  rollout.set_revision(revision);
  for (const std::string& label : ParseLabels(parts[1])) {
    rollout.add_labels()->set_label(label);
  }
  const absl::Status valid = ValidateRollout(rollout);
  if (!valid.ok()) return valid;
  return rollout;
}

}  // namespace troupe
