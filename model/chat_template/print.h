// Values as text: str(), repr() and json.dumps() of Python.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_PRINT_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_PRINT_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/chat_template/value.h"

namespace troupe::jinja {

// Text that grows within the heap's room and a limit of its own: what no longer
// fits is dropped and the status says so.
class Writer {
 public:
  explicit Writer(Heap& heap, size_t max_bytes = kMaxHeapBytes)
      : heap_(heap), max_bytes_(max_bytes) {}
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer() { heap_.Free(text_.size()); }

  void Append(absl::string_view text);
  void AppendRepeated(absl::string_view text, int64_t times);
  // Not OK as soon as something did not fit.
  const absl::Status& status() const { return status_; }
  const std::string& text() const { return text_; }
  // The text, or the status.
  absl::StatusOr<std::string> Take();
  absl::StatusOr<Value> TakeValue();

 private:
  Heap& heap_;
  const size_t max_bytes_;
  std::string text_;
  absl::Status status_;
};

// str(value), appended. An error for what Python would print as an address.
absl::Status Print(Heap& heap, const Value& value, Writer* out);
absl::StatusOr<std::string> ToText(Heap& heap, const Value& value);

struct JsonStyle {
  std::optional<std::string> indent;  // one level of it; one line without
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool ensure_ascii = false;
  bool sort_keys = false;
};
absl::Status PrintJson(Heap& heap, const Value& value, const JsonStyle& style,
                       Writer* out);

// repr() of a float.
std::string FloatText(double value);

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_PRINT_H_
