// The nearest of some names to a mistyped one.
#ifndef TROUPE_TOOLS_CLI_DID_YOU_MEAN_H_
#define TROUPE_TOOLS_CLI_DID_YOU_MEAN_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace troupe {

// Insertions, deletions, replacements and swaps of neighbours that lead from
// one to the other (optimal string alignment).
size_t EditDistance(absl::string_view a, absl::string_view b);

// The candidate with the least distance, the first of several; empty when all
// are further than a third of the longer length, rounded up.
std::string DidYouMean(const std::string& typed,
                       const std::vector<std::string>& candidates);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_DID_YOU_MEAN_H_
