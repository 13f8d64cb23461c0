// Filters that make texts.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/chat_template/filters.h"
#include "model/chat_template/operators.h"
#include "model/chat_template/print.h"
#include "model/chat_template/text.h"

namespace troupe::jinja {
namespace {

using Kind = Value::Kind;

template <std::string (*kChange)(absl::string_view)>
absl::StatusOr<Value> Changed(Runtime& runtime, const Value& value,
                              const Args&) {
  ABSL_ASSIGN_OR_RETURN(const std::string text, ToText(runtime.heap, value));
  return runtime.heap.NewText(kChange(text));
}

absl::StatusOr<Value> String(Runtime& runtime, const Value& value,
                             const Args&) {
  if (value.Is(Kind::kText)) return value;
  ABSL_ASSIGN_OR_RETURN(std::string text, ToText(runtime.heap, value));
  return runtime.heap.NewText(std::move(text));
}

absl::StatusOr<Value> Trim(Runtime& runtime, const Value& value,
                           const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const Value text, String(runtime, value, args));
  const Builtin* strip = FindMethod(text, "strip");
  return Call(runtime, *strip, text,
              {{args.Get(0) == nullptr ? Value::None() : args[0]}, {}});
}

absl::StatusOr<Value> Replace(Runtime& runtime, const Value& value,
                              const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const std::string text, ToText(runtime.heap, value));
  ABSL_ASSIGN_OR_RETURN(const std::string old, ToText(runtime.heap, args[0]));
  ABSL_ASSIGN_OR_RETURN(const std::string fresh, ToText(runtime.heap, args[1]));
  int64_t count = -1;
  if (args.Get(2) != nullptr && !args[2].Is(Kind::kNone)) {
    ABSL_ASSIGN_OR_RETURN(count, IntOf(args[2], "count"));
  }
  return ReplaceAll(runtime.heap, text, old, fresh, count);
}

// A text as it is, a number of spaces otherwise.
absl::StatusOr<std::string> Indentation(Runtime& runtime, const Value& value) {
  if (value.Is(Kind::kText)) return std::string(value.text());
  ABSL_ASSIGN_OR_RETURN(const int64_t width, IntOf(value, "an indentation"));
  if (width <= 0) return std::string();
  ABSL_RETURN_IF_ERROR(runtime.heap.Allocate(static_cast<size_t>(width)));
  return std::string(static_cast<size_t>(width), ' ');
}

absl::StatusOr<Value> Indent(Runtime& runtime, const Value& value,
                             const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const absl::string_view text,
                        TextOf(value, "what 'indent' takes"));
  std::string indentation = "    ";
  if (args.Get(0) != nullptr) {
    ABSL_ASSIGN_OR_RETURN(indentation, Indentation(runtime, args[0]));
  }
  const bool first = args.IsTrueAt(1, false);
  const bool blank = args.IsTrueAt(2, false);
  // As Jinja does: with one more line end, so that the last line's counts.
  const std::string ended = absl::StrCat(text, "\n");
  ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(ended.size()));
  Writer out(runtime.heap);
  bool is_first = true;
  for (absl::string_view rest = ended; !rest.empty();) {
    const absl::string_view line = TakeLine(&rest);
    ABSL_RETURN_IF_ERROR(runtime.heap.Spend(1));
    const bool starts = std::exchange(is_first, false);
    if (!starts) out.Append("\n");
    if (starts ? first : (blank || !line.empty())) out.Append(indentation);
    out.Append(line);
    ABSL_RETURN_IF_ERROR(out.status());
  }
  return out.TakeValue();
}

absl::StatusOr<Value> Format(Runtime& runtime, const Value& value,
                             const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const std::string text, ToText(runtime.heap, value));
  if (!args.more.keywords.empty()) {
    return TypeError("'format' takes no names here");
  }
  return FormatPercent(runtime.heap, text, args.more.positional);
}

absl::StatusOr<Value> ToJson(Runtime& runtime, const Value& value,
                             const Args& args) {
  JsonStyle style;
  style.ensure_ascii = args.IsTrueAt(0, false);
  if (args.Get(1) != nullptr && !args[1].Is(Kind::kNone)) {
    ABSL_ASSIGN_OR_RETURN(style.indent, Indentation(runtime, args[1]));
    style.item_separator = ",";
  }
  if (args.Get(2) != nullptr && !args[2].Is(Kind::kNone)) {
    ABSL_ASSIGN_OR_RETURN(const std::vector<Value> separators,
                          Iterate(runtime.heap, args[2]));
    if (separators.size() != 2) return TypeError("'tojson' takes 2 separators");
    ABSL_ASSIGN_OR_RETURN(const absl::string_view item,
                          TextOf(separators[0], "a separator"));
    ABSL_ASSIGN_OR_RETURN(const absl::string_view key,
                          TextOf(separators[1], "a separator"));
    style.item_separator = std::string(item);
    style.key_separator = std::string(key);
  }
  style.sort_keys = args.IsTrueAt(3, false);
  Writer out(runtime.heap);
  ABSL_RETURN_IF_ERROR(PrintJson(runtime.heap, value, style, &out));
  return out.TakeValue();
}

}  // namespace

absl::Span<const Builtin> TextFilters() {
  static const auto& table = *new std::vector<Builtin>{
      {"upper", {}, 0, Changed<Upper>},
      {"lower", {}, 0, Changed<Lower>},
      {"title", {}, 0, Changed<TitleFilter>},
      {"capitalize", {}, 0, Changed<Capitalize>},
      {"string", {}, 0, String},
      {"safe", {}, 0, String},
      {"trim", {"chars"}, 0, Trim},
      {"replace", {"old", "new", "count"}, 2, Replace},
      {"indent", {"width", "first", "blank"}, 0, Indent},
      {"format", {}, 0, Format, true},
      {"tojson",
       {"ensure_ascii", "indent", "separators", "sort_keys"},
       0,
       ToJson},
  };
  return table;
}

}  // namespace troupe::jinja
