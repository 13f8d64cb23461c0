// A template's source as a tree.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_PARSER_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_PARSER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/chat_template/ast.h"

namespace troupe::jinja {

// InvalidArgument names the line and what is wrong or not supported there:
// unknown statements, filters, tests, functions and methods, and calls of them
// that no arguments can make right, are found here.
absl::StatusOr<std::unique_ptr<const Template>> Parse(absl::string_view source);

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_PARSER_H_
