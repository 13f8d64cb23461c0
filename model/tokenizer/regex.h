// Regular expressions of tokenizer.json, matched by PCRE2.
#ifndef TROUPE_MODEL_TOKENIZER_REGEX_H_
#define TROUPE_MODEL_TOKENIZER_REGEX_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/byte_range.h"

namespace troupe::tokenizer {

// A compiled pattern. The patterns are written for Oniguruma (Ruby syntax), so
// they are translated; what the two libraries read differently is refused.
// Immutable and thread-safe.
class Regex {
 public:
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // Unimplemented names the part of the pattern that is not supported.
  static absl::StatusOr<std::unique_ptr<const Regex>> Compile(
      absl::string_view pattern);
  // Matches `text` itself, which must not be empty.
  static absl::StatusOr<std::unique_ptr<const Regex>> Literal(
      absl::string_view text);

  // Appends all matches from left to right, none overlapping. `text` must be
  // UTF-8. ResourceExhausted when a match takes too many steps.
  absl::Status FindAll(absl::string_view text,
                       std::vector<ByteRange>* matches) const;

 private:
  struct Impl;
  explicit Regex(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_REGEX_H_
