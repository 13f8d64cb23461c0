#include "common/metrics/metric_families.h"

#include <limits>
#include <map>

#include "prometheus/text_serializer.h"

namespace troupe {
namespace {

prometheus::ClientMetric Labelled(const MetricLabels& labels) {
  prometheus::ClientMetric metric;
  metric.label.reserve(labels.size());
  for (const auto& [name, value] : labels)
    metric.label.push_back({name, value});
  return metric;
}

// A scraper refuses a text in which two samples have the same labels, as a peer
// that left and came back under its old address would: their sum it is.
prometheus::MetricFamily WithoutTwins(const prometheus::MetricFamily& family) {
  prometheus::MetricFamily result = family;
  result.metric.clear();
  std::map<std::vector<prometheus::ClientMetric::Label>, size_t> known;
  for (const prometheus::ClientMetric& metric : family.metric) {
    const auto [found, is_new] =
        known.emplace(metric.label, result.metric.size());
    if (is_new) {
      result.metric.push_back(metric);
      continue;
    }
    prometheus::ClientMetric& first = result.metric[found->second];
    first.counter.value += metric.counter.value;
    first.gauge.value += metric.gauge.value;
  }
  return result;
}

}  // namespace

MetricFamilies::Family& MetricFamilies::Family::Add(
    double value, const MetricLabels& labels) {
  prometheus::ClientMetric metric = Labelled(labels);
  if (family_.type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family_.metric.push_back(std::move(metric));
  return *this;
}

MetricFamilies::Family& MetricFamilies::Family::Add(
    const AtomicHistogram& histogram, const MetricLabels& labels) {
  prometheus::ClientMetric metric = Labelled(labels);
  const AtomicHistogram::Snapshot snapshot = histogram.snapshot();
  metric.histogram.sample_count = snapshot.count;
  metric.histogram.sample_sum = snapshot.sum;
  uint64_t cumulative = 0;
  for (size_t i = 0; i < snapshot.counts.size(); ++i) {
    cumulative += snapshot.counts[i];
    metric.histogram.bucket.push_back(
        {cumulative, i < histogram.bounds().size()
                         ? histogram.bounds()[i]
                         : std::numeric_limits<double>::infinity()});
  }
  family_.metric.push_back(std::move(metric));
  return *this;
}

MetricFamilies::Family& MetricFamilies::New(prometheus::MetricType type,
                                            const std::string& name,
                                            const std::string& help) {
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return families_.emplace_back(std::move(family));
}

MetricFamilies::Family& MetricFamilies::Counter(const std::string& name,
                                                const std::string& help) {
  return New(prometheus::MetricType::Counter, name, help);
}

MetricFamilies::Family& MetricFamilies::Gauge(const std::string& name,
                                              const std::string& help) {
  return New(prometheus::MetricType::Gauge, name, help);
}

MetricFamilies::Family& MetricFamilies::Histogram(const std::string& name,
                                                  const std::string& help) {
  return New(prometheus::MetricType::Histogram, name, help);
}

std::string MetricFamilies::Text() const {
  std::vector<prometheus::MetricFamily> families;
  for (const Family& family : families_) {
    if (!family.family_.metric.empty()) {
      families.push_back(WithoutTwins(family.family_));
    }
  }
  return prometheus::TextSerializer().Serializer::Serialize(families);
}

}  // namespace troupe
