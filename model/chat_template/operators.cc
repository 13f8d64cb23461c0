#include "model/chat_template/operators.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/chat_template/builtin.h"
#include "model/chat_template/print.h"
#include "model/chat_template/text.h"

namespace troupe::jinja {
namespace {

using Kind = Value::Kind;

absl::string_view Symbol(Operator op) {
  static constexpr absl::string_view kSymbols[] = {
      "+",  "-", "*",  "/", "//", "%",  "**",    "==",
      "!=", "<", "<=", ">", ">=", "in", "not in"};
  return kSymbols[static_cast<int>(op)];
}

absl::Status OperandError(Operator op, const Value& a, const Value& b) {
  return TypeError(absl::StrCat("unsupported operand types for ", Symbol(op),
                                ": ", TypeName(a), " and ", TypeName(b)));
}

absl::Status OverflowError() {
  return absl::InvalidArgumentError("an integer beyond 64 bits");
}

absl::Status DepthError() {
  return absl::InvalidArgumentError(
      absl::StrCat("lists and dicts more than ", kMaxValueDepth, " deep"));
}

// Of floats as Python defines // and %: the remainder has b's sign.
double FloatModulo(double a, double b) {
  double remainder = std::fmod(a, b);
  if (remainder != 0 && (remainder < 0) != (b < 0)) remainder += b;
  return remainder == 0 ? std::copysign(0.0, b) : remainder;
}

absl::StatusOr<Value> IntPower(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) {
      return OverflowError();
    }
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) {
      return OverflowError();
    }
  }
  return Value::Int(result);
}

absl::StatusOr<Value> IntArithmetic(Operator op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case Operator::kAdd:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case Operator::kSubtract:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case Operator::kMultiply:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    case Operator::kFloorDivide:
    case Operator::kModulo: {
      if (b == -1) {  // the one division that overflows
        if (op == Operator::kModulo) return Value::Int(0);
        overflow = __builtin_sub_overflow(int64_t{0}, a, &result);
        break;
      }
      const bool is_uneven = a % b != 0 && (a % b < 0) != (b < 0);
      if (op == Operator::kFloorDivide) {
        result = a / b - (is_uneven ? 1 : 0);
      } else {
        result = a % b + (is_uneven ? b : 0);
      }
      break;
    }
    default:
      break;
  }
  if (overflow) return OverflowError();
  return Value::Int(result);
}

absl::StatusOr<Value> FloatArithmetic(Operator op, double a, double b) {
  switch (op) {
    case Operator::kAdd:
      return Value::Float(a + b);
    case Operator::kSubtract:
      return Value::Float(a - b);
    case Operator::kMultiply:
      return Value::Float(a * b);
    case Operator::kDivide:
      return Value::Float(a / b);
    case Operator::kFloorDivide:
      return Value::Float(std::floor((a - FloatModulo(a, b)) / b + 0.5));
    case Operator::kModulo:
      return Value::Float(FloatModulo(a, b));
    default: {
      const double power = std::pow(a, b);
      if (!std::isfinite(power) && std::isfinite(a) && std::isfinite(b)) {
        return absl::InvalidArgumentError("a power that is no number");
      }
      return Value::Float(power);
    }
  }
}

absl::StatusOr<Value> NumberArithmetic(Operator op, const Value& a,
                                       const Value& b) {
  if ((op == Operator::kDivide || op == Operator::kFloorDivide ||
       op == Operator::kModulo) &&
      b.AsFloat() == 0) {
    return absl::InvalidArgumentError("division by zero");
  }
  if (a.IsIntegral() && b.IsIntegral() && op != Operator::kDivide) {
    if (op != Operator::kPower) {
      return IntArithmetic(op, a.AsInt(), b.AsInt());
    }
    if (b.AsInt() >= 0) return IntPower(a.AsInt(), b.AsInt());
  }
  if (op == Operator::kPower && a.AsFloat() == 0 && b.AsFloat() < 0) {
    return absl::InvalidArgumentError("a negative power of zero");
  }
  return FloatArithmetic(op, a.AsFloat(), b.AsFloat());
}

absl::StatusOr<Value> AddSequences(Heap& heap, const Value& a, const Value& b) {
  const Sequence& left = a.sequence();
  const Sequence& right = b.sequence();
  if (left.shape != right.shape || (left.shape != Sequence::Shape::kList &&
                                    left.shape != Sequence::Shape::kTuple)) {
    return OperandError(Operator::kAdd, a, b);
  }
  ABSL_RETURN_IF_ERROR(
      heap.Spend(static_cast<int64_t>(left.items.size() + right.items.size())));
  std::vector<Value> items = left.items;
  items.insert(items.end(), right.items.begin(), right.items.end());
  return heap.NewSequence(left.shape, std::move(items));
}

