// Python's operators on values.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_OPERATORS_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_OPERATORS_H_

#include <compare>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/chat_template/value.h"

namespace troupe::jinja {

enum class Operator {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

absl::StatusOr<Value> Arithmetic(Heap& heap, Operator op, const Value& a,
                                 const Value& b);
absl::StatusOr<Value> Negate(const Value& value);
absl::StatusOr<bool> Compare(Heap& heap, Operator op, const Value& a,
                             const Value& b);

absl::StatusOr<bool> Equal(Heap& heap, const Value& a, const Value& b);
// a against b as Python orders them; a TypeError where it does not.
absl::StatusOr<std::partial_ordering> Order(Heap& heap, const Value& a,
                                            const Value& b);
absl::StatusOr<bool> Contains(Heap& heap, const Value& container,
                              const Value& item);

// The items that a `for` sees: of a dict its keys, of a text its characters.
// Empties a generator.
absl::StatusOr<std::vector<Value>> Iterate(Heap& heap, const Value& value);
// len(value).
absl::StatusOr<int64_t> Length(const Value& value);

// value.name and value[key], as Jinja looks them up: undefined when there is
// no such thing, an error when `value` itself is undefined.
absl::StatusOr<Value> GetAttribute(Heap& heap, const Value& value,
                                   absl::string_view name);
absl::StatusOr<Value> GetItem(Heap& heap, const Value& value, const Value& key);
// value[start:stop:step]; null where not given.
absl::StatusOr<Value> Slice(Heap& heap, const Value& value, const Value* start,
                            const Value* stop, const Value* step);

// The items of a dict as tuples.
absl::StatusOr<std::vector<Value>> PairsOf(Heap& heap, const Map& map);
// The first `count` matches replaced, all of them for a negative count.
absl::StatusOr<Value> ReplaceAll(Heap& heap, absl::string_view text,
                                 absl::string_view old, absl::string_view fresh,
                                 int64_t count);

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_OPERATORS_H_
