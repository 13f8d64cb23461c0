// A template's source as tokens.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_LEXER_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_LEXER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace troupe::jinja {

struct Token {
  enum class Type {
    kData,  // text outside of tags
    kVariableBegin,
    kVariableEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Type type;
  int line;
  std::string text;  // of data, names and operators; of strings their value
  int64_t integer = 0;
  double real = 0;
};

// With trim_blocks and lstrip_blocks, as transformers sets them: the line end
// after a block goes, and so does the white space before one at the start of a
// line. The last token is kEnd.
absl::StatusOr<std::vector<Token>> Lex(absl::string_view source);

// "line 3: message".
absl::Status SyntaxError(int line, absl::string_view message);

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_LEXER_H_
