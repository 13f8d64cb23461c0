// What share of the last seconds something was busy.
#ifndef TROUPE_CLUSTER_BUSY_METER_H_
#define TROUPE_CLUSTER_BUSY_METER_H_

#include <algorithm>
#include <cmath>

#include "common/clock.h"

namespace troupe {

// A mean over the past in which what was `time_constant` ago counts 1/e: no
// window that jumps, and whoever asks how often changes nothing. A value; not
// thread-safe.
class BusyMeter {
 public:
  BusyMeter(double time_constant_seconds, SteadyTime start)
      : time_constant_(time_constant_seconds), start_(start), at_(start) {}

  void Begin(SteadyTime now) { Advance(now, true); }
  void End(SteadyTime now) { Advance(now, false); }

  // In [0, 1]; since the start, if that is less than the past that counts.
  double Share(SteadyTime now) const {
    BusyMeter copy = *this;
    copy.Advance(now, busy_);
    const double age = Seconds(now - start_);
    if (age <= 0) return 0;
    return std::clamp(copy.share_ / -std::expm1(-age / time_constant_), 0.0,
                      1.0);
  }

 private:
  static double Seconds(SteadyTime::duration duration) {
    return std::max(0.0, std::chrono::duration<double>(duration).count());
  }
  void Advance(SteadyTime now, bool busy_from_here) {
    const double old = std::exp(-Seconds(now - at_) / time_constant_);
    share_ = share_ * old + (busy_ ? 1 - old : 0);
    at_ = std::max(at_, now);
    busy_ = busy_from_here;
  }

  double time_constant_;
  SteadyTime start_;
  SteadyTime at_;
  double share_ = 0;  // as if it had been idle before the start
  bool busy_ = false;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_BUSY_METER_H_
