// Filters that make numbers.
#include <cmath>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/chat_template/filters.h"
#include "model/chat_template/operators.h"
#include "model/chat_template/text.h"

namespace troupe::jinja {
namespace {

using Kind = Value::Kind;

// Underscores between digits are Python's, and few numbers have them.
bool ParseInt(absl::string_view text, int base, int64_t* value) {
  text = Strip(text);
  if (base == 10) return absl::SimpleAtoi(text, value);
  if (base == 16) return absl::SimpleHexAtoi(text, value);
  const std::string copy(text);
  char* end = nullptr;
  errno = 0;
  *value = std::strtoll(copy.c_str(), &end, base);
  return errno == 0 && !copy.empty() && end == copy.c_str() + copy.size();
}

bool ParseFloat(absl::string_view text, double* value) {
  text = Strip(text);
  // SimpleAtod takes hexadecimal numbers, which Python does not.
  return !absl::StrContains(text, "x") && !absl::StrContains(text, "X") &&
         absl::SimpleAtod(text, value);
}

absl::StatusOr<Value> FloatToInt(double value, const Value& otherwise) {
  if (!std::isfinite(value)) return otherwise;
  if (!(value > -9.2e18 && value < 9.2e18)) {
    return absl::InvalidArgumentError("an integer beyond 64 bits");
  }
  return Value::Int(static_cast<int64_t>(value));
}

absl::StatusOr<Value> Int(Runtime& runtime, const Value& value,
                          const Args& args) {
  const Value otherwise = args.Get(0) == nullptr ? Value::Int(0) : args[0];
  int64_t base = 10;
  if (args.Get(1) != nullptr) {
    ABSL_ASSIGN_OR_RETURN(base, IntOf(args[1], "base"));
    if (base < 2 || base > 36) return TypeError("a base from 2 to 36");
  }
  switch (value.kind()) {
    case Kind::kUndefined:
      return UndefinedError(value);
    case Kind::kBool:
    case Kind::kInt:
      return Value::Int(value.AsInt());
    case Kind::kFloat:
      return FloatToInt(value.AsFloat(), otherwise);
    case Kind::kText: {
      ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(value.text().size()));
      int64_t number = 0;
      double real = 0;
      if (ParseInt(value.text(), static_cast<int>(base), &number)) {
        return Value::Int(number);
      }
      if (ParseFloat(value.text(), &real)) return FloatToInt(real, otherwise);
      return otherwise;
    }
    default:
      return otherwise;
  }
}

absl::StatusOr<Value> Float(Runtime& runtime, const Value& value,
                            const Args& args) {
  const Value otherwise = args.Get(0) == nullptr ? Value::Float(0) : args[0];
  if (value.Is(Kind::kUndefined)) return UndefinedError(value);
  if (value.IsNumber()) return Value::Float(value.AsFloat());
  double real = 0;
  if (value.Is(Kind::kText)) {
    ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(value.text().size()));
    if (ParseFloat(value.text(), &real)) return Value::Float(real);
  }
  return otherwise;
}

absl::StatusOr<Value> Abs(Runtime&, const Value& value, const Args&) {
  if (value.Is(Kind::kUndefined)) return UndefinedError(value);
  if (!value.IsNumber()) return TypeError("'abs' takes a number");
  if (value.Is(Kind::kFloat)) return Value::Float(std::fabs(value.AsFloat()));
  return value.AsInt() < 0 ? Negate(value) : Value::Int(value.AsInt());
}

// Python's round(): the decimal that is nearest to the exact binary value.
double RoundTo(double value, int precision) {
  if (!std::isfinite(value)) return value;
  if (precision >= 0) {
    return std::strtod(absl::StrFormat("%.*f", precision, value).c_str(),
                       nullptr);
  }
  const double scale = std::pow(10.0, -precision);
  return std::nearbyint(value / scale) * scale;
}

absl::StatusOr<Value> Round(Runtime&, const Value& value, const Args& args) {
  constexpr int64_t kMaxPrecision = 50;
  if (value.Is(Kind::kUndefined)) return UndefinedError(value);
  if (!value.IsNumber()) return TypeError("'round' takes a number");
  int64_t precision = 0;
  if (args.Get(0) != nullptr) {
    ABSL_ASSIGN_OR_RETURN(precision, IntOf(args[0], "precision"));
  }
  if (precision > kMaxPrecision || precision < -kMaxPrecision) {
    return absl::InvalidArgumentError("a precision beyond 50 digits");
  }
  absl::string_view method = "common";
  if (args.Get(1) != nullptr) {
    ABSL_ASSIGN_OR_RETURN(method, TextOf(args[1], "method"));
  }
  if (method == "common") {
    if (value.IsIntegral() && precision >= 0) return Value::Int(value.AsInt());
    const double rounded =
        RoundTo(value.AsFloat(), static_cast<int>(precision));
    if (value.IsIntegral()) return FloatToInt(rounded, value);
    return Value::Float(rounded);
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = value.AsFloat() * scale;
  if (method == "ceil") return Value::Float(std::ceil(scaled) / scale);
  if (method == "floor") return Value::Float(std::floor(scaled) / scale);
  return TypeError("method must be common, ceil or floor");
}

absl::StatusOr<Value> CountItems(Runtime&, const Value& value, const Args&) {
  ABSL_ASSIGN_OR_RETURN(const int64_t length, Length(value));
  return Value::Int(length);
}

}  // namespace

absl::Span<const Builtin> NumberFilters() {
  static const auto& table = *new std::vector<Builtin>{
      {"int", {"default", "base"}, 0, Int},
      {"float", {"default"}, 0, Float},
      {"abs", {}, 0, Abs},
      {"round", {"precision", "method"}, 0, Round},
      {"length", {}, 0, CountItems},
      {"count", {}, 0, CountItems},
  };
  return table;
}

}  // namespace troupe::jinja