// A text, list or tuple, `times` over.
absl::StatusOr<Value> Repeat(Heap& heap, const Value& value, int64_t times) {
  times = std::max<int64_t>(times, 0);
  if (value.Is(Kind::kText)) {
    Writer out(heap);
    out.AppendRepeated(value.text(), times);
    return out.TakeValue();
  }
  const Sequence& sequence = value.sequence();
  std::vector<Value> items;
  if (!sequence.items.empty()) {
    for (int64_t i = 0; i < times; ++i) {
      ABSL_RETURN_IF_ERROR(
          heap.Spend(static_cast<int64_t>(sequence.items.size())));
      items.insert(items.end(), sequence.items.begin(), sequence.items.end());
    }
  }
  return heap.NewSequence(sequence.shape, std::move(items));
}

bool IsRepeatable(const Value& value) {
  return value.Is(Kind::kText) ||
         (value.Is(Kind::kSequence) &&
          (value.sequence().shape == Sequence::Shape::kList ||
           value.sequence().shape == Sequence::Shape::kTuple));
}

// Numbers exactly, also an int against a float.
std::partial_ordering OrderNumbers(const Value& a, const Value& b) {
  if (a.IsIntegral() && b.IsIntegral()) return a.AsInt() <=> b.AsInt();
  // The 64 bits of a long double's mantissa hold any int64_t.
  static_assert(std::numeric_limits<long double>::digits >= 63);
  const auto wide = [](const Value& value) {
    return value.IsIntegral() ? static_cast<long double>(value.AsInt())
                              : static_cast<long double>(value.AsFloat());
  };
  return wide(a) <=> wide(b);
}

absl::StatusOr<bool> EqualAt(Heap& heap, const Value& a, const Value& b,
                             int depth) {
  if (depth > kMaxValueDepth) return DepthError();
  ABSL_RETURN_IF_ERROR(heap.Spend(1));
  if (a.IsNumber() && b.IsNumber()) return OrderNumbers(a, b) == 0;
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kText:
      ABSL_RETURN_IF_ERROR(heap.SpendBytes(a.text().size()));
      return a.text() == b.text();
    case Kind::kSequence: {
      const Sequence& left = a.sequence();
      const Sequence& right = b.sequence();
      if (left.shape == Sequence::Shape::kGenerator) return &left == &right;
      if (left.shape != right.shape || left.items.size() != right.items.size())
        return false;
      for (size_t i = 0; i < left.items.size(); ++i) {
        ABSL_ASSIGN_OR_RETURN(
            const bool equal,
            EqualAt(heap, left.items[i], right.items[i], depth + 1));
        if (!equal) return false;
      }
      return true;
    }
    case Kind::kMap: {
      const Map& left = a.map();
      if (left.items.size() != b.map().items.size()) return false;
      for (const auto& [key, value] : left.items) {
        const Value* other = b.map().Find(key.text());
        if (other == nullptr) return false;
        ABSL_ASSIGN_OR_RETURN(const bool equal,
                              EqualAt(heap, value, *other, depth + 1));
        if (!equal) return false;
      }
      return true;
    }
    case Kind::kNamespace:
      return &a.name_space() == &b.name_space();
    case Kind::kLoop:
      return &a.loop() == &b.loop();
    case Kind::kMacro:
      return &a.macro() == &b.macro();
    case Kind::kMethod:
      return &a.method() == &b.method();
    case Kind::kFunction:
      return &a.function() == &b.function();
    default:
      return false;
  }
}

