// UTF-8: checks, characters, and lossy decoding of a stream of bytes.
#ifndef TROUPE_MODEL_TOKENIZER_UTF8_H_
#define TROUPE_MODEL_TOKENIZER_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace troupe::tokenizer {

inline constexpr char kReplacementCharacter[] = "\xEF\xBF\xBD";  // U+FFFD

// What stands at the start of some bytes.
struct Utf8Step {
  enum Kind {
    kCharacter,
    // Not UTF-8: `num_bytes` is the maximal subpart of the Unicode standard
    // (section 3.9), for which one U+FFFD stands.
    kInvalid,
    // All bytes are the start of a character that is longer.
    kIncomplete,
  };
  Kind kind;
  size_t num_bytes;
  char32_t code_point;  // of kCharacter
};

// `bytes` must not be empty.
Utf8Step NextUtf8(absl::string_view bytes);

// The offset of the first byte that is not part of a character, or
// `text.size()`.
size_t FindInvalidUtf8(absl::string_view text);

void AppendUtf8(char32_t code_point, std::string* text);

// Turns bytes into text as they come. What is not UTF-8 becomes U+FFFD, once
// per maximal subpart. The start of a character is held back.
class LossyUtf8Stream {
 public:
  void Append(absl::string_view bytes, std::string* text);
  void Finish(std::string* text);

 private:
  std::string held_;  // at most three bytes
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_UTF8_H_
