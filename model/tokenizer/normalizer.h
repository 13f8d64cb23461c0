// The normalizers of tokenizer.json: what happens to a text before it is
// split.
#ifndef TROUPE_MODEL_TOKENIZER_NORMALIZER_H_
#define TROUPE_MODEL_TOKENIZER_NORMALIZER_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/json_value.h"
#include "model/tokenizer/regex.h"

namespace troupe::tokenizer {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

// `text` (UTF-8) in a normalization form. The time is O(n log n), also for
// long runs of combining marks.
std::string NormalizeUnicode(UnicodeForm form, absl::string_view text);

// A pattern of tokenizer.json: {"String": ...} or {"Regex": ...}. Null for an
// empty string, which matches nothing.
absl::StatusOr<std::unique_ptr<const Regex>> ParsePattern(
    const JsonValue& pattern);

// `text` with every match of `regex` replaced by `content`.
absl::StatusOr<std::string> ReplaceAll(const Regex& regex,
                                       absl::string_view content,
                                       absl::string_view text);

// The chain of normalizers of one tokenizer. Immutable and thread-safe.
class Normalizer {
 public:
  // No value: no normalizer.
  static absl::StatusOr<Normalizer> Parse(
      const std::optional<JsonValue>& value);

  absl::StatusOr<std::string> Apply(absl::string_view text) const;

 private:
  struct Step {
    enum Kind { kUnicode, kPrepend, kReplace };
    Kind kind;
    UnicodeForm form;                    // of kUnicode
    std::string content;                 // of kPrepend and kReplace
    std::shared_ptr<const Regex> regex;  // of kReplace
  };

  absl::Status Add(const JsonValue& value);

  std::vector<Step> steps_;
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_NORMALIZER_H_
