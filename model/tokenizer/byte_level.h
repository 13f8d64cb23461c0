// The alphabet of byte-level BPE: every byte is written as a printable
// character, so that a vocabulary can be JSON.
//
// The 188 printable bytes of Latin-1 stand for themselves; the others are, in
// ascending order, U+0100 and up. GPT-2 introduced it ("Language Models are
// Unsupervised Multitask Learners", section 2.2).
#ifndef TROUPE_MODEL_TOKENIZER_BYTE_LEVEL_H_
#define TROUPE_MODEL_TOKENIZER_BYTE_LEVEL_H_

#include <string>

#include "absl/strings/string_view.h"

namespace troupe::tokenizer {

// Appends the characters that stand for `bytes`.
void AppendByteLevel(absl::string_view bytes, std::string* text);

// Appends the bytes that the characters of `token` (UTF-8) stand for. False,
// and nothing appended, when one of them stands for none.
bool AppendFromByteLevel(absl::string_view token, std::string* bytes);

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_BYTE_LEVEL_H_
