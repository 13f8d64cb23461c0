// Whether a plan is worth carrying out, seen over several windows.
#ifndef TROUPE_CLUSTER_BALANCE_WATCH_H_
#define TROUPE_CLUSTER_BALANCE_WATCH_H_

#include <cstddef>
#include <string>

#include "cluster/balance.h"

namespace troupe {

struct BalanceWatchOptions {
  // A gain has to be there in that many windows in a row.
  size_t windows = 3;
  // And what is mandatory: a process that is away may only be restarting.
  size_t repair_windows = 2;
  // With fewer copies of late the load says nothing.
  double min_tokens = 1000;
};

// What one window after the other says. A value; not thread-safe.
class BalanceWatch {
 public:
  enum class Verdict {
    kTooLittleLoad,
    kBalanced,  // nothing that gains enough
    kWaiting,   // a gain, but not for long enough
    kApply,
  };

  explicit BalanceWatch(BalanceWatchOptions options) : options_(options) {}

  // `tokens`: copies that the plan's load is made of. After kApply the count
  // begins anew.
  Verdict Look(const BalancePlan& plan, double tokens);

  // Windows in a row with a gain, the last one included.
  size_t windows() const { return seen_ + repairs_seen_; }

 private:
  BalanceWatchOptions options_;
  size_t seen_ = 0;
  size_t repairs_seen_ = 0;
};

// As reports say it: "too little load", "balanced", "waiting", "apply".
std::string Name(BalanceWatch::Verdict verdict);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_BALANCE_WATCH_H_
