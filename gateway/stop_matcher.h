// Finds the first stop text in a growing text.
#ifndef TROUPE_GATEWAY_STOP_MATCHER_H_
#define TROUPE_GATEWAY_STOP_MATCHER_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace troupe {

// The first stop text is the one that is complete first; of several that are
// complete at the same byte, the longest. That depends on the text alone, not
// on how it was cut into pieces. Holds back as many bytes as the longest
// beginning of a stop text at the end of the text; pieces and stop texts are
// whole UTF-8 characters, therefore what it lets through is, too.
//
// One Knuth-Morris-Pratt automaton per stop text: constant work per byte and
// stop text. Owns copies of the stop texts; one thread at a time.
class StopMatcher {
 public:
  // Empty stop texts are not allowed.
  explicit StopMatcher(const std::vector<std::string>& stops);

  struct Result {
    std::string text;                   // now certain
    const std::string* stop = nullptr;  // set when a stop text is complete
  };

  // The text after a stop is dropped; call no more once one was found.
  Result Append(absl::string_view piece);

  // Gives up what is held back. Matches do not reach over a Flush.
  std::string Flush();

 private:
  struct Automaton {
    std::string stop;
    std::vector<size_t> fallback;  // [stop.size()]: longest proper border
    size_t matched = 0;            // bytes of stop at the end of the text
  };
  static void Step(Automaton& automaton, char byte);

  std::vector<Automaton> automata_;
  std::string held_;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_STOP_MATCHER_H_
