// Metrics as Prometheus reads them.
#ifndef TROUPE_COMMON_METRICS_METRIC_FAMILIES_H_
#define TROUPE_COMMON_METRICS_METRIC_FAMILIES_H_

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "common/metrics/histogram.h"
#include "prometheus/metric_family.h"

namespace troupe {

// (name, value) of each; values may be any bytes of UTF-8.
using MetricLabels = std::vector<std::pair<std::string, std::string>>;

// Collected at each scrape from what the statistics count anyway: nothing is
// kept between scrapes, so what is gone is gone from the text, too. A family's
// name is given once. Not thread-safe.
class MetricFamilies {
 public:
  // Stays where it is as long as its MetricFamilies.
  class Family {
   public:
    explicit Family(prometheus::MetricFamily family)
        : family_(std::move(family)) {}
    Family& Add(double value, const MetricLabels& labels = {});
    Family& Add(const AtomicHistogram& histogram,
                const MetricLabels& labels = {});

   private:
    friend class MetricFamilies;
    prometheus::MetricFamily family_;
  };

  // The names of counters end with _total.
  Family& Counter(const std::string& name, const std::string& help);
  Family& Gauge(const std::string& name, const std::string& help);
  Family& Histogram(const std::string& name, const std::string& help);

  // Prometheus' text format 0.0.4. Families without a sample are left out;
  // counters and gauges of one family that have the same labels are added up.
  std::string Text() const;

 private:
  Family& New(prometheus::MetricType type, const std::string& name,
              const std::string& help);

  std::deque<Family> families_;
};

// Families whose names begin alike. Does not own its MetricFamilies.
class MetricScope {
 public:
  MetricScope(MetricFamilies& families, std::string prefix)
      : families_(families), prefix_(std::move(prefix)) {}

  MetricFamilies::Family& Counter(const std::string& name,
                                  const std::string& help) {
    return families_.Counter(prefix_ + name, help);
  }
  MetricFamilies::Family& Gauge(const std::string& name,
                                const std::string& help) {
    return families_.Gauge(prefix_ + name, help);
  }
  // With one sample.
  void Counter(const std::string& name, const std::string& help,
               uint64_t value) {
    Counter(name, help).Add(static_cast<double>(value));
  }
  void Gauge(const std::string& name, const std::string& help, double value) {
    Gauge(name, help).Add(value);
  }
  void Histogram(const std::string& name, const std::string& help,
                 const AtomicHistogram& histogram) {
    families_.Histogram(prefix_ + name, help).Add(histogram);
  }

 private:
  MetricFamilies& families_;
  const std::string prefix_;
};

inline constexpr char kMetricsContentType[] =
    "text/plain; version=0.0.4; charset=utf-8";

}  // namespace troupe

#endif  // TROUPE_COMMON_METRICS_METRIC_FAMILIES_H_
