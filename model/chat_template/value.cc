#include "model/chat_template/value.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/chat_template/text.h"

namespace troupe::jinja {
namespace {

// Maps from this size on have an index.
constexpr size_t kIndexedMapSize = 12;
// What an object takes besides its texts and items, about.
constexpr size_t kObjectBytes = 96;

}  // namespace

Value Value::Undefined(const Text* why) { return Value(Kind::kUndefined, why); }

Value Value::Bool(bool value) {
  Value result(Kind::kBool, nullptr);
  result.int_ = value ? 1 : 0;
  return result;
}

Value Value::Int(int64_t value) {
  Value result(Kind::kInt, nullptr);
  result.int_ = value;
  return result;
}

Value Value::Float(double value) {
  Value result(Kind::kFloat, nullptr);
  result.float_ = value;
  return result;
}

Value Value::Function(const Builtin* builtin) {
  Value result(Kind::kFunction, nullptr);
  result.function_ = builtin;
  return result;
}

absl::string_view Value::text() const { return text_->bytes; }

const Value* Map::Find(absl::string_view key) const {
  if (!index.empty()) {
    const auto found = index.find(key);
    return found == index.end() ? nullptr : &items[found->second].second;
  }
  for (const auto& [name, value] : items) {
    if (name.text() == key) return &value;
  }
  return nullptr;
}

const Value* Namespace::Find(absl::string_view name) const {
  for (const auto& [key, value] : attributes) {
    if (key == name) return &value;
  }
  return nullptr;
}

const Value* Scope::Find(absl::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent_) {
    for (const auto& [key, value] : scope->variables_) {
      if (key == name) return &value;
    }
  }
  return nullptr;
}

void Scope::Set(absl::string_view name, Value value) {
  for (auto& [key, old] : variables_) {
    if (key == name) {
      old = value;
      return;
    }
  }
  variables_.emplace_back(name, value);
}

absl::Status Heap::Spend(int64_t steps) {
  num_steps_ += steps;
  if (num_steps_ <= kMaxSteps) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("more than ", kMaxSteps, " steps"));
}

absl::Status Heap::Allocate(size_t num_bytes) {
  if (num_bytes > num_free_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("more than ", kMaxHeapBytes, " bytes of memory"));
  }
  num_bytes_ += num_bytes;
  return absl::OkStatus();
}

absl::StatusOr<Value> Heap::NewText(std::string bytes) {
  ABSL_RETURN_IF_ERROR(Allocate(kObjectBytes + bytes.size()));
  ABSL_RETURN_IF_ERROR(SpendBytes(bytes.size()));
  const int64_t num_chars = CountChars(bytes);
  texts_.push_back({std::move(bytes), num_chars});
  return Value(Value::Kind::kText, &texts_.back());
}

absl::StatusOr<Value> Heap::NewSequence(Sequence::Shape shape,
                                        std::vector<Value> items) {
  ABSL_RETURN_IF_ERROR(Allocate(kObjectBytes + items.size() * sizeof(Value)));
  sequences_.push_back({shape, std::move(items)});
  Value result(Value::Kind::kSequence, nullptr);
  result.sequence_ = &sequences_.back();
  return result;
}

absl::StatusOr<Value> Heap::NewMap(std::vector<std::pair<Value, Value>> items) {
  ABSL_RETURN_IF_ERROR(
      Allocate(2 * kObjectBytes + items.size() * 4 * sizeof(Value)));
  ABSL_RETURN_IF_ERROR(Spend(static_cast<int64_t>(items.size())));
  maps_.emplace_back();
  Map& map = maps_.back();
  const bool is_indexed = items.size() >= kIndexedMapSize;
  for (const auto& [key, value] : items) {
    const Value* old = map.Find(key.text());
    if (old != nullptr) {
      const auto place =
          std::find_if(map.items.begin(), map.items.end(),
                       [&](const auto& item) { return &item.second == old; });
      place->second = value;
      continue;
    }
    if (is_indexed) map.index.emplace(key.text(), map.items.size());
    map.items.emplace_back(key, value);
  }
  Value result(Value::Kind::kMap, nullptr);
  result.map_ = &map;
  return result;
}

