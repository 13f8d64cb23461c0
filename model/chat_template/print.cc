#include "model/chat_template/print.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/chat_template/text.h"

namespace troupe::jinja {
namespace {

absl::Status CheckDepth(int depth) {
  if (depth <= kMaxValueDepth) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("lists and dicts more than ", kMaxValueDepth, " deep"));
}

// repr() of a text: single quotes, unless only single ones occur in it.
void PrintQuoted(absl::string_view text, Writer* out) {
  const bool has_single = text.find('\'') != absl::string_view::npos;
  const bool has_double = text.find('"') != absl::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out->Append(absl::string_view(&quote, 1));
  while (!text.empty()) {
    const absl::string_view at = text;
    const char32_t c = TakeChar(&text);
    if (c == '\n') {
      out->Append("\\n");
    } else if (c == '\r') {
      out->Append("\\r");
    } else if (c == '\t') {
      out->Append("\\t");
    } else if (c == '\\' || c == static_cast<char32_t>(quote)) {
      out->Append("\\");
      out->Append(at.substr(0, 1));
    } else if (IsPrintable(c)) {
      out->Append(at.substr(0, at.size() - text.size()));
    } else if (c < 0x100) {
      out->Append(absl::StrFormat("\\x%02x", static_cast<uint32_t>(c)));
    } else if (c < 0x10000) {
      out->Append(absl::StrFormat("\\u%04x", static_cast<uint32_t>(c)));
    } else {
      out->Append(absl::StrFormat("\\U%08x", static_cast<uint32_t>(c)));
    }
  }
  out->Append(absl::string_view(&quote, 1));
}

// Prints repr() of values into a writer.
class ReprPrinter {
 public:
  ReprPrinter(Heap& heap, Writer* out) : heap_(heap), out_(out) {}

  absl::Status Print(const Value& value, int depth) {
    ABSL_RETURN_IF_ERROR(CheckDepth(depth));
    ABSL_RETURN_IF_ERROR(heap_.Spend(1));
    ABSL_RETURN_IF_ERROR(out_->status());
    switch (value.kind()) {
      case Value::Kind::kUndefined:
        out_->Append("Undefined");
        return absl::OkStatus();
      case Value::Kind::kNone:
        out_->Append("None");
        return absl::OkStatus();
      case Value::Kind::kBool:
        out_->Append(value.AsBool() ? "True" : "False");
        return absl::OkStatus();
      case Value::Kind::kInt:
        out_->Append(absl::StrCat(value.AsInt()));
        return absl::OkStatus();
      case Value::Kind::kFloat:
        out_->Append(FloatText(value.AsFloat()));
        return absl::OkStatus();
      case Value::Kind::kText:
        ABSL_RETURN_IF_ERROR(heap_.SpendBytes(value.text().size()));
        PrintQuoted(value.text(), out_);
        return absl::OkStatus();
      case Value::Kind::kSequence:
        return PrintSequence(value.sequence(), depth);
      case Value::Kind::kMap:
        return PrintMap(value.map(), depth);
      default:
        return TypeError(
            absl::StrCat("a ", TypeName(value), " cannot be printed"));
    }
  }

 private:
  absl::Status PrintSequence(const Sequence& sequence, int depth) {
    const bool is_tuple = sequence.shape == Sequence::Shape::kTuple;
    if (!is_tuple && sequence.shape != Sequence::Shape::kList) {
      return TypeError("a range, a dict view or a generator cannot be printed");
    }
    out_->Append(is_tuple ? "(" : "[");
    bool is_first = true;
    for (const Value& item : sequence.items) {
      if (!std::exchange(is_first, false)) out_->Append(", ");
      ABSL_RETURN_IF_ERROR(Print(item, depth + 1));
    }
    if (is_tuple && sequence.items.size() == 1) out_->Append(",");
    out_->Append(is_tuple ? ")" : "]");
    return absl::OkStatus();
  }

  absl::Status PrintMap(const Map& map, int depth) {
    out_->Append("{");
    bool is_first = true;
    for (const auto& [key, item] : map.items) {
      if (!std::exchange(is_first, false)) out_->Append(", ");
      ABSL_RETURN_IF_ERROR(Print(key, depth + 1));
      out_->Append(": ");
      ABSL_RETURN_IF_ERROR(Print(item, depth + 1));
    }
    out_->Append("}");
    return absl::OkStatus();
  }

