// The normalizer inside a SentencePiece model.
#ifndef TROUPE_MODEL_TOKENIZER_SENTENCEPIECE_NORMALIZER_H_
#define TROUPE_MODEL_TOKENIZER_SENTENCEPIECE_NORMALIZER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/prefix_matcher.h"
#include "model/tokenizer/sentencepiece_model.pb.h"

namespace troupe::tokenizer {

// U+2581, which stands for a space inside pieces.
inline constexpr char kSpaceSymbol[] = "\xE2\x96\x81";

// Replaces characters by a table, joins white space and writes spaces as
// kSpaceSymbol. Immutable and thread-safe.
//
// The table is a double-array trie (Aoe, "An efficient digital search
// algorithm by using a double-array structure", 1989) in the layout of the
// Darts-clone library: little-endian 32-bit units, each with a label in bits
// 0-7, "has a value" in bit 8, and an offset in bits 10-30 that is shifted by
// 8 when bit 9 is set; a unit with bit 31 holds a value. Behind it stand the
// replacements, each ended by a zero byte; a value is the place of one.
class SentencePieceNormalizer {
 public:
  // `user_defined` are texts that are never replaced.
  static absl::StatusOr<SentencePieceNormalizer> Parse(
      const sentencepiece::Normalizer& proto, PrefixMatcher user_defined);

  // `text` is UTF-8.
  std::string Apply(absl::string_view text) const;

  // Whether decoding removes the space that Apply puts in front.
  bool strips_first_space() const {
    return add_dummy_prefix_ || remove_extra_whitespaces_;
  }
  bool strips_all_first_spaces() const { return remove_extra_whitespaces_; }

 private:
  struct Replacement {
    absl::string_view text;
    size_t num_bytes;  // of what it replaces
  };

  absl::Status ParseTable(absl::string_view table);
  // Of the longest key that `text` starts with, else of its first character.
  Replacement FirstReplacement(absl::string_view text) const;

  bool add_dummy_prefix_ = true;
  bool remove_extra_whitespaces_ = true;
  bool escape_whitespaces_ = true;
  PrefixMatcher user_defined_;
  std::vector<uint32_t> trie_;
  std::string replacements_;  // ends with a zero byte unless empty
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_SENTENCEPIECE_NORMALIZER_H_
