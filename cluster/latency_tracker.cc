#include "cluster/latency_tracker.h"

#include <algorithm>
#include <cmath>

namespace troupe {
namespace {

constexpr std::chrono::nanoseconds kFirstEnd = std::chrono::microseconds(16);

}  // namespace

DecayingQuantiles::Duration DecayingQuantiles::UpperEnd(size_t bucket) {
  return Duration(static_cast<int64_t>(
      static_cast<double>(kFirstEnd.count()) *
      std::exp2(static_cast<double>(bucket) / kPerOctave)));
}

void DecayingQuantiles::Add(Duration duration) {
  size_t bucket = 0;
  if (duration > kFirstEnd) {
    const double octaves = std::log2(static_cast<double>(duration.count()) /
                                     static_cast<double>(kFirstEnd.count()));
    bucket = std::min(kNumBuckets - 1,
                      static_cast<size_t>(std::ceil(octaves * kPerOctave)));
  }
  ++counts_[bucket];
  if (++total_ < kMaxTotal) return;
  total_ = 0;
  for (uint16_t& count : counts_) {
    count /= 2;
    total_ += count;
  }
}

DecayingQuantiles::Duration DecayingQuantiles::Quantile(double q) const {
  if (total_ == 0) return Duration(0);
  const uint32_t wanted =
      std::max(uint32_t{1}, static_cast<uint32_t>(std::ceil(q * total_)));
  uint32_t seen = 0;
  size_t bucket = 0;
  for (; bucket + 1 < kNumBuckets; ++bucket) {
    seen += counts_[bucket];
    if (seen >= wanted) break;
  }
  return UpperEnd(bucket);
}

size_t LatencyTracker::SizeClass(uint64_t rows) {
  size_t size = 0;
  for (uint64_t most = 1; most < rows && size + 1 < kNumSizes; most *= 4) {
    ++size;
  }
  return size;
}

void LatencyTracker::Add(uint64_t rows, std::chrono::nanoseconds round_trip) {
  by_size_[SizeClass(rows)].Add(round_trip);
  all_.Add(round_trip);
}

std::chrono::nanoseconds LatencyTracker::HedgeDelay(
    uint64_t rows, const HedgeDelayOptions& options) const {
  const auto delay_of = [&](const DecayingQuantiles& quantiles) {
    return std::chrono::nanoseconds(static_cast<int64_t>(
        options.factor *
        static_cast<double>(quantiles.Quantile(options.quantile).count())));
  };
  const size_t size = SizeClass(rows);
  std::chrono::nanoseconds delay = delay_of(by_size_[size]);
  if (by_size_[size].num_samples() < options.min_samples) {
    // Not sooner than a smaller message would be.
    delay = options.unknown;
    for (size_t i = 0; i <= size; ++i) {
      delay = std::max(delay, delay_of(by_size_[i]));
    }
  }
  return std::clamp(delay, options.min, std::max(options.min, options.max));
}

}  // namespace troupe
