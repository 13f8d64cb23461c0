// Filters on lists and dicts, and `default`.
#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "model/chat_template/filters.h"
#include "model/chat_template/operators.h"
#include "model/chat_template/print.h"
#include "model/chat_template/text.h"

namespace troupe::jinja {
namespace {

using Kind = Value::Kind;
using Shape = Sequence::Shape;

absl::StatusOr<Value> Default(Runtime& runtime, const Value& value,
                              const Args& args) {
  const bool is_absent =
      value.Is(Kind::kUndefined) || (args.IsTrueAt(1, false) && !IsTrue(value));
  if (!is_absent) return value;
  return args.Get(0) == nullptr ? runtime.heap.NewText("") : args[0];
}

// item.a.b.0 for "a.b.0", or item[0] for 0. `otherwise`, which may be null,
// stands for whatever is undefined on the way.
absl::StatusOr<Value> DottedItem(Runtime& runtime, Value item,
                                 const Value& attribute,
                                 const Value* otherwise = nullptr) {
  if (attribute.IsIntegral()) return GetItem(runtime.heap, item, attribute);
  ABSL_ASSIGN_OR_RETURN(const absl::string_view path,
                        TextOf(attribute, "an attribute"));
  for (const absl::string_view part : absl::StrSplit(path, '.')) {
    int64_t index = 0;
    Value key;
    if (AllAre(part, CharClass::kDigit) && absl::SimpleAtoi(part, &index)) {
      key = Value::Int(index);
    } else {
      ABSL_ASSIGN_OR_RETURN(key, runtime.heap.NewText(std::string(part)));
    }
    ABSL_ASSIGN_OR_RETURN(item, GetItem(runtime.heap, item, key));
    if (otherwise != nullptr && item.Is(Kind::kUndefined)) item = *otherwise;
  }
  return item;
}

// Texts in small letters, for comparisons without regard to case.
absl::StatusOr<Value> Folded(Runtime& runtime, const Value& value) {
  if (!value.Is(Kind::kText)) return value;
  return runtime.heap.NewText(Lower(value.text()));
}

// What an item is sorted by: itself or its attribute, folded or not.
struct Key {
  const Value* attribute = nullptr;  // not null, not None
  bool case_sensitive = false;

  absl::StatusOr<Value> Of(Runtime& runtime, const Value& item) const {
    Value key = item;
    if (attribute != nullptr) {
      ABSL_ASSIGN_OR_RETURN(key, DottedItem(runtime, item, *attribute));
    }
    if (case_sensitive) return key;
    return Folded(runtime, key);
  }
};

const Value* NotNone(const Value* value) {
  return value == nullptr || value->Is(Kind::kNone) ? nullptr : value;
}

// The items in the order of their keys; the first error of a comparison wins.
absl::StatusOr<std::vector<Value>> SortedBy(
    Runtime& runtime, std::vector<std::pair<Value, Value>> keyed,
    bool reverse) {
  absl::Status status;
  const auto before = [&](const auto& a, const auto& b) {
    if (!status.ok()) return false;
    const absl::StatusOr<std::partial_ordering> order =
        reverse ? Order(runtime.heap, b.first, a.first)
                : Order(runtime.heap, a.first, b.first);
    if (!order.ok()) {
      status = order.status();
      return false;
    }
    return *order < 0;
  };
  // A merge sort: unlike std::sort it stays within its array whatever the
  // comparison answers (NaN has no order).
  std::stable_sort(keyed.begin(), keyed.end(), before);
  ABSL_RETURN_IF_ERROR(status);
  std::vector<Value> items;
  for (const auto& [key, item] : keyed) items.push_back(item);
  return items;
}

absl::StatusOr<std::vector<std::pair<Value, Value>>> KeyedItems(
    Runtime& runtime, const Value& value, const Key& key) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(runtime.heap, value));
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : items) {
    ABSL_ASSIGN_OR_RETURN(const Value sort_key, key.Of(runtime, item));
    keyed.emplace_back(sort_key, item);
  }
  return keyed;
}

