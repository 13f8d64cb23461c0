// Prometheus' text format, read strictly: what a scraper would refuse or
// misread is an error.
#ifndef TROUPE_TESTS_FAKES_EXPOSITION_H_
#define TROUPE_TESTS_FAKES_EXPOSITION_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace troupe {

struct ExpositionSample {
  std::string name;
  std::map<std::string, std::string> labels;
  double value = 0;
};

struct ExpositionFamily {
  std::string help;
  std::string type;
  std::vector<ExpositionSample> samples;
};

// By family. HELP and TYPE stand once and first; families and label sets are
// not repeated; names, escapes and values are right; counters end with _total
// and are not negative; buckets ascend, are cumulative and end with +Inf, which
// equals the count. The error has the line.
using Exposition = std::map<std::string, ExpositionFamily>;
absl::StatusOr<Exposition> ParseExposition(const std::string& text);

// Of the sample that has that name and exactly these labels; the test fails
// when there is none.
double ValueOf(const Exposition& exposition, const std::string& name,
               const std::map<std::string, std::string>& labels = {});
// Of the samples that have that name, and these labels among others.
double SumOf(const Exposition& exposition, const std::string& name,
             const std::map<std::string, std::string>& labels = {});

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_EXPOSITION_H_
