// The functions that a template can call without an object.
#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/chat_template/builtin.h"
#include "model/chat_template/operators.h"
#include "model/chat_template/print.h"

namespace troupe::jinja {
namespace {

absl::StatusOr<Value> Range(Runtime& runtime, const Value&, const Args& args) {
  int64_t bounds[3] = {0, 0, 1};  // start, stop, step
  for (size_t i = 0; i < 3; ++i) {
    if (args.Get(i) == nullptr) continue;
    ABSL_ASSIGN_OR_RETURN(bounds[i], IntOf(args[i], "an argument of range"));
  }
  if (args.Get(1) == nullptr) std::swap(bounds[0], bounds[1]);
  const auto [start, stop, step] = bounds;
  if (step == 0) return TypeError("range's step must not be zero");
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) == kMaxRange) {
      return absl::InvalidArgumentError(
          absl::StrCat("a range of more than ", kMaxRange, " items"));
    }
    items.push_back(Value::Int(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  ABSL_RETURN_IF_ERROR(
      runtime.heap.Spend(static_cast<int64_t>(items.size()) / 8));
  return runtime.heap.NewSequence(Sequence::Shape::kRange, std::move(items));
}

absl::StatusOr<Value> MakeDict(Runtime& runtime, const Value&,
                               const Args& args) {
  std::vector<std::pair<Value, Value>> items;
  if (const Value* base = args.Get(0); base != nullptr) {
    if (!base->Is(Value::Kind::kMap)) {
      return TypeError(
          absl::StrCat("dict() takes a dict, not a ", TypeName(*base)));
    }
    items = base->map().items;
  }
  for (const auto& [name, value] : args.more.keywords) {
    ABSL_ASSIGN_OR_RETURN(const Value key,
                          runtime.heap.NewText(std::string(name)));
    items.emplace_back(key, value);
  }
  return runtime.heap.NewMap(std::move(items));
}

absl::StatusOr<Value> MakeNamespace(Runtime& runtime, const Value& subject,
                                    const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const Value dict, MakeDict(runtime, subject, args));
  ABSL_ASSIGN_OR_RETURN(const Value result, runtime.heap.NewNamespace());
  for (const auto& [key, value] : dict.map().items) {
    if (absl::StartsWith(key.text(), "_")) {
      return absl::InvalidArgumentError(
          "a namespace takes no name that begins with an underscore");
    }
    result.name_space().attributes.emplace_back(std::string(key.text()), value);
  }
  return result;
}

absl::StatusOr<Value> RaiseException(Runtime& runtime, const Value&,
                                     const Args& args) {
  ABSL_ASSIGN_OR_RETURN(std::string text, ToText(runtime.heap, args[0]));
  runtime.has_raised = true;
  return absl::InvalidArgumentError(std::move(text));
}

absl::StatusOr<Value> StrftimeNow(Runtime& runtime, const Value&,
                                  const Args& args) {
  // One conversion gives at most some dozen bytes.
  constexpr size_t kMaxFormatBytes = 256;
  ABSL_ASSIGN_OR_RETURN(const absl::string_view format,
                        TextOf(args[0], "the format of strftime_now"));
  if (format.empty()) return runtime.heap.NewText("");
  if (format.size() > kMaxFormatBytes ||
      absl::StrContains(format, absl::string_view("\0", 1))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "strftime_now takes a format of at most ", kMaxFormatBytes, " bytes"));
  }
  const std::time_t now = runtime.now();
  std::tm parts{};
  localtime_r(&now, &parts);
  std::string text(16 * kMaxFormatBytes, '\0');
  // The mark tells an empty result from one that does not fit.
  const std::string marked = absl::StrCat(format, "|");
  const size_t size =
      std::strftime(text.data(), text.size(), marked.c_str(), &parts);
  if (size == 0) {
    return absl::InvalidArgumentError("strftime_now makes too long a text");
  }
  text.resize(size - 1);
  return runtime.heap.NewText(std::move(text));
}

}  // namespace

const Builtin* FindFunction(absl::string_view name) {
  static const auto& table = *new std::vector<Builtin>{
      {"range", {"start", "stop", "step"}, 1, Range},
      {"dict", {"mapping"}, 0, MakeDict, true},
      {"namespace", {"mapping"}, 0, MakeNamespace, true},
      {"raise_exception", {"message"}, 1, RaiseException},
      {"strftime_now", {"format"}, 1, StrftimeNow},
  };
  return FindIn(table, name);
}

}  // namespace troupe::jinja
