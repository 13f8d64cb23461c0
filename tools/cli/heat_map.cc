#include "tools/cli/heat_map.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace troupe {
namespace {

constexpr char kShades[] = " .:-=+*#%@";
constexpr size_t kNumShades = sizeof(kShades) - 1;
constexpr size_t kLabelColumns = 10;      // "layer  12 "
constexpr size_t kImbalanceColumns = 12;  // "  max/mean"
constexpr size_t kDigitCellColumns = 5;   // " 1.25"

// From cold to hot in the 256 colours of terminals: blue, green, yellow, red.
constexpr int kColours[] = {17, 18, 24, 30, 36, 70, 142, 178, 202, 196};

uint64_t Sum(const std::vector<uint64_t>& values) {
  return std::accumulate(values.begin(), values.end(), uint64_t{0});
}

// Experts per cell so that all cells fit; and columns per cell.
struct Grid {
  size_t group = 1;
  size_t cell_columns = kDigitCellColumns;
  bool digits = true;
};

Grid ChooseGrid(size_t num_experts, size_t columns) {
  const size_t room =
      columns > kLabelColumns + kImbalanceColumns + kDigitCellColumns
          ? columns - kLabelColumns - kImbalanceColumns
          : kDigitCellColumns;
  if (num_experts * kDigitCellColumns <= room) return {};
  const size_t group = (num_experts + room - 1) / room;
  return {.group = group, .cell_columns = 1, .digits = false};
}

// The share of a group relative to an equal one, 1 = equal.
double RelativeShare(const std::vector<uint64_t>& tokens, size_t begin,
                     size_t end) {
  const uint64_t total = Sum(tokens);
  if (total == 0) return 0;
  uint64_t part = 0;
  for (size_t i = begin; i < end; ++i) part += tokens[i];
  return static_cast<double>(part) / static_cast<double>(total) *
         static_cast<double>(tokens.size()) / static_cast<double>(end - begin);
}

// An equal share is in the middle, twice that or more at the end.
size_t Heat(double relative_share, size_t num_steps) {
  const double scaled = relative_share / 2 * static_cast<double>(num_steps);
  return std::min(num_steps - 1, static_cast<size_t>(scaled));
}

std::string Cell(double relative_share, const Grid& grid,
                 const HeatMapStyle& style) {
  std::string text;
  if (grid.digits) {
    text = absl::StrFormat("%*.2f", static_cast<int>(grid.cell_columns),
                           std::min(relative_share, 99.0));
  } else {
    text = style.colour
               ? " "
               : std::string(1, kShades[Heat(relative_share, kNumShades)]);
  }
  if (!style.colour) return text;
  constexpr size_t kNumColours = sizeof(kColours) / sizeof(kColours[0]);
  const int colour = kColours[Heat(relative_share, kNumColours)];
  return absl::StrFormat("\x1b[48;5;%dm\x1b[97m%s\x1b[0m", colour, text);
}

}  // namespace

double Imbalance(const std::vector<uint64_t>& tokens_per_expert) {
  const uint64_t total = Sum(tokens_per_expert);
  if (total == 0) return 0;
  const uint64_t max =
      *std::max_element(tokens_per_expert.begin(), tokens_per_expert.end());
  return static_cast<double>(max) *
         static_cast<double>(tokens_per_expert.size()) /
         static_cast<double>(total);
}

std::vector<HeatMapRow> MergeLayers(const std::vector<HeatMapRow>& rows) {
  std::map<uint32_t, HeatMapRow> merged;
  for (const HeatMapRow& row : rows) {
    HeatMapRow& sum = merged[row.layer];
    sum.layer = row.layer;
    sum.tokens_per_expert.resize(
        std::max(sum.tokens_per_expert.size(), row.tokens_per_expert.size()));
    for (size_t i = 0; i < row.tokens_per_expert.size(); ++i) {
      sum.tokens_per_expert[i] += row.tokens_per_expert[i];
    }
  }
  std::vector<HeatMapRow> result;
  for (auto& [layer, row] : merged) result.push_back(std::move(row));
  return result;
}

std::vector<HeatMapRow> SubtractLayers(const std::vector<HeatMapRow>& now,
                                       const std::vector<HeatMapRow>& before) {
  std::map<uint32_t, const HeatMapRow*> old;
  for (const HeatMapRow& row : before) old[row.layer] = &row;
  std::vector<HeatMapRow> result = now;
  for (HeatMapRow& row : result) {
    const auto entry = old.find(row.layer);
    if (entry == old.end()) continue;
    const std::vector<uint64_t>& base = entry->second->tokens_per_expert;
    for (size_t i = 0; i < row.tokens_per_expert.size() && i < base.size();
         ++i) {
      uint64_t& value = row.tokens_per_expert[i];
      if (value >= base[i]) value -= base[i];
    }
  }
  return result;
}

std::string RenderHeatMap(const std::vector<HeatMapRow>& rows,
                          const HeatMapStyle& style) {
  size_t num_experts = 0;
  for (const HeatMapRow& row : rows) {
    num_experts = std::max(num_experts, row.tokens_per_expert.size());
  }
  if (num_experts == 0) return "no expert has had a token yet\n";
  const Grid grid = ChooseGrid(num_experts, style.columns);
  const size_t num_cells = (num_experts + grid.group - 1) / grid.group;
  std::string text(kLabelColumns, ' ');
  if (grid.digits) {
    for (size_t cell = 0; cell < num_cells; ++cell) {
      absl::StrAppendFormat(&text, "%*d", static_cast<int>(grid.cell_columns),
                            static_cast<int>(cell));
    }
  } else {
    const std::string first = "0";
    const std::string last = absl::StrCat(num_experts - 1);
    absl::StrAppend(&text, first);
    if (num_cells > first.size() + last.size()) {
      text.append(num_cells - first.size() - last.size(), ' ');
      absl::StrAppend(&text, last);
    }
  }
  absl::StrAppend(&text, "  max/mean\n");
  for (const HeatMapRow& row : rows) {
    absl::StrAppendFormat(&text, "layer %3d ", static_cast<int>(row.layer));
    for (size_t begin = 0; begin < row.tokens_per_expert.size();
         begin += grid.group) {
      const size_t end =
          std::min(begin + grid.group, row.tokens_per_expert.size());
      absl::StrAppend(
          &text,
          Cell(RelativeShare(row.tokens_per_expert, begin, end), grid, style));
    }
    absl::StrAppendFormat(&text, "  %8.2f\n", Imbalance(row.tokens_per_expert));
  }
  return text;
}

}  // namespace troupe