  Heap& heap_;
  Writer* out_;
};

// Prints json.dumps() of values into a writer.
class JsonPrinter {
 public:
  JsonPrinter(Heap& heap, const JsonStyle& style, Writer* out)
      : heap_(heap), style_(style), out_(out) {}

  absl::Status Print(const Value& value, int depth) {
    ABSL_RETURN_IF_ERROR(CheckDepth(depth));
    ABSL_RETURN_IF_ERROR(heap_.Spend(1));
    ABSL_RETURN_IF_ERROR(out_->status());
    switch (value.kind()) {
      case Value::Kind::kNone:
        out_->Append("null");
        return absl::OkStatus();
      case Value::Kind::kBool:
        out_->Append(value.AsBool() ? "true" : "false");
        return absl::OkStatus();
      case Value::Kind::kInt:
        out_->Append(absl::StrCat(value.AsInt()));
        return absl::OkStatus();
      case Value::Kind::kFloat:
        PrintFloat(value.AsFloat());
        return absl::OkStatus();
      case Value::Kind::kText:
        ABSL_RETURN_IF_ERROR(heap_.SpendBytes(value.text().size()));
        PrintText(value.text());
        return absl::OkStatus();
      case Value::Kind::kSequence:
        return PrintSequence(value.sequence(), depth);
      case Value::Kind::kMap:
        return PrintMap(value.map(), depth);
      default:
        return TypeError(absl::StrCat("Object of type ", TypeName(value),
                                      " is not JSON serializable"));
    }
  }

 private:
  void PrintFloat(double value) {
    if (std::isnan(value)) {
      out_->Append("NaN");
    } else if (std::isinf(value)) {
      out_->Append(value > 0 ? "Infinity" : "-Infinity");
    } else {
      out_->Append(FloatText(value));
    }
  }

  void PrintText(absl::string_view text) {
    out_->Append("\"");
    while (!text.empty()) {
      const absl::string_view at = text;
      const char32_t c = TakeChar(&text);
      if (c == '"' || c == '\\') {
        out_->Append("\\");
        out_->Append(at.substr(0, 1));
      } else if (c >= 32 && (c < 127 || !style_.ensure_ascii)) {
        out_->Append(at.substr(0, at.size() - text.size()));
      } else {
        PrintEscaped(c);
      }
    }
    out_->Append("\"");
  }

  void PrintEscaped(char32_t c) {
    static constexpr absl::string_view kShort[][2] = {
        {"\n", "\\n"}, {"\r", "\\r"}, {"\t", "\\t"},
        {"\f", "\\f"}, {"\b", "\\b"},
    };
    for (const auto& [from, to] : kShort) {
      if (c == static_cast<char32_t>(from[0])) {
        out_->Append(to);
        return;
      }
    }
    const uint32_t code = c;
    if (code < 0x10000) {
      out_->Append(absl::StrFormat("\\u%04x", code));
    } else {
      out_->Append(absl::StrFormat("\\u%04x\\u%04x",
                                   0xD800 + ((code - 0x10000) >> 10),
                                   0xDC00 + ((code - 0x10000) & 0x3FF)));
    }
  }

  void PrintBreak(int depth) {
    if (!style_.indent) return;
    out_->Append("\n");
    out_->AppendRepeated(*style_.indent, depth);
  }

  absl::Status PrintSequence(const Sequence& sequence, int depth) {
    if (sequence.shape != Sequence::Shape::kTuple &&
        sequence.shape != Sequence::Shape::kList) {
      return TypeError(
          "a range, a dict view or a generator is not JSON serializable");
    }
    if (sequence.items.empty()) {
      out_->Append("[]");
      return absl::OkStatus();
    }
    out_->Append("[");
    bool is_first = true;
    for (const Value& item : sequence.items) {
      if (!std::exchange(is_first, false)) out_->Append(style_.item_separator);
      PrintBreak(depth + 1);
      ABSL_RETURN_IF_ERROR(Print(item, depth + 1));
    }
    PrintBreak(depth);
    out_->Append("]");
    return absl::OkStatus();
  }

