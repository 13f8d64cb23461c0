// Token texts and their ids.
#ifndef TROUPE_MODEL_TOKENIZER_VOCABULARY_H_
#define TROUPE_MODEL_TOKENIZER_VOCABULARY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/node_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace troupe::tokenizer {

// A two-way map; ids may have gaps. Thread-safe once it is filled.
class Vocabulary {
 public:
  static constexpr int32_t kMaxId = (1 << 22) - 1;
  static constexpr size_t kMaxTokenBytes = 16 << 10;
  static constexpr int32_t kNone = -1;

  // InvalidArgument: the text or the id is taken by another, or out of range.
  absl::Status Add(absl::string_view text, int64_t id);

  // kNone when the text is no token.
  int32_t Find(absl::string_view text) const {
    const auto it = ids_.find(text);
    return it == ids_.end() ? kNone : it->second;
  }

  // Null when the id is no token.
  const std::string* Text(int32_t id) const {
    return id >= 0 && id < end() ? texts_[id] : nullptr;
  }

  // One more than the largest id.
  int32_t end() const { return static_cast<int32_t>(texts_.size()); }

 private:
  absl::node_hash_map<std::string, int32_t> ids_;
  std::vector<const std::string*> texts_;  // keys of ids_, or null
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_VOCABULARY_H_