absl::StatusOr<std::partial_ordering> OrderAt(Heap& heap, const Value& a,
                                              const Value& b, int depth) {
  if (depth > kMaxValueDepth) return DepthError();
  ABSL_RETURN_IF_ERROR(heap.Spend(1));
  if (a.IsNumber() && b.IsNumber()) return OrderNumbers(a, b);
  if (a.Is(Kind::kText) && b.Is(Kind::kText)) {
    ABSL_RETURN_IF_ERROR(heap.SpendBytes(a.text().size()));
    // Bytes of UTF-8 order as code points do.
    const int order = a.text().compare(b.text());
    return order <=> 0;
  }
  if (a.Is(Kind::kSequence) && b.Is(Kind::kSequence) &&
      a.sequence().shape == b.sequence().shape &&
      (a.sequence().shape == Sequence::Shape::kList ||
       a.sequence().shape == Sequence::Shape::kTuple)) {
    const std::vector<Value>& left = a.sequence().items;
    const std::vector<Value>& right = b.sequence().items;
    for (size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
      ABSL_ASSIGN_OR_RETURN(const bool equal,
                            EqualAt(heap, left[i], right[i], depth + 1));
      if (!equal) return OrderAt(heap, left[i], right[i], depth + 1);
    }
    return left.size() <=> right.size();
  }
  if (a.Is(Kind::kUndefined)) return UndefinedError(a);
  if (b.Is(Kind::kUndefined)) return UndefinedError(b);
  return TypeError(absl::StrCat("values of the types ", TypeName(a), " and ",
                                TypeName(b), " have no order"));
}

absl::StatusOr<Value> CharAt(Heap& heap, const Value& value, int64_t index) {
  absl::string_view text = value.text();
  const int64_t num_chars = value.text_object().num_chars;
  if (num_chars == static_cast<int64_t>(text.size())) {
    return heap.NewText(std::string(text.substr(index, 1)));
  }
  ABSL_RETURN_IF_ERROR(heap.SpendBytes(text.size()));
  for (int64_t i = 0; i < index; ++i) TakeChar(&text);
  return heap.NewText(std::string(FirstChar(text)));
}

// A slice of `size` items: indices start, start + step, ...; count of them.
struct SliceRange {
  int64_t start;
  int64_t step;
  int64_t count;
};

absl::StatusOr<int64_t> SliceBound(const Value& value) {
  if (value.IsIntegral()) return value.AsInt();
  if (value.Is(Kind::kUndefined)) return UndefinedError(value);
  return TypeError("slice indices must be integers or none");
}

absl::StatusOr<SliceRange> ResolveSlice(int64_t size, const Value* start,
                                        const Value* stop, const Value* step) {
  const auto is_given = [](const Value* value) {
    return value != nullptr && !value->Is(Kind::kNone);
  };
  SliceRange range{0, 1, 0};
  if (is_given(step)) {
    ABSL_ASSIGN_OR_RETURN(range.step, SliceBound(*step));
    if (range.step == 0) return TypeError("slice step cannot be zero");
    // A longer step takes the same items.
    range.step = std::clamp<int64_t>(range.step, -size - 1, size + 1);
  }
  const bool is_forward = range.step > 0;
  const int64_t lowest = is_forward ? 0 : -1;
  const int64_t highest = is_forward ? size : size - 1;
  const auto clamp = [&](int64_t index) {
    if (index < 0) index += size;
    return std::clamp(index, lowest, highest);
  };
  range.start = is_forward ? lowest : highest;
  int64_t end = is_forward ? highest : lowest;
  if (is_given(start)) {
    ABSL_ASSIGN_OR_RETURN(const int64_t index, SliceBound(*start));
    range.start = clamp(index);
  }
  if (is_given(stop)) {
    ABSL_ASSIGN_OR_RETURN(const int64_t index, SliceBound(*stop));
    end = clamp(index);
  }
  const int64_t distance = is_forward ? end - range.start : range.start - end;
  const int64_t stride = is_forward ? range.step : -range.step;
  range.count = distance > 0 ? (distance + stride - 1) / stride : 0;
  return range;
}

absl::StatusOr<Value> SliceText(Heap& heap, const Value& value,
                                const SliceRange& range) {
  const absl::string_view text = value.text();
  if (range.count == 0) return heap.NewText("");
  ABSL_RETURN_IF_ERROR(heap.SpendBytes(text.size()));
  const bool is_ascii =
      value.text_object().num_chars == static_cast<int64_t>(text.size());
  if (range.step == 1) {
    absl::string_view rest = text;
    if (is_ascii) {
      return heap.NewText(std::string(rest.substr(range.start, range.count)));
    }
    for (int64_t i = 0; i < range.start; ++i) TakeChar(&rest);
    absl::string_view tail = rest;
    for (int64_t i = 0; i < range.count; ++i) TakeChar(&tail);
    return heap.NewText(std::string(rest.substr(0, rest.size() - tail.size())));
  }
  std::string out;
  if (is_ascii) {
    for (int64_t i = 0; i < range.count; ++i) {
      out += text[range.start + i * range.step];
    }
    return heap.NewText(std::move(out));
  }
  const size_t num_bytes =
      value.text_object().num_chars * sizeof(absl::string_view);
  ABSL_RETURN_IF_ERROR(heap.Allocate(num_bytes));
  std::vector<absl::string_view> chars;
  for (absl::string_view rest = text; !rest.empty(); TakeChar(&rest)) {
    chars.push_back(FirstChar(rest));
  }
  for (int64_t i = 0; i < range.count; ++i) {
    const absl::string_view c = chars[range.start + i * range.step];
    out.append(c.data(), c.size());
  }
  heap.Free(num_bytes);
  return heap.NewText(std::move(out));
}

