#include "cluster/balance_watch.h"

namespace troupe {

BalanceWatch::Verdict BalanceWatch::Look(const BalancePlan& plan,
                                         double tokens) {
  if (plan.mandatory) {
    if (++repairs_seen_ < options_.repair_windows) return Verdict::kWaiting;
    seen_ = repairs_seen_ = 0;
    return Verdict::kApply;
  }
  repairs_seen_ = 0;
  if (tokens < options_.min_tokens) {
    seen_ = 0;
    return Verdict::kTooLittleLoad;
  }
  if (plan.phases.empty()) {
    seen_ = 0;
    return Verdict::kBalanced;
  }
  if (++seen_ < options_.windows) return Verdict::kWaiting;
  seen_ = 0;
  return Verdict::kApply;
}

std::string Name(BalanceWatch::Verdict verdict) {
  switch (verdict) {
    case BalanceWatch::Verdict::kTooLittleLoad:
      return "too little load";
    case BalanceWatch::Verdict::kBalanced:
      return "balanced";
    case BalanceWatch::Verdict::kWaiting:
      return "waiting";
    case BalanceWatch::Verdict::kApply:
      return "apply";
  }
  return "";
}

}  // namespace troupe
