#include "cluster/discovery_metrics.h"

namespace troupe {

void AddDiscoveryMetrics(
    const std::string& prefix,
    const google::protobuf::RepeatedPtrField<v1::DiscoveryStats>& discovery,
    MetricFamilies& families) {
  MetricFamilies::Family& addresses = families.Gauge(
      prefix + "_discovery_addresses", "Addresses that the source has.");
  MetricFamilies::Family& changes =
      families.Counter(prefix + "_discovery_changes_total",
                       "Times that the addresses of the source changed.");
  MetricFamilies::Family& failures = families.Counter(
      prefix + "_discovery_failures_total",
      "Times that the source could not be read; its addresses stayed.");
  MetricFamilies::Family& age =
      families.Gauge(prefix + "_discovery_age_seconds",
                     "Seconds since the source was last read.");
  for (const v1::DiscoveryStats& source : discovery) {
    const MetricLabels labels = {{"source", source.source()}};
    addresses.Add(source.addresses(), labels);
    changes.Add(static_cast<double>(source.changes()), labels);
    failures.Add(static_cast<double>(source.failures()), labels);
    age.Add(source.age_seconds(), labels);
  }
}

}  // namespace troupe
