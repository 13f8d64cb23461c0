// Finds which of a set of texts stand at a position.
#ifndef TROUPE_MODEL_TOKENIZER_PREFIX_MATCHER_H_
#define TROUPE_MODEL_TOKENIZER_PREFIX_MATCHER_H_

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace troupe::tokenizer {

// A set of texts with values, as a trie. Thread-safe once it is filled.
class PrefixMatcher {
 public:
  // `value` is not negative. Of equal texts the first one counts; an empty one
  // is not added.
  void Add(absl::string_view text, int32_t value) {
    if (text.empty()) return;
    starts_[static_cast<uint8_t>(text[0])] = true;
    uint32_t node = 0;
    for (const char c : text) {
      const auto [it, inserted] = edges_.try_emplace(
          Edge(node, c), static_cast<uint32_t>(values_.size()));
      if (inserted) values_.push_back(kNoValue);
      node = it->second;
    }
    if (values_[node] == kNoValue) values_[node] = value;
  }

  // Calls visit(value, num_bytes) for each text that `text` starts with,
  // shortest first. O(length of the longest).
  template <typename Visit>
  void ForEachPrefix(absl::string_view text, Visit visit) const {
    if (text.empty() || !starts_[static_cast<uint8_t>(text[0])]) return;
    uint32_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      const auto it = edges_.find(Edge(node, text[i]));
      if (it == edges_.end()) return;
      node = it->second;
      if (values_[node] != kNoValue) visit(values_[node], i + 1);
    }
  }

  struct Match {
    int32_t value;
    size_t num_bytes;
  };
  // The longest text that `text` starts with.
  std::optional<Match> Find(absl::string_view text) const {
    std::optional<Match> longest;
    ForEachPrefix(text, [&](int32_t value, size_t num_bytes) {
      longest = Match{value, num_bytes};
    });
    return longest;
  }

 private:
  static constexpr int32_t kNoValue = -1;

  static uint64_t Edge(uint32_t node, char c) {
    return uint64_t{node} << 8 | static_cast<uint8_t>(c);
  }

  std::vector<int32_t> values_ = {kNoValue};  // by node; node 0 is the root
  std::array<bool, 256> starts_ = {};         // the bytes of the root's edges
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_PREFIX_MATCHER_H_
