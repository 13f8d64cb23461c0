// How long an expert process takes to answer, and from when on it is late.
#ifndef TROUPE_CLUSTER_LATENCY_TRACKER_H_
#define TROUPE_CLUSTER_LATENCY_TRACKER_H_

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace troupe {

// A quantile of late durations: counts in buckets of a quarter of an octave
// (19% wide), halved whenever they have become many, so that what was long ago
// fades. A value; not thread-safe.
class DecayingQuantiles {
 public:
  using Duration = std::chrono::nanoseconds;

  void Add(Duration duration);
  // Upper end of the bucket in which the share `q` of (0, 1] is reached; zero
  // without samples.
  Duration Quantile(double q) const;
  // Of those that have not faded.
  uint32_t num_samples() const { return total_; }

 private:
  static constexpr size_t kPerOctave = 4;
  // From 16 us to 16 us * 2^23, more than two minutes.
  static constexpr size_t kNumBuckets = 23 * kPerOctave;
  static constexpr uint32_t kMaxTotal = 512;

  static Duration UpperEnd(size_t bucket);

  std::array<uint16_t, kNumBuckets> counts_ = {};
  uint32_t total_ = 0;
};

struct HedgeDelayOptions {
  double quantile = 0.99;
  double factor = 2.0;  // of that quantile
  std::chrono::nanoseconds min = std::chrono::milliseconds(5);
  std::chrono::nanoseconds max = std::chrono::seconds(10);
  // Until there are min_samples of a message's size.
  std::chrono::nanoseconds unknown = std::chrono::milliseconds(50);
  uint32_t min_samples = 16;
};

// The round trips of one peer, by size of the message: those of a prompt take
// longer than those of one token, and must not hide that one token is late. A
// value; not thread-safe.
class LatencyTracker {
 public:
  void Add(uint64_t rows, std::chrono::nanoseconds round_trip);
  // After which a message of `rows` is late.
  std::chrono::nanoseconds HedgeDelay(uint64_t rows,
                                      const HedgeDelayOptions& options) const;
  // Of all sizes.
  const DecayingQuantiles& all() const { return all_; }

 private:
  // 1 row, then up to 4, 16, 64, ... rows.
  static constexpr size_t kNumSizes = 8;
  static size_t SizeClass(uint64_t rows);

  std::array<DecayingQuantiles, kNumSizes> by_size_;
  DecayingQuantiles all_;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_LATENCY_TRACKER_H_
