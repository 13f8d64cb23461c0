// A histogram that the fast path may observe.
#ifndef TROUPE_COMMON_METRICS_HISTOGRAM_H_
#define TROUPE_COMMON_METRICS_HISTOGRAM_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace troupe {

// Counts of observations by upper bound. Observe is a search in a short array
// and two relaxed atomic additions: no lock, no allocation. Thread-safe.
class AtomicHistogram {
 public:
  // bounds: ascending, inclusive; must outlive the histogram. Above the last
  // one there is a bucket of its own.
  explicit AtomicHistogram(std::span<const double> bounds);
  AtomicHistogram(const AtomicHistogram&) = delete;
  AtomicHistogram& operator=(const AtomicHistogram&) = delete;

  // What is negative or no number counts as 0.
  void Observe(double value);

  struct Snapshot {
    std::vector<uint64_t> counts;  // [bounds + 1], not cumulative
    uint64_t count = 0;            // their sum
    double sum = 0;  // may miss what is being observed just now, or lead it
  };
  Snapshot snapshot() const;
  std::span<const double> bounds() const { return bounds_; }

 private:
  const std::span<const double> bounds_;
  const std::unique_ptr<std::atomic<uint64_t>[]> counts_;  // [bounds + 1]
  std::atomic<double> sum_{0.0};
};

// Bounds in seconds. Those of vLLM, so that dashboards fit, with finer ones
// below: a token of a small model takes about a millisecond.
extern const std::span<const double> kFirstTokenBounds;
extern const std::span<const double> kInterTokenBounds;
extern const std::span<const double> kRequestBounds;
// Of a layer's experts, of a step: 20 us to 10 s.
extern const std::span<const double> kHopBounds;
// Of numbers: rows or tokens.
extern const std::span<const double> kCountBounds;

}  // namespace troupe

#endif  // TROUPE_COMMON_METRICS_HISTOGRAM_H_
