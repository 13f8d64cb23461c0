#include "common/metrics/histogram.h"

#include <algorithm>

namespace troupe {
namespace {

constexpr double kFirstToken[] = {
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
constexpr double kInterToken[] = {0.001, 0.002, 0.003, 0.005, 0.0075, 0.01,
                                  0.025, 0.05,  0.075, 0.1,   0.15,   0.2,
                                  0.3,   0.4,   0.5,   0.75,  1,      2.5,
                                  5,     7.5,   10,    20,    40,     80};
constexpr double kRequest[] = {0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1,    1.5,
                               2,    2.5,  5,   10,  15,  20,  30,   40,
                               50,   60,   120, 240, 480, 960, 1920, 7680};
constexpr double kHop[] = {0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001,
                           0.002,   0.005,   0.01,   0.02,   0.05,   0.1,
                           0.2,     0.5,     1,      2,      5,      10};
constexpr double kCount[] = {1,   2,   4,    8,    16,   32,   64,   128,
                             256, 512, 1024, 2048, 4096, 8192, 16384};

}  // namespace

const std::span<const double> kFirstTokenBounds = kFirstToken;
const std::span<const double> kInterTokenBounds = kInterToken;
const std::span<const double> kRequestBounds = kRequest;
const std::span<const double> kHopBounds = kHop;
const std::span<const double> kCountBounds = kCount;

AtomicHistogram::AtomicHistogram(std::span<const double> bounds)
    : bounds_(bounds),
      counts_(std::make_unique<std::atomic<uint64_t>[]>(bounds.size() + 1)) {}

void AtomicHistogram::Observe(double value) {
  if (!(value > 0)) value = 0;
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  counts_[static_cast<size_t>(bucket - bounds_.begin())].fetch_add(
      1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

AtomicHistogram::Snapshot AtomicHistogram::snapshot() const {
  Snapshot snapshot;
  snapshot.counts.resize(bounds_.size() + 1);
  for (size_t i = 0; i < snapshot.counts.size(); ++i) {
    snapshot.counts[i] = counts_[i].load(std::memory_order_relaxed);
    snapshot.count += snapshot.counts[i];
  }
  snapshot.sum = sum_.load(std::memory_order_relaxed);
  return snapshot;
}

}  // namespace troupe