// By a list of keys, as Jinja does: one, or one for each of "a,b".
absl::StatusOr<Value> Sort(Runtime& runtime, const Value& value,
                           const Args& args) {
  std::vector<Value> attributes;
  const Value* attribute = NotNone(args.Get(2));
  if (attribute != nullptr && attribute->Is(Kind::kText)) {
    for (const absl::string_view part :
         absl::StrSplit(attribute->text(), ',')) {
      ABSL_ASSIGN_OR_RETURN(const Value name,
                            runtime.heap.NewText(std::string(part)));
      attributes.push_back(name);
    }
  } else if (attribute != nullptr) {
    attributes.push_back(*attribute);
  }
  std::vector<Key> keys;
  for (const Value& name : attributes) {
    keys.push_back({&name, args.IsTrueAt(1, false)});
  }
  if (keys.empty()) keys.push_back({nullptr, args.IsTrueAt(1, false)});
  ABSL_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(runtime.heap, value));
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : items) {
    std::vector<Value> parts;
    for (const Key& key : keys) {
      ABSL_ASSIGN_OR_RETURN(const Value part, key.Of(runtime, item));
      parts.push_back(part);
    }
    ABSL_ASSIGN_OR_RETURN(const Value list,
                          runtime.heap.NewList(std::move(parts)));
    keyed.emplace_back(list, item);
  }
  ABSL_ASSIGN_OR_RETURN(
      std::vector<Value> sorted,
      SortedBy(runtime, std::move(keyed), args.IsTrueAt(0, false)));
  return runtime.heap.NewList(std::move(sorted));
}

template <bool kMax>
absl::StatusOr<Value> Extreme(Runtime& runtime, const Value& value,
                              const Args& args) {
  const Key key{NotNone(args.Get(1)), args.IsTrueAt(0, false)};
  ABSL_ASSIGN_OR_RETURN(const auto keyed, KeyedItems(runtime, value, key));
  if (keyed.empty()) {
    return runtime.heap.NewUndefined("an empty list has no least or greatest");
  }
  size_t best = 0;
  for (size_t i = 1; i < keyed.size(); ++i) {
    ABSL_ASSIGN_OR_RETURN(
        const std::partial_ordering order,
        Order(runtime.heap, keyed[i].first, keyed[best].first));
    if (kMax ? order > 0 : order < 0) best = i;
  }
  return keyed[best].second;
}

absl::StatusOr<Value> Unique(Runtime& runtime, const Value& value,
                             const Args& args) {
  const Key key{NotNone(args.Get(1)), args.IsTrueAt(0, false)};
  ABSL_ASSIGN_OR_RETURN(const auto keyed, KeyedItems(runtime, value, key));
  std::vector<Value> seen;
  std::vector<Value> items;
  for (const auto& [item_key, item] : keyed) {
    bool known = false;
    for (size_t i = 0; i < seen.size() && !known; ++i) {
      ABSL_ASSIGN_OR_RETURN(known, Equal(runtime.heap, seen[i], item_key));
    }
    if (known) continue;
    seen.push_back(item_key);
    items.push_back(item);
  }
  return runtime.heap.NewSequence(Shape::kGenerator, std::move(items));
}

absl::StatusOr<Value> DictSort(Runtime& runtime, const Value& value,
                               const Args& args) {
  if (!value.Is(Kind::kMap)) return TypeError("'dictsort' takes a dict");
  const bool case_sensitive = args.IsTrueAt(0, false);
  absl::string_view by = "key";
  if (args.Get(1) != nullptr) {
    ABSL_ASSIGN_OR_RETURN(by, TextOf(args[1], "by"));
  }
  if (by != "key" && by != "value") {
    return TypeError("'dictsort' is by 'key' or by 'value'");
  }
  ABSL_ASSIGN_OR_RETURN(const std::vector<Value> pairs,
                        PairsOf(runtime.heap, value.map()));
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& pair : pairs) {
    Value key = pair.sequence().items[by == "key" ? 0 : 1];
    if (!case_sensitive) {
      ABSL_ASSIGN_OR_RETURN(key, Folded(runtime, key));
    }
    keyed.emplace_back(key, pair);
  }
  ABSL_ASSIGN_OR_RETURN(
      std::vector<Value> items,
      SortedBy(runtime, std::move(keyed), args.IsTrueAt(2, false)));
  return runtime.heap.NewList(std::move(items));
}

