// The decoders of tokenizer.json: from token texts to text.
#ifndef TROUPE_MODEL_TOKENIZER_DECODER_H_
#define TROUPE_MODEL_TOKENIZER_DECODER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/json_value.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/utf8.h"

namespace troupe::tokenizer {

// The byte that a token such as "<0x0A>" stands for.
std::optional<char> ParseByteToken(absl::string_view token);

// The chain of decoders of one tokenizer. Immutable and thread-safe.
//
// The chain has two parts: steps that see tokens one by one and, after Fuse or
// ByteLevel, steps that see one text. Both work as the tokens come.
class Decoder {
 private:
  struct Step {
    enum Kind {
      kReplace,       // a pattern in each token
      kByteFallback,  // runs of byte tokens become characters
      kStrip,         // characters at the start and end
      kMetaspace,     // the replacement becomes a space, none at the start
      kByteLevel,     // the characters of a token stand for bytes
      kSpaces,        // a space between tokens
    };
    Kind kind;
    std::shared_ptr<const Regex> regex;  // kReplace
    std::string content;   // kReplace: by what; kStrip, kMetaspace: which one
    size_t num_start = 0;  // kStrip: at most so many
    size_t num_end = 0;
    bool keep_first = false;  // kMetaspace: the first token keeps its spaces
  };

 public:
  // The state of one decoding. Refers to the decoder. One thread at a time.
  class Stream {
   public:
    explicit Stream(const Decoder& decoder);
    // Appends to `text` what is certain now: whole characters.
    void Append(absl::string_view token, std::string* text);
    void Finish(std::string* text);

   private:
    struct StepState {
      bool started = false;  // has seen a token
      std::string held;      // kByteFallback: bytes; kStrip: characters
      size_t num_stripped = 0;
      bool stripping = true;
    };

    void RunTokenSteps(size_t first, std::string token, std::string* text);
    void FlushBytes(size_t step, std::string* text);
    void RunTextSteps(size_t first, std::string part, std::string* text);
    std::string StripPart(size_t step, std::string part);

    const Decoder& decoder_;
    std::vector<StepState> states_;
    LossyUtf8Stream bytes_;  // of kByteLevel
  };

  // No value: the tokens with spaces between them.
  static absl::StatusOr<Decoder> Parse(const std::optional<JsonValue>& value);

  // The bytes of one token in the middle of a text.
  std::string TokenBytes(absl::string_view token) const;

 private:
  absl::Status Add(const JsonValue& value);

  std::vector<Step> steps_;
  // Steps from here on see one text.
  std::optional<size_t> fused_from_;
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_DECODER_H_
