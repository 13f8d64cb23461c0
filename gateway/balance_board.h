// What the balancer of the cluster said last.
#ifndef TROUPE_GATEWAY_BALANCE_BOARD_H_
#define TROUPE_GATEWAY_BALANCE_BOARD_H_

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "protos/gateway.pb.h"

namespace troupe {

// The balancer is a process of its own, which may die or hang: somebody else
// has to notice. Remembers the last report and knows when the next one is
// overdue. Thread-safe.
class BalanceBoard {
 public:
  // InvalidArgument names the field.
  absl::Status Report(const v1::BalanceReport& report, SteadyTime now);
  // Sets ClusterStats.balancer, unless nobody has reported yet.
  void Describe(SteadyTime now, v1::ClusterStats& stats) const;

 private:
  mutable absl::Mutex mu_;
  bool reported_ ABSL_GUARDED_BY(mu_) = false;
  v1::BalanceReport report_ ABSL_GUARDED_BY(mu_);
  SteadyTime at_ ABSL_GUARDED_BY(mu_);
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_BALANCE_BOARD_H_
