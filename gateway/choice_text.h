// From the tokens of one choice to the text that its client sees.
#ifndef TROUPE_GATEWAY_CHOICE_TEXT_H_
#define TROUPE_GATEWAY_CHOICE_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "gateway/stop_matcher.h"
#include "model/tokenizer/tokenizer.h"

namespace troupe {

struct ChoiceTextOptions {
  std::vector<std::string> stop;
  bool include_stop = false;
  bool keep_special_tokens = false;
  // Stop texts do not count before that many tokens; the text of earlier
  // tokens is not searched.
  size_t min_tokens = 0;
};

// Decodes tokens into deltas of whole UTF-8 characters and ends the text at
// the first stop text. A pure function of the tokens: the deltas differ with
// the timing, their concatenation does not. Refers to the tokenizer, which
// must outlive it; one thread at a time.
class ChoiceText {
 public:
  // The prompt gives the first token its context (some tokenizers drop a
  // leading space at the start of a text); its text is not repeated.
  ChoiceText(const Tokenizer& tokenizer, const ChoiceTextOptions& options,
             absl::Span<const uint32_t> prompt_token_ids);

  struct Delta {
    std::string text;
    bool stopped = false;  // by a stop text: the choice ends here
    std::string stop;      // which
  };

  Delta Append(uint32_t token_id);

  // After the last token, unless stopped: what was held back.
  Delta Finish();

 private:
  Delta Search(const std::string& text);

  const bool include_stop_;
  const size_t min_tokens_;
  size_t num_tokens_ = 0;
  StreamDecoder decoder_;
  StopMatcher matcher_;
};

// The text of a token alone; bytes that are not a whole UTF-8 character become
// U+FFFD.
std::string TokenText(const Tokenizer& tokenizer, uint32_t token_id);

// Replaces every maximal invalid part by U+FFFD, as the Unicode standard
// recommends (section 3.9, "U+FFFD substitution of maximal subparts").
std::string ToValidUtf8(const std::string& bytes);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_CHOICE_TEXT_H_
