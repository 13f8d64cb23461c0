// The pre-tokenizers of tokenizer.json: how a text is split into the pieces
// that are merged on their own.
#ifndef TROUPE_MODEL_TOKENIZER_PRE_TOKENIZER_H_
#define TROUPE_MODEL_TOKENIZER_PRE_TOKENIZER_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tokenizer/byte_range.h"
#include "model/tokenizer/json_value.h"
#include "model/tokenizer/regex.h"

namespace troupe::tokenizer {

// A text and the ranges of it that are its pieces, in order, none empty.
struct Pieces {
  std::string text;
  std::vector<ByteRange> ranges;
  // The first piece starts where the whole text of the caller starts.
  bool at_start = false;
};

enum class SplitBehavior {
  kRemoved,             // a match is left out
  kIsolated,            // a match is a piece
  kMergedWithPrevious,  // a match is the end of the piece before it
  kMergedWithNext,      // a match is the start of the piece after it
  kContiguous,          // matches side by side are one piece
};

// The chain of pre-tokenizers of one tokenizer. Immutable and thread-safe.
class PreTokenizer {
 public:
  // One element of the chain.
  class Step {
   public:
    virtual ~Step() = default;
    virtual absl::Status Apply(Pieces* pieces) const = 0;
  };

  // No value: no splitting.
  static absl::StatusOr<PreTokenizer> Parse(
      const std::optional<JsonValue>& value);

  // Refines `pieces`. ResourceExhausted: a pattern takes too many steps.
  absl::Status Apply(Pieces* pieces) const;

 private:
  absl::Status Add(const JsonValue& value);

  std::vector<std::unique_ptr<const Step>> steps_;
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_PRE_TOKENIZER_H_
