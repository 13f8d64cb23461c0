// Tokens that are found in a text before it is split, such as
// "<|endoftext|>".
#ifndef TROUPE_MODEL_TOKENIZER_ADDED_TOKENS_H_
#define TROUPE_MODEL_TOKENIZER_ADDED_TOKENS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/tokenizer/byte_range.h"
#include "model/tokenizer/json_value.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/prefix_matcher.h"
#include "model/tokenizer/vocabulary.h"

namespace troupe::tokenizer {

struct AddedToken {
  int32_t id;
  std::string text;
  bool single_word;  // only where no word character is beside it
  bool lstrip;       // takes the white space before it too
  bool rstrip;       // and that behind it
  bool normalized;   // is looked for in the normalized text
  bool special;      // a control token
};

// A part of a text: an added token, or text between two.
struct Segment {
  int32_t token_id;  // Vocabulary::kNone: text
  ByteRange range;
};

// The added tokens of one tokenizer.json. Immutable and thread-safe.
class AddedTokens {
 public:
  // No value: none. Tokens that `vocabulary` lacks get the ids of the file.
  static absl::StatusOr<AddedTokens> Parse(
      const std::optional<JsonValue>& array, const Vocabulary& vocabulary,
      const Normalizer& normalizer);

  // Splits a text by the tokens that are looked for before it is normalized
  // or, with `normalized`, those after. No segment is empty. Control tokens
  // count with parse_special, but for those that begin at one of literal_at
  // (ascending).
  std::vector<Segment> Split(absl::string_view text, bool normalized,
                             bool parse_special,
                             absl::Span<const size_t> literal_at = {}) const;

  // Null when the id is no added token.
  const AddedToken* Find(int32_t id) const;
  int32_t FindText(absl::string_view text) const;
  // One more than the largest id; 0 without tokens.
  int32_t end() const { return end_; }

 private:
  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<int32_t, size_t> by_id_;
  absl::flat_hash_map<std::string, int32_t> by_text_;
  int32_t end_ = 0;
  PrefixMatcher raw_matcher_;  // values are indices into tokens_
  PrefixMatcher normalized_matcher_;
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_ADDED_TOKENS_H_
