// Jinja's tests: `value is name`.
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/chat_template/builtin.h"
#include "model/chat_template/operators.h"
#include "model/chat_template/print.h"
#include "model/chat_template/text.h"

namespace troupe::jinja {
namespace {

using Kind = Value::Kind;

template <Kind kKind>
absl::StatusOr<Value> IsKind(Runtime&, const Value& value, const Args&) {
  return Value::Bool(value.Is(kKind));
}

absl::StatusOr<Value> IsDefined(Runtime&, const Value& value, const Args&) {
  return Value::Bool(!value.Is(Kind::kUndefined));
}

template <bool kValue>
absl::StatusOr<Value> IsBool(Runtime&, const Value& value, const Args&) {
  return Value::Bool(value.Is(Kind::kBool) && value.AsBool() == kValue);
}

absl::StatusOr<Value> IsNumber(Runtime&, const Value& value, const Args&) {
  return Value::Bool(value.IsNumber());
}

absl::StatusOr<Value> IsIterable(Runtime&, const Value& value, const Args&) {
  return Value::Bool(value.Is(Kind::kUndefined) || value.Is(Kind::kText) ||
                     value.Is(Kind::kSequence) || value.Is(Kind::kMap) ||
                     value.Is(Kind::kLoop));
}

absl::StatusOr<Value> IsSequence(Runtime&, const Value& value, const Args&) {
  return Value::Bool(
      value.Is(Kind::kUndefined) || value.Is(Kind::kText) ||
      value.Is(Kind::kMap) ||
      (value.Is(Kind::kSequence) && value.sequence().IsIndexed()));
}

absl::StatusOr<Value> IsCallable(Runtime&, const Value& value, const Args&) {
  return Value::Bool(value.Is(Kind::kMacro) || value.Is(Kind::kMethod) ||
                     value.Is(Kind::kFunction));
}

template <Operator kOperator>
absl::StatusOr<Value> Compares(Runtime& runtime, const Value& value,
                               const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const bool result,
                        Compare(runtime.heap, kOperator, value, args[0]));
  return Value::Bool(result);
}

absl::StatusOr<Value> IsSameAs(Runtime& runtime, const Value& value,
                               const Args& args) {
  const Value& other = args[0];
  if (value.kind() != other.kind()) return Value::Bool(false);
  switch (value.kind()) {
    case Kind::kNone:
    case Kind::kBool:
    case Kind::kNamespace: {
      ABSL_ASSIGN_OR_RETURN(const bool same, Equal(runtime.heap, value, other));
      return Value::Bool(same);
    }
    default:
      return TypeError(
          "the test 'sameas' is for none, true, false and namespaces");
  }
}

template <int kRemainder>
absl::StatusOr<Value> HasParity(Runtime& runtime, const Value& value,
                                const Args&) {
  ABSL_ASSIGN_OR_RETURN(
      const Value remainder,
      Arithmetic(runtime.heap, Operator::kModulo, value, Value::Int(2)));
  ABSL_ASSIGN_OR_RETURN(const bool result,
                        Equal(runtime.heap, remainder, Value::Int(kRemainder)));
  return Value::Bool(result);
}

absl::StatusOr<Value> IsDivisibleBy(Runtime& runtime, const Value& value,
                                    const Args& args) {
  ABSL_ASSIGN_OR_RETURN(
      const Value remainder,
      Arithmetic(runtime.heap, Operator::kModulo, value, args[0]));
  ABSL_ASSIGN_OR_RETURN(const bool result,
                        Equal(runtime.heap, remainder, Value::Int(0)));
  return Value::Bool(result);
}

template <bool (*kPredicate)(absl::string_view)>
absl::StatusOr<Value> HasCase(Runtime& runtime, const Value& value,
                              const Args&) {
  ABSL_ASSIGN_OR_RETURN(const std::string text, ToText(runtime.heap, value));
  return Value::Bool(kPredicate(text));
}

template <const Builtin* (*kFind)(absl::string_view)>
absl::StatusOr<Value> Exists(Runtime&, const Value& value, const Args&) {
  ABSL_ASSIGN_OR_RETURN(const absl::string_view name, TextOf(value, "a name"));
  return Value::Bool(kFind(name) != nullptr);
}

}  // namespace

const Builtin* FindTest(absl::string_view name) {
  static const auto& table = *new std::vector<Builtin>{
      {"defined", {}, 0, IsDefined},
      {"undefined", {}, 0, IsKind<Kind::kUndefined>},
      {"none", {}, 0, IsKind<Kind::kNone>},
      {"boolean", {}, 0, IsKind<Kind::kBool>},
      {"true", {}, 0, IsBool<true>},
      {"false", {}, 0, IsBool<false>},
      {"integer", {}, 0, IsKind<Kind::kInt>},
      {"float", {}, 0, IsKind<Kind::kFloat>},
      {"number", {}, 0, IsNumber},
      {"string", {}, 0, IsKind<Kind::kText>},
      {"mapping", {}, 0, IsKind<Kind::kMap>},
      {"iterable", {}, 0, IsIterable},
      {"sequence", {}, 0, IsSequence},
      {"callable", {}, 0, IsCallable},
      {"sameas", {"other"}, 1, IsSameAs},
      {"odd", {}, 0, HasParity<1>},
      {"even", {}, 0, HasParity<0>},
      {"divisibleby", {"num"}, 1, IsDivisibleBy},
      {"lower", {}, 0, HasCase<IsLower>},
      {"upper", {}, 0, HasCase<IsUpper>},
      {"filter", {}, 0, Exists<FindFilter>},
      {"test", {}, 0, Exists<FindTest>},
      {"in", {"seq"}, 1, Compares<Operator::kIn>},
      {"==", {"other"}, 1, Compares<Operator::kEqual>},
      {"eq", {"other"}, 1, Compares<Operator::kEqual>},
      {"equalto", {"other"}, 1, Compares<Operator::kEqual>},
      {"!=", {"other"}, 1, Compares<Operator::kNotEqual>},
      {"ne", {"other"}, 1, Compares<Operator::kNotEqual>},
      {"<", {"other"}, 1, Compares<Operator::kLess>},
      {"lt", {"other"}, 1, Compares<Operator::kLess>},
      {"lessthan", {"other"}, 1, Compares<Operator::kLess>},
      {"<=", {"other"}, 1, Compares<Operator::kLessEqual>},
      {"le", {"other"}, 1, Compares<Operator::kLessEqual>},
      {">", {"other"}, 1, Compares<Operator::kGreater>},
      {"gt", {"other"}, 1, Compares<Operator::kGreater>},
      {"greaterthan", {"other"}, 1, Compares<Operator::kGreater>},
      {">=", {"other"}, 1, Compares<Operator::kGreaterEqual>},
      {"ge", {"other"}, 1, Compares<Operator::kGreaterEqual>},
  };
  return FindIn(table, name);
}

}  // namespace troupe::jinja
