#include "kernels/cpu/instruction_set.h"

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/instruction_set.cc"
#include "hwy/foreach_target.h"
// foreach_target.h stays before the rest.
#include "common/check.h"
#include "hwy/highway.h"
#include "kernels/cpu_features.h"

HWY_BEFORE_NAMESPACE();
namespace troupe::HWY_NAMESPACE {

const char* InstructionSet() { return hwy::TargetName(HWY_TARGET); }

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace troupe {

HWY_EXPORT(InstructionSet);

namespace {

// The dot products of bytes are a set of their own (quantized_targets.h), on
// top of AVX3, which the other kernels then use.
constexpr int64_t kDotSet = HWY_AVX3_DL;
const char kDotSetName[] = "AVX3_DL";

}  // namespace

std::string ChosenInstructionSet() {
  if (hwy::SupportedTargets() & kDotSet) return kDotSetName;
  return HWY_DYNAMIC_DISPATCH(InstructionSet)();
}

std::vector<std::string> AvailableInstructionSets() {
  hwy::SetSupportedTargetsForTest(0);
  std::vector<std::string> names;
  if (hwy::SupportedTargets() & kDotSet) names.push_back(kDotSetName);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    names.push_back(hwy::TargetName(target));
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return names;
}

void UseInstructionSetForTest(const std::string& name) {
  hwy::SetSupportedTargetsForTest(0);
  if (name == kDotSetName) {
    hwy::SetSupportedTargetsForTest(kDotSet | HWY_AVX3);
  } else if (!name.empty()) {
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      if (name == hwy::TargetName(target)) {
        hwy::SetSupportedTargetsForTest(target);
      }
    }
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  CHECK(name.empty() || ChosenInstructionSet() == name);
}

}  // namespace troupe
#endif  // HWY_ONCE
