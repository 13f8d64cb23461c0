// A part of a text.
#ifndef TROUPE_MODEL_TOKENIZER_BYTE_RANGE_H_
#define TROUPE_MODEL_TOKENIZER_BYTE_RANGE_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace troupe::tokenizer {

// Half-open, in bytes. Texts are shorter than 4 GiB.
struct ByteRange {
  uint32_t size() const { return end - begin; }
  absl::string_view Of(absl::string_view text) const {
    return text.substr(begin, size());
  }

  uint32_t begin;
  uint32_t end;
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_BYTE_RANGE_H_
