#include "gateway/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace troupe {

StopMatcher::StopMatcher(const std::vector<std::string>& stops) {
  for (const std::string& stop : stops) {
    CHECK(!stop.empty());
    Automaton automaton;
    automaton.stop = stop;
    automaton.fallback.assign(stop.size(), 0);
    for (size_t i = 1, border = 0; i < stop.size(); ++i) {
      while (border > 0 && stop[i] != stop[border]) {
        border = automaton.fallback[border - 1];
      }
      if (stop[i] == stop[border]) ++border;
      automaton.fallback[i] = border;
    }
    automata_.push_back(std::move(automaton));
  }
}

void StopMatcher::Step(Automaton& automaton, char byte) {
  size_t matched = automaton.matched;
  while (matched > 0 && automaton.stop[matched] != byte) {
    matched = automaton.fallback[matched - 1];
  }
  if (automaton.stop[matched] == byte) ++matched;
  automaton.matched = matched;
}

StopMatcher::Result StopMatcher::Append(absl::string_view piece) {
  Result result;
  size_t longest = 0;  // beginning of a stop text at the end of the text
  for (const char byte : piece) {
    held_.push_back(byte);
    longest = 0;
    for (Automaton& automaton : automata_) {
      Step(automaton, byte);
      longest = std::max(longest, automaton.matched);
      if (automaton.matched == automaton.stop.size() &&
          (result.stop == nullptr ||
           result.stop->size() < automaton.stop.size())) {
        result.stop = &automaton.stop;
      }
    }
    if (result.stop != nullptr) {
      result.text = held_.substr(0, held_.size() - result.stop->size());
      held_.clear();
      return result;
    }
  }
  if (piece.empty()) return result;
  result.text = held_.substr(0, held_.size() - longest);
  held_.erase(0, result.text.size());
  return result;
}

std::string StopMatcher::Flush() {
  for (Automaton& automaton : automata_) automaton.matched = 0;
  return std::exchange(held_, std::string());
}

}  // namespace troupe