absl::StatusOr<Value> LoopAttribute(Heap& heap, const Value& value,
                                    absl::string_view name, bool* found) {
  const Loop& loop = value.loop();
  const int64_t size = static_cast<int64_t>(loop.items->size());
  const int64_t index0 = static_cast<int64_t>(loop.index0);
  *found = true;
  if (name == "index") return Value::Int(index0 + 1);
  if (name == "index0") return Value::Int(index0);
  if (name == "revindex") return Value::Int(size - index0);
  if (name == "revindex0") return Value::Int(size - index0 - 1);
  if (name == "first") return Value::Bool(index0 == 0);
  if (name == "last") return Value::Bool(index0 + 1 == size);
  if (name == "length") return Value::Int(size);
  if (name == "depth") return Value::Int(1);
  if (name == "depth0") return Value::Int(0);
  if (name == "previtem") {
    if (index0 > 0) return (*loop.items)[loop.index0 - 1];
    return heap.NewUndefined("there is no previous item");
  }
  if (name == "nextitem") {
    if (index0 + 1 < size) return (*loop.items)[loop.index0 + 1];
    return heap.NewUndefined("there is no next item");
  }
  *found = false;
  return Value();
}

// getattr(value, name); `*found` says whether there is such an attribute.
absl::StatusOr<Value> PythonAttribute(Heap& heap, const Value& value,
                                      absl::string_view name, bool* found) {
  if (value.Is(Kind::kNamespace)) {
    const Value* attribute = value.name_space().Find(name);
    *found = attribute != nullptr;
    return *found ? *attribute : Value();
  }
  if (value.Is(Kind::kLoop)) {
    ABSL_ASSIGN_OR_RETURN(const Value attribute,
                          LoopAttribute(heap, value, name, found));
    if (*found) return attribute;
  }
  const Builtin* method = FindMethod(value, name);
  *found = method != nullptr;
  if (*found) return heap.NewMethod(value, method);
  return Value();
}

Value NoAttribute(Heap& heap, const Value& value, absl::string_view name) {
  return heap.NewUndefined(
      absl::StrCat("a ", TypeName(value), " has no '", name, "'"));
}

}  // namespace

absl::StatusOr<Value> Arithmetic(Heap& heap, Operator op, const Value& a,
                                 const Value& b) {
  if (a.IsNumber() && b.IsNumber()) return NumberArithmetic(op, a, b);
  if (op == Operator::kModulo && a.Is(Kind::kText)) {
    if (b.Is(Kind::kSequence) &&
        b.sequence().shape == Sequence::Shape::kTuple) {
      return FormatPercent(heap, a.text(), b.sequence().items);
    }
    return FormatPercent(heap, a.text(), {&b, 1});
  }
  if (a.Is(Kind::kUndefined)) return UndefinedError(a);
  if (b.Is(Kind::kUndefined)) return UndefinedError(b);
  if (op == Operator::kAdd && a.Is(Kind::kText) && b.Is(Kind::kText)) {
    Writer out(heap);
    out.Append(a.text());
    out.Append(b.text());
    return out.TakeValue();
  }
  if (op == Operator::kAdd && a.Is(Kind::kSequence) && b.Is(Kind::kSequence)) {
    return AddSequences(heap, a, b);
  }
  if (op == Operator::kMultiply) {
    if (IsRepeatable(a) && b.IsIntegral()) return Repeat(heap, a, b.AsInt());
    if (IsRepeatable(b) && a.IsIntegral()) return Repeat(heap, b, a.AsInt());
  }
  return OperandError(op, a, b);
}

