#include "cluster/fallback_policy.h"

#include <iterator>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace troupe {
namespace {

using Proto = v1::FallbackPolicy;

struct Step {
  const char* name;
  Proto::Step proto;
  bool FallbackPolicy::*member;
};
// In the order in which they are tried.
constexpr Step kSteps[] = {
    {"replica", Proto::STEP_REPLICA, &FallbackPolicy::replica},
    {"wait", Proto::STEP_WAIT, &FallbackPolicy::wait},
    {"next_best", Proto::STEP_NEXT_BEST, &FallbackPolicy::next_best},
    {"drop", Proto::STEP_DROP, &FallbackPolicy::drop},
};

struct Preset {
  const char* name;
  Proto::Preset proto;
  FallbackPolicy policy;
};
const Preset kPresets[] = {
    {"exact", Proto::PRESET_EXACT, FallbackPolicy::Exact()},
    {"balanced", Proto::PRESET_BALANCED, FallbackPolicy::Balanced()},
    {"fast", Proto::PRESET_FAST, FallbackPolicy::Fast()},
};

constexpr char kAllSteps[] = "replica, wait, next_best, drop";

// `is_step(i, step)`: whether the i-th of the chain is that step.
template <typename IsStep>
absl::StatusOr<FallbackPolicy> ReadChain(int length, const IsStep& is_step) {
  FallbackPolicy policy;
  size_t next = 0;
  for (int i = 0; i < length; ++i) {
    size_t at = 0;
    while (at < std::size(kSteps) && !is_step(i, kSteps[at])) ++at;
    if (at == std::size(kSteps)) {
      return absl::InvalidArgumentError(
          absl::StrCat("fallback: step ", i + 1, " is none of ", kAllSteps));
    }
    if (at < next) {
      return absl::InvalidArgumentError(absl::StrCat(
          "fallback: \"", kSteps[at].name,
          "\" is out of order: each step at most once, in the order ",
          kAllSteps));
    }
    policy.*kSteps[at].member = true;
    next = at + 1;
  }
  return policy;
}

}  // namespace

absl::StatusOr<FallbackPolicy> ParseFallback(absl::string_view text) {
  for (const Preset& preset : kPresets) {
    if (text == preset.name) return preset.policy;
  }
  const std::vector<absl::string_view> chain = absl::StrSplit(text, ',');
  absl::StatusOr<FallbackPolicy> policy = ReadChain(
      static_cast<int>(chain.size()), [&chain](int i, const Step& step) {
        return chain[static_cast<size_t>(i)] == step.name;
      });
  if (policy.ok()) return policy;
  return absl::InvalidArgumentError(
      absl::StrCat(policy.status().message(),
                   " (exact, balanced, fast, or a chain of steps with commas "
                   "between)"));
}

std::string Name(const FallbackPolicy& policy) {
  for (const Preset& preset : kPresets) {
    if (policy == preset.policy) return preset.name;
  }
  std::vector<absl::string_view> chain;
  for (const Step& step : kSteps) {
    if (policy.*step.member) chain.push_back(step.name);
  }
  return absl::StrJoin(chain, ",");
}

absl::StatusOr<FallbackPolicy> FromProto(const v1::FallbackPolicy& proto,
                                         const FallbackPolicy& by_default) {
  if (proto.chain_size() > 0) {
    if (proto.preset() != Proto::PRESET_UNSPECIFIED) {
      return absl::InvalidArgumentError(
          "fallback: a preset or a chain, not both");
    }
    return ReadChain(proto.chain_size(), [&proto](int i, const Step& step) {
      return proto.chain(i) == step.proto;
    });
  }
  if (proto.preset() == Proto::PRESET_UNSPECIFIED) return by_default;
  for (const Preset& preset : kPresets) {
    if (proto.preset() == preset.proto) return preset.policy;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("fallback.preset: ", static_cast<int>(proto.preset())));
}

v1::FallbackPolicy ToProto(const FallbackPolicy& policy) {
  v1::FallbackPolicy proto;
  for (const Preset& preset : kPresets) {
    if (policy != preset.policy) continue;
    proto.set_preset(preset.proto);
    return proto;
  }
  for (const Step& step : kSteps) {
    if (policy.*step.member) proto.add_chain(step.proto);
  }
  return proto;
}

}  // namespace troupe
