#include "cluster/expert_range.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/check.h"

namespace troupe {
namespace {

bool ParseNumber(absl::string_view text, size_t& number) {
  // SimpleAtoi accepts signs and spaces; a flag should not.
  if (text.empty() || text.size() > 9) return false;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
  }
  return absl::SimpleAtoi(text, &number);
}

}  // namespace

absl::StatusOr<std::vector<HalfOpenRange>> ParseRanges(const std::string& text,
                                                       size_t limit) {
  std::vector<HalfOpenRange> ranges;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> ends = absl::StrSplit(part, '-');
    size_t first = 0;
    size_t last = 0;
    if (ends.size() > 2 || !ParseNumber(ends.front(), first) ||
        !ParseNumber(ends.back(), last) || last < first) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", part, "\" in \"", text,
                       "\" is not a number or a range such as 0-3"));
    }
    if (last >= limit) {
      return absl::InvalidArgumentError(absl::StrCat(
          "\"", part, "\" in \"", text, "\": the model has only ", limit));
    }
    ranges.push_back({first, last + 1});
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const HalfOpenRange& a, const HalfOpenRange& b) {
              return a.begin < b.begin;
            });
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[i - 1].end) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", text, "\" names ", ranges[i].begin, " twice"));
    }
  }
  return ranges;
}

std::vector<std::string> SplitExperts(size_t num_experts,
                                      size_t num_processes) {
  CHECK(num_processes >= 1 && num_processes <= num_experts);
  std::vector<std::string> ranges;
  size_t begin = 0;
  for (size_t i = 0; i < num_processes; ++i) {
    const size_t size =
        num_experts / num_processes + (i < num_experts % num_processes ? 1 : 0);
    ranges.push_back(size == 1 ? absl::StrCat(begin)
                               : absl::StrCat(begin, "-", begin + size - 1));
    begin += size;
  }
  return ranges;
}

std::string ToString(const v1::ExpertRange& range) {
  return absl::StrCat("experts ", range.expert_begin(), "-",
                      range.expert_end() - 1, " of layers ",
                      range.layer_begin(), "-", range.layer_end() - 1);
}

}  // namespace troupe
