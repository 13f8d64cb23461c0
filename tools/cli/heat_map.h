// Which experts the tokens went to, as a picture of characters.
#ifndef TROUPE_TOOLS_CLI_HEAT_MAP_H_
#define TROUPE_TOOLS_CLI_HEAT_MAP_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace troupe {

// One layer's load: tokens_per_expert [num_experts].
struct HeatMapRow {
  uint32_t layer = 0;
  std::vector<uint64_t> tokens_per_expert;
};

// max / mean of the experts' tokens; 0 without tokens. 1 is perfect balance,
// num_experts the worst.
double Imbalance(const std::vector<uint64_t>& tokens_per_expert);

// Rows of the same layer added up, ascending by layer.
std::vector<HeatMapRow> MergeLayers(const std::vector<HeatMapRow>& rows);

// now - before, layer by layer; rows of `now` that `before` does not have are
// kept. A counter that shrank (a process started again) counts from zero.
std::vector<HeatMapRow> SubtractLayers(const std::vector<HeatMapRow>& now,
                                       const std::vector<HeatMapRow>& before);

struct HeatMapStyle {
  bool colour = false;  // ANSI background colours
  size_t columns = 80;  // neighbouring experts are put together to fit
};

// A line of column numbers, then per layer one cell per expert (or group of
// neighbours) and the imbalance. A cell shows the share of the layer's tokens
// relative to an equal one: as a number ("1.00" is an equal share) with few
// experts, as one character of " .:-=+*#%@" or a colour with many.
std::string RenderHeatMap(const std::vector<HeatMapRow>& rows,
                          const HeatMapStyle& style);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_HEAT_MAP_H_