absl::StatusOr<Value> Negate(const Value& value) {
  if (value.Is(Kind::kFloat)) return Value::Float(-value.AsFloat());
  if (value.IsIntegral()) {
    return IntArithmetic(Operator::kSubtract, 0, value.AsInt());
  }
  if (value.Is(Kind::kUndefined)) return UndefinedError(value);
  return TypeError(absl::StrCat("a ", TypeName(value), " has no negative"));
}

absl::StatusOr<bool> Equal(Heap& heap, const Value& a, const Value& b) {
  return EqualAt(heap, a, b, 0);
}

absl::StatusOr<std::partial_ordering> Order(Heap& heap, const Value& a,
                                            const Value& b) {
  return OrderAt(heap, a, b, 0);
}

absl::StatusOr<bool> Compare(Heap& heap, Operator op, const Value& a,
                             const Value& b) {
  switch (op) {
    case Operator::kEqual:
      return Equal(heap, a, b);
    case Operator::kNotEqual: {
      ABSL_ASSIGN_OR_RETURN(const bool equal, Equal(heap, a, b));
      return !equal;
    }
    case Operator::kIn:
      return Contains(heap, b, a);
    case Operator::kNotIn: {
      ABSL_ASSIGN_OR_RETURN(const bool found, Contains(heap, b, a));
      return !found;
    }
    default:
      break;
  }
  ABSL_ASSIGN_OR_RETURN(const std::partial_ordering order, Order(heap, a, b));
  switch (op) {
    case Operator::kLess:
      return order < 0;
    case Operator::kLessEqual:
      return order <= 0;
    case Operator::kGreater:
      return order > 0;
    default:
      return order >= 0;
  }
}

absl::StatusOr<bool> Contains(Heap& heap, const Value& container,
                              const Value& item) {
  switch (container.kind()) {
    case Kind::kUndefined:
      return false;
    case Kind::kText:
      if (!item.Is(Kind::kText)) {
        return TypeError(
            absl::StrCat("'in' a text takes a text, not a ", TypeName(item)));
      }
      ABSL_RETURN_IF_ERROR(
          heap.SpendBytes(container.text().size() + item.text().size()));
      return Find(container.text(), item.text()) != absl::string_view::npos;
    case Kind::kSequence:
      for (const Value& candidate : container.sequence().items) {
        ABSL_ASSIGN_OR_RETURN(const bool equal, Equal(heap, candidate, item));
        if (equal) return true;
      }
      return false;
    case Kind::kMap:
      if (item.Is(Kind::kMap) ||
          (item.Is(Kind::kSequence) &&
           item.sequence().shape == Sequence::Shape::kList)) {
        return TypeError(absl::StrCat("a ", TypeName(item), " is no dict key"));
      }
      return item.Is(Kind::kText) &&
             container.map().Find(item.text()) != nullptr;
    default:
      return TypeError(
          absl::StrCat("a ", TypeName(container), " holds no items"));
  }
}

absl::StatusOr<std::vector<Value>> Iterate(Heap& heap, const Value& value) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Kind::kUndefined:
      return items;
    case Kind::kText: {
      absl::string_view text = value.text();
      while (!text.empty()) {
        const absl::string_view c = FirstChar(text);
        text.remove_prefix(c.size());
        ABSL_ASSIGN_OR_RETURN(const Value item, heap.NewText(std::string(c)));
        items.push_back(item);
      }
      return items;
    }
    case Kind::kSequence:
      if (value.sequence().shape == Sequence::Shape::kGenerator) {
        items = std::exchange(value.mutable_sequence().items, {});
      } else {
        items = value.sequence().items;
      }
      break;
    case Kind::kMap:
      for (const auto& [key, item] : value.map().items) items.push_back(key);
      break;
    default:
      return TypeError(
          absl::StrCat("a ", TypeName(value), " cannot be walked"));
  }
  ABSL_RETURN_IF_ERROR(heap.Spend(static_cast<int64_t>(items.size())));
  return items;
}

absl::StatusOr<int64_t> Length(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kText:
      return value.text_object().num_chars;
    case Kind::kMap:
      return static_cast<int64_t>(value.map().items.size());
    case Kind::kSequence:
      if (value.sequence().shape == Sequence::Shape::kGenerator) break;
      return static_cast<int64_t>(value.sequence().items.size());
    case Kind::kLoop:
      return static_cast<int64_t>(value.loop().items->size());
    default:
      break;
  }
  return TypeError(absl::StrCat("a ", TypeName(value), " has no length"));
}