absl::StatusOr<Value> ItemsOf(Runtime& runtime, const Value& value,
                              const Args&) {
  std::vector<Value> pairs;
  if (value.Is(Kind::kMap)) {
    ABSL_ASSIGN_OR_RETURN(pairs, PairsOf(runtime.heap, value.map()));
  } else if (!value.Is(Kind::kUndefined)) {
    return TypeError("'items' takes a dict");
  }
  return runtime.heap.NewSequence(Shape::kGenerator, std::move(pairs));
}

absl::StatusOr<Value> List(Runtime& runtime, const Value& value, const Args&) {
  ABSL_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(runtime.heap, value));
  return runtime.heap.NewList(std::move(items));
}

absl::StatusOr<Value> First(Runtime& runtime, const Value& value, const Args&) {
  if (value.Is(Kind::kSequence) &&
      value.sequence().shape == Shape::kGenerator) {
    std::vector<Value>& items = value.mutable_sequence().items;
    if (!items.empty()) {
      const Value first = items.front();
      ABSL_RETURN_IF_ERROR(
          runtime.heap.Spend(static_cast<int64_t>(items.size())));
      items.erase(items.begin());
      return first;
    }
  }
  if (value.Is(Kind::kText) && !value.text().empty()) {
    return runtime.heap.NewText(std::string(FirstChar(value.text())));
  }
  ABSL_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(runtime.heap, value));
  if (!items.empty()) return items.front();
  return runtime.heap.NewUndefined("an empty list has no first item");
}

absl::StatusOr<std::vector<Value>> Backwards(Runtime& runtime,
                                             const Value& value) {
  if (value.Is(Kind::kUndefined)) return std::vector<Value>();
  ABSL_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(runtime.heap, value));
  std::reverse(items.begin(), items.end());
  return items;
}

absl::StatusOr<Value> Last(Runtime& runtime, const Value& value, const Args&) {
  if (value.Is(Kind::kSequence) &&
      value.sequence().shape == Shape::kGenerator) {
    return TypeError("a generator has no last item: use the filter 'list'");
  }
  ABSL_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Backwards(runtime, value));
  if (!items.empty()) return items.front();
  return runtime.heap.NewUndefined("an empty list has no last item");
}

absl::StatusOr<Value> Reverse(Runtime& runtime, const Value& value,
                              const Args&) {
  ABSL_ASSIGN_OR_RETURN(std::vector<Value> items, Backwards(runtime, value));
  if (!value.Is(Kind::kText)) {
    return runtime.heap.NewSequence(Shape::kGenerator, std::move(items));
  }
  std::string text;
  for (const Value& c : items) absl::StrAppend(&text, c.text());
  return runtime.heap.NewText(std::move(text));
}

absl::StatusOr<Value> Join(Runtime& runtime, const Value& value,
                           const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(runtime.heap, value));
  Writer out(runtime.heap);
  const Value* attribute = NotNone(args.Get(1));
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0 && args.Get(0) != nullptr) {
      ABSL_RETURN_IF_ERROR(Print(runtime.heap, args[0], &out));
    }
    Value item = items[i];
    if (attribute != nullptr) {
      ABSL_ASSIGN_OR_RETURN(item, DottedItem(runtime, item, *attribute));
    }
    ABSL_RETURN_IF_ERROR(Print(runtime.heap, item, &out));
  }
  return out.TakeValue();
}

absl::StatusOr<Value> Sum(Runtime& runtime, const Value& value,
                          const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(runtime.heap, value));
  const Value* attribute = NotNone(args.Get(0));
  Value total = args.Get(1) == nullptr ? Value::Int(0) : args[1];
  if (total.Is(Kind::kText)) return TypeError("'sum' adds no texts");
  for (Value item : items) {
    if (attribute != nullptr) {
      ABSL_ASSIGN_OR_RETURN(item, DottedItem(runtime, item, *attribute));
    }
    ABSL_ASSIGN_OR_RETURN(
        total, Arithmetic(runtime.heap, Operator::kAdd, total, item));
  }
  return total;
}

absl::StatusOr<const Builtin*> Named(const Builtin* (*find)(absl::string_view),
                                     absl::string_view what,
                                     const Value& name) {
  ABSL_ASSIGN_OR_RETURN(const absl::string_view text, TextOf(name, what));
  const Builtin* builtin = find(text);
  if (builtin != nullptr) return builtin;
  return absl::InvalidArgumentError(
      absl::StrCat("the ", what, " '", text, "' is not supported"));
}