  absl::Status PrintMap(const Map& map, int depth) {
    if (map.items.empty()) {
      out_->Append("{}");
      return absl::OkStatus();
    }
    std::vector<std::pair<Value, Value>> sorted;
    if (style_.sort_keys) {
      sorted = map.items;
      std::sort(sorted.begin(), sorted.end(), [](const auto& x, const auto& y) {
        return x.first.text() < y.first.text();
      });
    }
    const auto& items = style_.sort_keys ? sorted : map.items;
    out_->Append("{");
    bool is_first = true;
    for (const auto& [key, item] : items) {
      if (!std::exchange(is_first, false)) out_->Append(style_.item_separator);
      PrintBreak(depth + 1);
      PrintText(key.text());
      out_->Append(style_.key_separator);
      ABSL_RETURN_IF_ERROR(Print(item, depth + 1));
    }
    PrintBreak(depth);
    out_->Append("}");
    return absl::OkStatus();
  }

  Heap& heap_;
  const JsonStyle& style_;
  Writer* out_;
};

}  // namespace

void Writer::Append(absl::string_view text) {
  if (!status_.ok()) return;
  if (text.size() > max_bytes_ - text_.size()) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat("more than ", max_bytes_, " bytes of output"));
    return;
  }
  status_ = heap_.Allocate(text.size());
  if (status_.ok()) text_.append(text.data(), text.size());
}

void Writer::AppendRepeated(absl::string_view text, int64_t times) {
  if (text.empty() || times <= 0 || !status_.ok()) return;
  const size_t room =
      std::min(max_bytes_ - text_.size(), heap_.num_free_bytes());
  if (static_cast<size_t>(times) > room / text.size()) {
    status_ = heap_.Allocate(kMaxHeapBytes + 1);  // its error
    return;
  }
  const size_t num_bytes = text.size() * static_cast<size_t>(times);
  status_ = heap_.Allocate(num_bytes);
  if (!status_.ok()) return;
  text_.reserve(text_.size() + num_bytes);
  for (int64_t i = 0; i < times; ++i) text_.append(text.data(), text.size());
}

absl::StatusOr<std::string> Writer::Take() {
  ABSL_RETURN_IF_ERROR(status_);
  ABSL_RETURN_IF_ERROR(heap_.SpendBytes(text_.size()));
  heap_.Free(text_.size());
  return std::exchange(text_, std::string());
}

absl::StatusOr<Value> Writer::TakeValue() {
  ABSL_ASSIGN_OR_RETURN(std::string text, Take());
  return heap_.NewText(std::move(text));
}

absl::Status Print(Heap& heap, const Value& value, Writer* out) {
  if (value.Is(Value::Kind::kUndefined)) return absl::OkStatus();
  if (value.Is(Value::Kind::kText)) {
    ABSL_RETURN_IF_ERROR(heap.SpendBytes(value.text().size()));
    out->Append(value.text());
    return out->status();
  }
  ABSL_RETURN_IF_ERROR(ReprPrinter(heap, out).Print(value, 0));
  return out->status();
}

absl::StatusOr<std::string> ToText(Heap& heap, const Value& value) {
  Writer out(heap);
  ABSL_RETURN_IF_ERROR(Print(heap, value, &out));
  return out.Take();
}

absl::Status PrintJson(Heap& heap, const Value& value, const JsonStyle& style,
                       Writer* out) {
  ABSL_RETURN_IF_ERROR(JsonPrinter(heap, style, out).Print(value, 0));
  return out->status();
}

// The shortest digits that give the number back, with an exponent below 1e-4
// and from 1e16 on.
std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value,
                                 std::chars_format::scientific);
  const std::string text(buffer, end.ptr);
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return text;
  const bool is_negative = text[0] == '-';
  std::string digits = text.substr(is_negative ? 1 : 0, 1);
  if (text.find('.') != std::string::npos) {
    const size_t dot = text.find('.');
    digits += text.substr(dot + 1, e - dot - 1);
  }
  std::string out = is_negative ? "-" : "";
  if (exponent < 0) {
    return absl::StrCat(out, "0.", std::string(-exponent - 1, '0'), digits);
  }
  const size_t num_whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= num_whole) {
    return absl::StrCat(out, digits,
                        std::string(num_whole - digits.size(), '0'), ".0");
  }
  return absl::StrCat(out, digits.substr(0, num_whole), ".",
                      digits.substr(num_whole));
}

}  // namespace troupe::jinja