absl::StatusOr<Value> GetAttribute(Heap& heap, const Value& value,
                                   absl::string_view name) {
  if (value.Is(Kind::kUndefined)) return UndefinedError(value);
  bool found = false;
  ABSL_ASSIGN_OR_RETURN(const Value attribute,
                        PythonAttribute(heap, value, name, &found));
  if (found) return attribute;
  if (value.Is(Kind::kMap)) {
    const Value* item = value.map().Find(name);
    if (item != nullptr) return *item;
  }
  return NoAttribute(heap, value, name);
}

absl::StatusOr<Value> GetItem(Heap& heap, const Value& value,
                              const Value& key) {
  if (value.Is(Kind::kUndefined)) return UndefinedError(value);
  if (key.IsIntegral()) {
    const bool is_indexed =
        value.Is(Kind::kText) ||
        (value.Is(Kind::kSequence) && value.sequence().IsIndexed());
    if (is_indexed) {
      ABSL_ASSIGN_OR_RETURN(const int64_t size, Length(value));
      const int64_t index = key.AsInt() < 0 ? key.AsInt() + size : key.AsInt();
      if (index >= 0 && index < size) {
        if (value.Is(Kind::kText)) return CharAt(heap, value, index);
        return value.sequence().items[index];
      }
    }
    return heap.NewUndefined(
        absl::StrCat("a ", TypeName(value), " has no item ", key.AsInt()));
  }
  if (!key.Is(Kind::kText)) {
    return heap.NewUndefined(absl::StrCat("a ", TypeName(value),
                                          " has no item of a key of the type ",
                                          TypeName(key)));
  }
  if (value.Is(Kind::kMap)) {
    const Value* item = value.map().Find(key.text());
    if (item != nullptr) return *item;
  }
  bool found = false;
  ABSL_ASSIGN_OR_RETURN(const Value attribute,
                        PythonAttribute(heap, value, key.text(), &found));
  if (found) return attribute;
  return NoAttribute(heap, value, key.text());
}

absl::StatusOr<Value> Slice(Heap& heap, const Value& value, const Value* start,
                            const Value* stop, const Value* step) {
  if (value.Is(Kind::kUndefined)) return UndefinedError(value);
  if (!value.Is(Kind::kText) &&
      !(value.Is(Kind::kSequence) && value.sequence().IsIndexed())) {
    return TypeError(absl::StrCat("a ", TypeName(value), " has no slices"));
  }
  ABSL_ASSIGN_OR_RETURN(const int64_t size, Length(value));
  ABSL_ASSIGN_OR_RETURN(const SliceRange range,
                        ResolveSlice(size, start, stop, step));
  if (value.Is(Kind::kText)) return SliceText(heap, value, range);
  ABSL_RETURN_IF_ERROR(heap.Spend(range.count));
  std::vector<Value> items;
  items.reserve(range.count);
  for (int64_t i = 0; i < range.count; ++i) {
    items.push_back(value.sequence().items[range.start + i * range.step]);
  }
  return heap.NewSequence(value.sequence().shape, std::move(items));
}

absl::StatusOr<std::vector<Value>> PairsOf(Heap& heap, const Map& map) {
  std::vector<Value> pairs;
  for (const auto& [key, value] : map.items) {
    ABSL_RETURN_IF_ERROR(heap.Spend(1));
    ABSL_ASSIGN_OR_RETURN(
        const Value pair,
        heap.NewSequence(Sequence::Shape::kTuple, {key, value}));
    pairs.push_back(pair);
  }
  return pairs;
}

absl::StatusOr<Value> ReplaceAll(Heap& heap, absl::string_view text,
                                 absl::string_view old, absl::string_view fresh,
                                 int64_t count) {
  Writer out(heap);
  int64_t left = count < 0 ? std::numeric_limits<int64_t>::max() : count;
  if (old.empty()) {
    // Before every character and at the end.
    while (left-- > 0) {
      out.Append(fresh);
      ABSL_RETURN_IF_ERROR(out.status());
      if (text.empty()) break;
      const absl::string_view c = FirstChar(text);
      out.Append(c);
      text.remove_prefix(c.size());
    }
    out.Append(text);
    return out.TakeValue();
  }
  while (left-- > 0) {
    const size_t at = Find(text, old);
    if (at == absl::string_view::npos) break;
    out.Append(text.substr(0, at));
    out.Append(fresh);
    ABSL_RETURN_IF_ERROR(out.status());
    text.remove_prefix(at + old.size());
  }
  out.Append(text);
  return out.TakeValue();
}

}  // namespace troupe::jinja