// map(attribute='x', default='') or map('filter', arguments...).
absl::StatusOr<Value> MapItems(Runtime& runtime, const Value& value,
                               const Args& args) {
  ABSL_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(runtime.heap, value));
  CallArguments call = args.more;
  if (!call.positional.empty()) {
    ABSL_ASSIGN_OR_RETURN(const Builtin* filter,
                          Named(FindFilter, "filter", call.positional[0]));
    call.positional.erase(call.positional.begin());
    for (Value& item : items) {
      ABSL_ASSIGN_OR_RETURN(item, Call(runtime, *filter, item, call));
    }
    return runtime.heap.NewSequence(Shape::kGenerator, std::move(items));
  }
  const Value* attribute = nullptr;
  const Value* otherwise = nullptr;
  for (const auto& [name, argument] : call.keywords) {
    if (name == "attribute") {
      attribute = &argument;
    } else if (name == "default") {
      otherwise = NotNone(&argument);
    } else {
      return TypeError(absl::StrCat("'map' takes no argument '", name, "'"));
    }
  }
  if (attribute == nullptr) return TypeError("'map' needs a filter");
  for (Value& item : items) {
    ABSL_ASSIGN_OR_RETURN(item,
                          DottedItem(runtime, item, *attribute, otherwise));
  }
  return runtime.heap.NewSequence(Shape::kGenerator, std::move(items));
}

// Those items for which a test, of the item or of its attribute, gives kKeep.
template <bool kKeep, bool kByAttribute>
absl::StatusOr<Value> Select(Runtime& runtime, const Value& value,
                             const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(runtime.heap, value));
  CallArguments call = args.more;
  const Value* attribute = kByAttribute ? args.Get(0) : nullptr;
  const Builtin* test = nullptr;
  if (!call.positional.empty()) {
    ABSL_ASSIGN_OR_RETURN(test, Named(FindTest, "test", call.positional[0]));
    call.positional.erase(call.positional.begin());
  }
  std::vector<Value> kept;
  for (const Value& item : items) {
    Value result = item;
    if (attribute != nullptr) {
      ABSL_ASSIGN_OR_RETURN(result, DottedItem(runtime, item, *attribute));
    }
    if (test != nullptr) {
      ABSL_ASSIGN_OR_RETURN(result, Call(runtime, *test, result, call));
    }
    if (IsTrue(result) == kKeep) kept.push_back(item);
  }
  return runtime.heap.NewSequence(Shape::kGenerator, std::move(kept));
}

}  // namespace

absl::Span<const Builtin> ListFilters() {
  static const auto& table = *new std::vector<Builtin>{
      {"default", {"default_value", "boolean"}, 0, Default},
      {"d", {"default_value", "boolean"}, 0, Default},
      {"list", {}, 0, List},
      {"first", {}, 0, First},
      {"last", {}, 0, Last},
      {"reverse", {}, 0, Reverse},
      {"join", {"d", "attribute"}, 0, Join},
      {"sum", {"attribute", "start"}, 0, Sum},
      {"sort", {"reverse", "case_sensitive", "attribute"}, 0, Sort},
      {"min", {"case_sensitive", "attribute"}, 0, Extreme<false>},
      {"max", {"case_sensitive", "attribute"}, 0, Extreme<true>},
      {"unique", {"case_sensitive", "attribute"}, 0, Unique},
      {"dictsort", {"case_sensitive", "by", "reverse"}, 0, DictSort},
      {"items", {}, 0, ItemsOf},
      {"map", {}, 0, MapItems, true},
      {"select", {}, 0, Select<true, false>, true},
      {"reject", {}, 0, Select<false, false>, true},
      {"selectattr", {"attribute"}, 1, Select<true, true>, true},
      {"rejectattr", {"attribute"}, 1, Select<false, true>, true},
  };
  return table;
}

const Builtin* FindFilter(absl::string_view name) {
  for (const absl::Span<const Builtin> table :
       {TextFilters(), NumberFilters(), ListFilters()}) {
    const Builtin* filter = FindIn(table, name);
    if (filter != nullptr) return filter;
  }
  return nullptr;
}

}  // namespace troupe::jinja