absl::StatusOr<Value> Heap::NewNamespace() {
  ABSL_RETURN_IF_ERROR(Allocate(kObjectBytes));
  namespaces_.emplace_back();
  Value result(Value::Kind::kNamespace, nullptr);
  result.namespace_ = &namespaces_.back();
  return result;
}

absl::StatusOr<Value> Heap::NewLoop(const std::vector<Value>* items) {
  ABSL_RETURN_IF_ERROR(Allocate(kObjectBytes));
  loops_.emplace_back();
  loops_.back().items = items;
  Value result(Value::Kind::kLoop, nullptr);
  result.loop_ = &loops_.back();
  return result;
}

absl::StatusOr<Value> Heap::NewMacro(const MacroNode* node, Scope* scope) {
  ABSL_RETURN_IF_ERROR(Allocate(kObjectBytes));
  for (Scope* s = scope; s != nullptr && !s->is_captured_; s = s->parent_) {
    s->is_captured_ = true;
  }
  macros_.push_back({node, scope});
  Value result(Value::Kind::kMacro, nullptr);
  result.macro_ = &macros_.back();
  return result;
}

absl::StatusOr<Value> Heap::NewMethod(const Value& self,
                                      const Builtin* builtin) {
  ABSL_RETURN_IF_ERROR(Allocate(kObjectBytes));
  methods_.push_back({self, builtin});
  Value result(Value::Kind::kMethod, nullptr);
  result.method_ = &methods_.back();
  return result;
}

Value Heap::NewUndefined(std::string reason) {
  absl::StatusOr<Value> text = NewText(std::move(reason));
  return Value::Undefined(text.ok() ? &text->text_object() : nullptr);
}

absl::StatusOr<Scope*> Heap::NewScope(Scope* parent) {
  if (!free_scopes_.empty()) {
    Scope* scope = free_scopes_.back();
    free_scopes_.pop_back();
    scope->parent_ = parent;
    return scope;
  }
  ABSL_RETURN_IF_ERROR(Allocate(4 * kObjectBytes));
  scopes_.emplace_back(parent);
  return &scopes_.back();
}

void Heap::Release(Scope* scope) {
  if (scope->is_captured_) return;
  scope->variables_.clear();
  free_scopes_.push_back(scope);
}

bool IsTrue(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::kUndefined:
    case Value::Kind::kNone:
      return false;
    case Value::Kind::kBool:
    case Value::Kind::kInt:
      return value.AsInt() != 0;
    case Value::Kind::kFloat:
      return value.AsFloat() != 0;
    case Value::Kind::kText:
      return !value.text().empty();
    case Value::Kind::kSequence:
      return value.sequence().shape == Sequence::Shape::kGenerator ||
             !value.sequence().items.empty();
    case Value::Kind::kMap:
      return !value.map().items.empty();
    default:
      return true;
  }
}

absl::string_view TypeName(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::kUndefined:
      return "Undefined";
    case Value::Kind::kNone:
      return "None";
    case Value::Kind::kBool:
      return "bool";
    case Value::Kind::kInt:
      return "int";
    case Value::Kind::kFloat:
      return "float";
    case Value::Kind::kText:
      return "str";
    case Value::Kind::kSequence:
      switch (value.sequence().shape) {
        case Sequence::Shape::kList:
          return "list";
        case Sequence::Shape::kTuple:
          return "tuple";
        case Sequence::Shape::kRange:
          return "range";
        case Sequence::Shape::kView:
          return "dict view";
        case Sequence::Shape::kGenerator:
          return "generator";
      }
      return "?";
    case Value::Kind::kMap:
      return "dict";
    case Value::Kind::kNamespace:
      return "namespace";
    case Value::Kind::kLoop:
      return "loop";
    case Value::Kind::kMacro:
      return "macro";
    case Value::Kind::kMethod:
      return "method";
    case Value::Kind::kFunction:
      return "function";
  }
  return "?";
}

absl::Status UndefinedError(const Value& value) {
  const Text* reason = value.undefined_reason();
  return absl::InvalidArgumentError(
      reason == nullptr ? "an undefined value is used" : reason->bytes);
}

absl::Status TypeError(absl::string_view message) {
  return absl::InvalidArgumentError(message);
}

}  // namespace troupe::jinja
