// Filters, tests, functions and methods: what they share.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_BUILTIN_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_BUILTIN_H_

#include <ctime>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/chat_template/value.h"

namespace troupe::jinja {

// One rendering, as builtins see it.
struct Runtime {
  Heap heap;
  std::function<std::time_t()> now;
  bool has_raised = false;  // raise_exception() was called
};

// The arguments of a call as they were written, evaluated.
struct CallArguments {
  std::vector<Value> positional;
  std::vector<std::pair<absl::string_view, Value>> keywords;
};

// The arguments of a call by parameter.
class Args {
 public:
  // Null when the caller did not give parameter `i`.
  const Value* Get(size_t i) const {
    return i < values_.size() && values_[i] ? &*values_[i] : nullptr;
  }
  // For parameters that every call must give.
  const Value& operator[](size_t i) const { return *values_[i]; }
  bool IsTrueAt(size_t i, bool otherwise) const {
    const Value* value = Get(i);
    return value == nullptr ? otherwise : IsTrue(*value);
  }

  // Beyond the parameters, of builtins that take any number.
  CallArguments more;

 private:
  friend absl::StatusOr<Args> Bind(const Builtin& builtin, CallArguments call);
  std::vector<std::optional<Value>> values_;
};

struct Builtin {
  // `subject` is the value that a filter, test or method works on.
  using Function = absl::StatusOr<Value> (*)(Runtime& runtime,
                                             const Value& subject,
                                             const Args& args);
  absl::string_view name;
  std::vector<absl::string_view> parameters;
  size_t num_required = 0;
  Function function = nullptr;
  bool takes_more = false;  // *args, **kwargs
};

// InvalidArgument when no call with these arguments can be right.
absl::Status CheckCall(const Builtin& builtin, size_t num_positional,
                       absl::Span<const absl::string_view> keywords);
absl::StatusOr<Args> Bind(const Builtin& builtin, CallArguments call);
absl::StatusOr<Value> Call(Runtime& runtime, const Builtin& builtin,
                           const Value& subject, CallArguments call);

// Null when there is none of the name.
const Builtin* FindFilter(absl::string_view name);
const Builtin* FindTest(absl::string_view name);
const Builtin* FindFunction(absl::string_view name);
const Builtin* FindMethod(const Value& self, absl::string_view name);
// Whether any type has such a method, and whether a call can be right.
absl::Status CheckMethodCall(absl::string_view name, size_t num_positional,
                             absl::Span<const absl::string_view> keywords);

// The one of `table` that is called `name`, or null.
const Builtin* FindIn(absl::Span<const Builtin> table, absl::string_view name);

// Arguments that builtins want to be of a type.
absl::StatusOr<absl::string_view> TextOf(const Value& value,
                                         absl::string_view what);
absl::StatusOr<int64_t> IntOf(const Value& value, absl::string_view what);

// printf-like formatting of the operator % and the filter `format`.
absl::StatusOr<Value> FormatPercent(Heap& heap, absl::string_view format,
                                    absl::Span<const Value> values);

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_BUILTIN_H_
