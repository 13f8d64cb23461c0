// The values of a rendering, and the heap that owns them.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_VALUE_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_VALUE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/chat_template/limits.h"

namespace troupe::jinja {

struct Builtin;
struct Loop;
struct Macro;
struct Map;
struct Method;
struct Namespace;
struct Sequence;
struct Text;

// Python's values as far as templates need them. A view: a Heap owns what it
// points at. Texts, sequences and maps never change once made (Jinja's
// immutable sandbox, which transformers uses, allows no change either), so
// that copying a Value is all that assignment takes.
class Value {
 public:
  enum class Kind : uint8_t {
    kUndefined,
    kNone,
    kBool,
    kInt,
    kFloat,
    kText,
    kSequence,
    kMap,
    kNamespace,
    kLoop,
    kMacro,
    kMethod,
    kFunction,
  };

  Value() : kind_(Kind::kUndefined), text_(nullptr) {}
  // `why` says in an error what is not there; it may be null.
  static Value Undefined(const Text* why);
  static Value None() { return Value(Kind::kNone, nullptr); }
  static Value Bool(bool value);
  static Value Int(int64_t value);
  static Value Float(double value);
  static Value Function(const Builtin* builtin);

  Kind kind() const { return kind_; }
  bool Is(Kind kind) const { return kind_ == kind; }
  bool IsNumber() const {
    return Is(Kind::kInt) || Is(Kind::kFloat) || Is(Kind::kBool);
  }
  // An int, or a bool, which is one in Python.
  bool IsIntegral() const { return Is(Kind::kInt) || Is(Kind::kBool); }

  // Each for values of its kind alone.
  bool AsBool() const { return int_ != 0; }
  int64_t AsInt() const { return int_; }  // of a bool: 0 or 1
  double AsFloat() const {                // of any number
    return kind_ == Kind::kFloat ? float_ : static_cast<double>(int_);
  }
  const Text* undefined_reason() const { return text_; }
  absl::string_view text() const;
  const Text& text_object() const { return *text_; }
  const Sequence& sequence() const { return *sequence_; }
  Sequence& mutable_sequence() const { return *sequence_; }
  const Map& map() const { return *map_; }
  Namespace& name_space() const { return *namespace_; }
  Loop& loop() const { return *loop_; }
  const Macro& macro() const { return *macro_; }
  const Method& method() const { return *method_; }
  const Builtin& function() const { return *function_; }

 private:
  friend class Heap;
  Value(Kind kind, const Text* text) : kind_(kind), text_(text) {}

  Kind kind_;
  union {
    int64_t int_;
    double float_;
    const Text* text_;
    Sequence* sequence_;
    const Map* map_;
    Namespace* namespace_;
    Loop* loop_;
    const Macro* macro_;
    const Method* method_;
    const Builtin* function_;
  };
};

struct Text {
  std::string bytes;  // valid UTF-8
  int64_t num_chars;
};

struct Sequence {
  enum class Shape {
    kList,
    kTuple,
    kRange,
    kView,       // dict.items() and the like: has a length, but no index
    kGenerator,  // of map() and the like: neither, and is walked once
  };
  Shape shape;
  std::vector<Value> items;
  bool IsIndexed() const {
    return shape != Shape::kView && shape != Shape::kGenerator;
  }
};

// A dict whose keys are texts, in order of insertion.
struct Map {
  std::vector<std::pair<Value, Value>> items;
  // Null when there is no such key.
  const Value* Find(absl::string_view key) const;

  // Of large maps alone: key to place in `items`.
  absl::flat_hash_map<absl::string_view, size_t> index;
};

// What namespace() makes: the one thing that templates may change.
struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
  const Value* Find(absl::string_view name) const;
};

// The variable `loop`.
struct Loop {
  const std::vector<Value>* items;  // of a sequence
  size_t index0 = 0;
  std::vector<Value> last_changed;  // arguments of the last changed()
  bool has_changed = false;
};

struct MacroNode;
class Scope;
struct Macro {
  const MacroNode* node;
  Scope* scope;  // where it was defined
};

// A method with its object, such as content.strip.
struct Method {
  Value self;
  const Builtin* builtin;
};

// Variables by name, innermost first. Names belong to the template or to the
// heap.
class Scope {
 public:
  explicit Scope(Scope* parent) : parent_(parent) {}
  const Value* Find(absl::string_view name) const;
  void Set(absl::string_view name, Value value);
  Scope* parent() const { return parent_; }

 private:
  friend class Heap;
  Scope* parent_;
  bool is_captured_ = false;  // by a macro
  std::vector<std::pair<absl::string_view, Value>> variables_;
};

// Owns every value of one rendering until its end, and counts what the
// rendering uses. No value is freed before, so what was ever made bounds what
// is held; texts that are still being written count, too. Not thread-safe.
class Heap {
 public:
  Heap() = default;
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  // InvalidArgument when a limit is passed.
  absl::Status Spend(int64_t steps);
  absl::Status SpendBytes(size_t num_bytes) {
    return Spend(1 + static_cast<int64_t>(num_bytes / kBytesPerStep));
  }
  absl::Status Allocate(size_t num_bytes);
  // Of what was allocated and belongs to no value.
  void Free(size_t num_bytes) { num_bytes_ -= num_bytes; }
  size_t num_free_bytes() const { return kMaxHeapBytes - num_bytes_; }

  absl::StatusOr<Value> NewText(std::string bytes);
  absl::StatusOr<Value> NewSequence(Sequence::Shape shape,
                                    std::vector<Value> items);
  absl::StatusOr<Value> NewList(std::vector<Value> items) {
    return NewSequence(Sequence::Shape::kList, std::move(items));
  }
  // A later item with the same key replaces the earlier one's value. Keys must
  // be texts.
  absl::StatusOr<Value> NewMap(std::vector<std::pair<Value, Value>> items);
  absl::StatusOr<Value> NewNamespace();
  absl::StatusOr<Value> NewLoop(const std::vector<Value>* items);
  absl::StatusOr<Value> NewMacro(const MacroNode* node, Scope* scope);
  absl::StatusOr<Value> NewMethod(const Value& self, const Builtin* builtin);
  // Undefined with a reason.
  Value NewUndefined(std::string reason);

  absl::StatusOr<Scope*> NewScope(Scope* parent);
  // The scope may be used again, unless a macro still sees it.
  void Release(Scope* scope);

 private:
  int64_t num_steps_ = 0;
  size_t num_bytes_ = 0;
  std::deque<Text> texts_;
  std::deque<Sequence> sequences_;
  std::deque<Map> maps_;
  std::deque<Namespace> namespaces_;
  std::deque<Loop> loops_;
  std::deque<Macro> macros_;
  std::deque<Method> methods_;
  std::deque<Scope> scopes_;
  std::vector<Scope*> free_scopes_;
};

// bool(value) of Python.
bool IsTrue(const Value& value);

// Python's name of the type, for errors.
absl::string_view TypeName(const Value& value);

// The error of using `value`, which is undefined.
absl::Status UndefinedError(const Value& value);

// A TypeError: InvalidArgument.
absl::Status TypeError(absl::string_view message);

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_VALUE_H_
