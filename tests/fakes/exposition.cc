#include "tests/fakes/exposition.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

bool IsName(absl::string_view name, bool of_label) {
  if (name.empty() || absl::ascii_isdigit(name[0])) return false;
  return std::all_of(name.begin(), name.end(), [of_label](char c) {
    return absl::ascii_isalnum(c) || c == '_' || (c == ':' && !of_label);
  });
}

absl::Status Wrong(const std::string& what) {
  return absl::InvalidArgumentError(what);
}

// `{a="b",c="d"}`, with rest behind it.
absl::Status ParseLabels(absl::string_view& rest,
                         std::map<std::string, std::string>& labels) {
  if (!absl::ConsumePrefix(&rest, "{")) return absl::OkStatus();
  while (!absl::ConsumePrefix(&rest, "}")) {
    const size_t equals = rest.find("=\"");
    if (equals == absl::string_view::npos) return Wrong("a label without =\"");
    const std::string name(rest.substr(0, equals));
    if (!IsName(name, /*of_label=*/true) || absl::StartsWith(name, "__")) {
      return Wrong("label name " + name);
    }
    rest.remove_prefix(equals + 2);
    std::string value;
    while (!rest.empty() && rest[0] != '"') {
      char c = rest[0];
      rest.remove_prefix(1);
      if (c == '\\') {
        if (rest.empty()) return Wrong("an escape without its letter");
        const char escape = rest[0];
        rest.remove_prefix(1);
        if (escape == 'n') {
          c = '\n';
        } else if (escape == '\\' || escape == '"') {
          c = escape;
        } else {
          return Wrong("an unknown escape");
        }
      }
      value += c;
    }
    if (!absl::ConsumePrefix(&rest, "\"")) return Wrong("an open label value");
    if (!labels.emplace(name, value).second) return Wrong("label twice");
    if (!absl::ConsumePrefix(&rest, ",") && !absl::StartsWith(rest, "}")) {
      return Wrong("no comma between labels");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ExpositionSample> ParseSample(absl::string_view line) {
  ExpositionSample sample;
  const size_t end = std::min(line.find_first_of("{ "), line.size());
  sample.name = std::string(line.substr(0, end));
  if (!IsName(sample.name, /*of_label=*/false)) return Wrong("name");
  line.remove_prefix(end);
  ABSL_RETURN_IF_ERROR(ParseLabels(line, sample.labels));
  if (!absl::ConsumePrefix(&line, " ")) return Wrong("no space before value");
  if (line == "+Inf") {
    sample.value = HUGE_VAL;
  } else if (!absl::SimpleAtod(line, &sample.value)) {
    return Wrong("value");
  }
  return sample;
}

bool BelongsTo(const ExpositionSample& sample, const std::string& family,
               const std::string& type) {
  if (type != "histogram") return sample.name == family;
  return sample.name == family + "_bucket" || sample.name == family + "_sum" ||
         sample.name == family + "_count";
}

// The samples of one label set of a histogram, in their order.
absl::Status CheckHistogram(const std::vector<const ExpositionSample*>& samples,
                            const std::string& family) {
  double bound = -HUGE_VAL;
  double cumulative = 0;
  double count = -1;
  bool has_sum = false;
  for (const ExpositionSample* sample : samples) {
    if (sample->name == family + "_sum") has_sum = true;
    if (sample->name == family + "_count") count = sample->value;
    if (sample->name != family + "_bucket") continue;
    double le = 0;
    if (sample->labels.count("le") == 0) return Wrong("a bucket without le");
    const std::string& text = sample->labels.at("le");
    if (text == "+Inf") {
      le = HUGE_VAL;
    } else if (!absl::SimpleAtod(text, &le)) {
      return Wrong("le");
    }
    if (le <= bound) return Wrong("buckets do not ascend");
    if (sample->value < cumulative) return Wrong("buckets are not cumulative");
    bound = le;
    cumulative = sample->value;
  }
  if (bound != HUGE_VAL) return Wrong("no bucket +Inf");
  if (!has_sum) return Wrong("no sum");
  if (count != cumulative) return Wrong("the count is not that of +Inf");
  return absl::OkStatus();
}

absl::Status CheckFamily(const std::string& name,
                         const ExpositionFamily& family) {
  std::set<std::pair<std::string, std::map<std::string, std::string>>> seen;
  std::map<std::map<std::string, std::string>,
           std::vector<const ExpositionSample*>>
      by_labels;
  for (const ExpositionSample& sample : family.samples) {
    if (!seen.emplace(sample.name, sample.labels).second) {
      return Wrong("labels twice");
    }
    if (family.type == "counter" &&
        (!absl::EndsWith(name, "_total") || !(sample.value >= 0))) {
      return Wrong("a counter without _total, or below 0");
    }
    auto labels = sample.labels;
    labels.erase("le");
    by_labels[labels].push_back(&sample);
  }
  if (family.type != "histogram") return absl::OkStatus();
  for (const auto& [labels, samples] : by_labels) {
    ABSL_RETURN_IF_ERROR(CheckHistogram(samples, name));
  }
  return absl::OkStatus();
}

bool Includes(const std::map<std::string, std::string>& all,
              const std::map<std::string, std::string>& some) {
  return std::includes(all.begin(), all.end(), some.begin(), some.end());
}

template <typename Visit>
void ForEach(const Exposition& exposition, const std::string& name,
             const std::map<std::string, std::string>& labels,
             const Visit& visit) {
  for (const auto& [family_name, family] : exposition) {
    for (const ExpositionSample& sample : family.samples) {
      if (sample.name == name && Includes(sample.labels, labels)) visit(sample);
    }
  }
}

}  // namespace

absl::StatusOr<Exposition> ParseExposition(const std::string& text) {
  Exposition exposition;
  ExpositionFamily* family = nullptr;
  std::string name;
  if (!text.empty() && text.back() != '\n') return Wrong("no last end of line");
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  lines.pop_back();
  for (const std::string& line : lines) {
    absl::string_view rest = line;
    const auto wrong = [&line](absl::string_view what) {
      return Wrong(absl::StrCat(what, ": ", line));
    };
    if (absl::ConsumePrefix(&rest, "# HELP ")) {
      const std::vector<std::string> words =
          absl::StrSplit(rest, absl::MaxSplits(' ', 1));
      name = words[0];
      if (!IsName(name, /*of_label=*/false)) return wrong("name");
      if (words.size() < 2 || words[1].empty()) return wrong("no help");
      const auto [found, is_new] = exposition.try_emplace(name);
      if (!is_new) return wrong("a family twice");
      family = &found->second;
      family->help = words[1];
    } else if (absl::ConsumePrefix(&rest, "# TYPE ")) {
      if (family == nullptr || !family->type.empty() ||
          !absl::ConsumePrefix(&rest, name + " ")) {
        return wrong("TYPE without its HELP, or twice");
      }
      family->type = std::string(rest);
      if (rest != "counter" && rest != "gauge" && rest != "histogram") {
        return wrong("type");
      }
    } else {
      absl::StatusOr<ExpositionSample> sample = ParseSample(line);
      if (!sample.ok()) return wrong(sample.status().message());
      if (family == nullptr || family->type.empty() ||
          !BelongsTo(*sample, name, family->type)) {
        return wrong("a sample of no family");
      }
      family->samples.push_back(*std::move(sample));
    }
  }
  for (const auto& [family_name, checked] : exposition) {
    const absl::Status status = CheckFamily(family_name, checked);
    if (!status.ok()) {
      return Wrong(absl::StrCat(family_name, ": ", status.message()));
    }
  }
  return exposition;
}

double ValueOf(const Exposition& exposition, const std::string& name,
               const std::map<std::string, std::string>& labels) {
  double value = 0;
  bool found = false;
  ForEach(exposition, name, labels, [&](const ExpositionSample& sample) {
    if (sample.labels != labels) return;
    value = sample.value;
    found = true;
  });
  EXPECT_TRUE(found) << name;
  return value;
}

double SumOf(const Exposition& exposition, const std::string& name,
             const std::map<std::string, std::string>& labels) {
  double sum = 0;
  ForEach(exposition, name, labels,
          [&](const ExpositionSample& sample) { sum += sample.value; });
  return sum;
}

}  // namespace troupe
